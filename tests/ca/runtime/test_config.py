"""Strict configuration: what is refused, how it is said, and the manual made from the models."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from ca.errors import ConfigError
from ca.ports import KeyType
from ca.runtime.config import StrictModel, from_values, load_yaml
from ca.runtime.config_reference import json_schema, markdown_table
from ca.runtime.server_config import ServerConfig

MINIMAL = "trust_domain: example.org\ndata_dir: /var/lib/burgee\n"


class Colour(StrEnum):
    RED = "red"


class Inner(StrictModel):
    """Inside."""

    port: int = 1
    """A port | pipe."""


class Outer(StrictModel):
    """Outside."""

    name: str
    colour: Colour = Colour.RED
    mode: Literal["a", "b"] = "a"
    ratio: Annotated[float, Field(gt=0)] = 0.5
    on: bool = False
    maybe: str | None = None
    path: Path = Path("/x")
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field(default_factory=dict)


def refused(text: str, model: type[StrictModel] = Outer) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, model)
    return caught.value


def test_a_whole_document_is_read() -> None:
    text = (
        "name: n\ncolour: red\nmode: b\nratio: 2\non: true\nmaybe: ~\npath: /y\n"
        "inner: {port: 7}\nmany: [{port: 1}, {}]\nnamed:\n  a: {port: -3}\n"
    )
    outer = load_yaml(text, Outer)
    assert (outer.mode, outer.ratio, outer.on, outer.maybe, outer.path) == ("b", 2.0, True, None, Path("/y"))
    assert (outer.inner.port, [one.port for one in outer.many], outer.named["a"].port) == (7, [1, 1], -3)
    with pytest.raises(Exception, match="frozen"):
        outer.name = "m"


@pytest.mark.parametrize(
    ("text", "line", "key", "hint"),
    [
        ("name: n\nratoi: 1\n", 2, "ratoi", "did you mean `ratio`?"),
        ("name: n\ninner:\n  prot: 1\n", 3, "inner.prot", "did you mean `port`?"),
        ("name: n\nmany:\n- port: 1\n- prt: 1\n", 4, "many.1.prt", "did you mean `port`?"),
        ("name: n\nnamed:\n  x:\n    prt: 1\n", 4, "named.x.prt", "did you mean `port`?"),
        ("name: n\ninner: {zzz: 1}\n", 2, "inner.zzz", "known keys: port"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(
    text: str, line: int, key: str, hint: str
) -> None:
    error = refused(text)
    assert error.detail == f"<text>:{line}: unknown key `{key}`"
    assert error.hint == hint


@pytest.mark.parametrize("text", ["name: n\nname: m\n", "name: n\ninner:\n  port: 1\n  port: 1\n"])
def test_a_key_that_is_there_twice_is_refused(text: str) -> None:
    assert refused(text).reason == "CONFIG_DUPLICATE_KEY"
    assert "twice" in refused(text).detail


@pytest.mark.parametrize(
    "text",
    [
        "name: 5",
        "name: n\ninner: {port: '5'}",
        "name: n\ninner: {port: 1.0}",
        "name: n\ninner: {port: true}",
        "name: n\ninner: {port: 0o17}",
        "name: n\ninner: {port: 017}",
        "name: n\ninner: {port: 1:30}",
        "name: n\ninner: {port: 1_000}",
        "name: n\non: yes",
        "name: n\non: 1",
        "name: n\ncolour: blue",
        "name: n\nratio: -1",
        "name: n\nmany: {}",
        "name: n\ninner: 3",
        "inner: {}",
        "- a",
        "just text",
    ],
)
def test_nothing_is_converted_and_nothing_is_guessed(text: str) -> None:
    assert refused(text).detail.startswith("<text>:")


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "\t- x",
        "a: &x 1\nb: *x",
        "a: !!python/object:os.system x",
        "---\na: 1\n---\nb: 2",
        "1: x",
        "? [a]\n: b",
        "a: !!int x",
        "a: !!bool 7",
        "a: !!timestamp 2026-01-01",
        "a: !!binary aGVsbG8=",
        "a: !!float .nan",
        "a: " + "9" * 5000,
        "!!timestamp 2026-01-01: a",
    ],
)
def test_syntax_and_the_dangerous_parts_of_yaml_are_refused(text: str) -> None:
    assert refused(text).reason == "CONFIG_SYNTAX"
    assert refused("[" * 100_000).reason == "CONFIG_SYNTAX"
    assert refused("#" * (2 << 20)).reason == "CONFIG_TOO_LARGE"


@pytest.mark.parametrize(
    "text",
    [
        *("a: !!timestamp x", "a: !!binary aGk=", "a: !!int ''", "a: !!float x", "!!null a: b"),
        *("a: " + "9" * 5000, "9" * 5000 + ": a", 'a: "\\UFFFFFFFF"', 'a: "\\U00110000"'),
    ],
)
def test_text_that_pyyaml_chokes_on_is_refused(text: str) -> None:
    assert refused(text).reason == "CONFIG_SYNTAX"


@pytest.mark.parametrize("text", ['name: n\n"a\\nb": 1', 'name: n\n"a\\nb": 1\n"a\\nb": 2'])
def test_a_strange_key_is_shown_on_one_line(text: str) -> None:
    assert "`a\\nb`" in refused(text).detail


def test_a_value_is_never_repeated_since_it_could_be_a_secret() -> None:
    assert "hunter2" not in refused("name: n\ninner: {port: hunter2}").detail


@given(st.text(max_size=60))
def test_any_text_gives_a_model_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert load_yaml(text, Outer).name


def test_all_problems_are_told_at_once_and_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("trust_domain: Example.org\nbind_port: 99999\n")
    with pytest.raises(ConfigError) as caught:
        load_yaml(file, ServerConfig)
    for part in (f"{file}:1: `trust_domain`", "`data_dir` is missing", f"{file}:2: `bind_port`"):
        assert part in caught.value.detail
    with pytest.raises(ConfigError) as unreadable:
        load_yaml(tmp_path / "none.yaml", ServerConfig)
    assert unreadable.value.reason == "CONFIG_UNREADABLE"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_yaml(file, ServerConfig)


def test_a_plugins_part_is_checked_the_same_way() -> None:
    assert from_values({"port": 3}, Inner).port == 3
    with pytest.raises(ConfigError, match=r"keys\.disk: unknown key `prt`") as caught:
        from_values({"prt": 3}, Inner, name="keys.disk")
    assert caught.value.hint == "did you mean `port`?"


def test_the_servers_configuration_has_safe_defaults() -> None:
    config = load_yaml(MINIMAL, ServerConfig)
    assert config.admin_socket_path == Path("/var/lib/burgee/run/admin.sock")
    assert config.store_url == "sqlite+aiosqlite:////var/lib/burgee/store.sqlite3"
    assert config.metrics_address is not None
    assert config.metrics_address.startswith("127.0.0.1:")
    assert (config.ca_key_type, config.keys.plugin) == (KeyType.EC_P256, "disk")
    assert config.node_attestors == {"join_token": {}}
    assert load_yaml(MINIMAL + "metrics_address: null\nca_key_type: rsa-2048\n", ServerConfig).metrics_address is None
    assert "host:port" in refused(MINIMAL + "metrics_address: 9988x\n", ServerConfig).detail


def test_every_key_is_in_the_manual_with_a_sentence() -> None:
    rows = [row.strip("| ").split(" | ") for row in markdown_table(ServerConfig).splitlines()[2:]]
    keys = {row[0].strip("`") for row in rows}
    assert {"trust_domain", "limits.max_connections", "admin_socket.admin_uids"} <= keys
    assert all(row[-1].endswith(".") for row in rows), "a key without a sentence"
    outer = markdown_table(Outer)
    for row in (
        "| `many[].port` | integer | `1` | A port \\| pipe. |",
        "| `named.<name>.port` |",
        "| `a` \\| `b` | `a` |",
    ):
        assert row in outer


def test_the_schema_is_a_schema_and_the_module_prints_both() -> None:
    schema = json.loads(json_schema(ServerConfig))
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["data_dir", "trust_domain"] or set(schema["required"]) == {"data_dir", "trust_domain"}
    for what in ("table", "schema"):
        done = subprocess.run(
            [sys.executable, "-m", "ca.runtime.server_config", what], capture_output=True, text=True, check=True
        )
        assert "trust_domain" in done.stdout
    assert subprocess.run([sys.executable, "-m", "ca.runtime.server_config"], capture_output=True).returncode == 2
