"""The command line's parts: durations, times, tables, exit codes, entry files, reference, start-up."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from ca.cli import burgee, output, reference
from ca.cli import caadmin as caadmin_program
from ca.cli.arguments import duration, instant
from ca.cli.entry_files import read_entries
from ca.cli.exits import Exit, exit_of_batch, show_error
from ca.cli.version import package_version
from ca.errors import InvalidArgument
from tests.ca.cli.conftest import Caadmin

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("7d", 604800), ("1m30", 90)],
)
def test_durations(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5h", "1s1m", "1h ", "١"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a duration"):
        duration(text)


def test_points_in_time() -> None:
    assert instant("1700000000") == instant("2023-11-14T22:13:20Z") == instant("2023-11-14T22:13:20") == 1_700_000_000
    with pytest.raises(InvalidArgument, match="is not a point in time"):
        instant("tomorrow")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (58, "58s"), (60, "1m"), (250, "4m 10s"), (11_100, "3h 5m"), (86_405, "1d")]
)
def test_spans(seconds: int, text: str) -> None:
    assert output.span(seconds) == text


def test_how_far_away_a_time_is() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert output.until("2026-01-01T00:01:00Z", now) == "2026-01-01T00:01:00Z (in 1m)"
    assert output.until("2025-12-31T23:59:00Z", now) == "2025-12-31T23:59:00Z (1m ago)"
    assert output.until(None) == "never"


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.red("x") == "x"
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert output.red("x") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "")
    assert output.red("x") == "x"


HOSTILE = "\x1b]0;pwn\x07\x1b[2J\x9b1m\r\nevil\u202e"
HARMLESS = r"\x1b]0;pwn\x07\x1b[2J\x9b1m\r\nevil\u202e"


def test_no_text_of_a_servers_speaks_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert HARMLESS in output.columns(["A", "B"], [[HOSTILE, "b"]], empty="")
    assert output.fields([("A", HOSTILE), ("B", [HOSTILE])]).count(HARMLESS) == 2
    assert len(output.fields([("A", HOSTILE), ("B", [HOSTILE])]).splitlines()) == 2
    output.emit({}, output.Output.TABLE, lambda: f"{output.red(HOSTILE)}\n\x1b[2Jdone")
    assert capsys.readouterr().out == f"{HARMLESS}\n\\x1b[2Jdone\n"
    show_error(InvalidArgument(HOSTILE, reason=HOSTILE, hint=HOSTILE))
    assert capsys.readouterr().err == f"error: {HARMLESS} ({HARMLESS})\nhint: {HARMLESS}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.columns(["A"], [[output.red(HOSTILE)]], empty="").endswith(f"\x1b[31m{HARMLESS}\x1b[0m")
    output.emit({}, output.Output.TABLE, lambda: output.red("x"))
    assert capsys.readouterr().out == "\x1b[31mx\x1b[0m\n"


@pytest.mark.parametrize("kind", [output.Output.JSON, output.Output.YAML])
def test_nor_do_values_for_programs(kind: output.Output, capsys: pytest.CaptureFixture[str]) -> None:
    output.emit({"a": HOSTILE}, kind, str)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").replace("\u202e", "").isprintable()
    assert yaml.safe_load(printed) == {"a": HOSTILE}


@pytest.mark.parametrize(
    ("numbers", "code"),
    [([], 0), ([0, 0], 0), ([0, 5], 3), ([7, 5], 3), ([3, 0], 2), ([3, 5], 1), ([6], 1), ([99], 1)],
)
def test_a_batch_exits_with_what_its_failures_agree_on(numbers: list[int], code: int) -> None:
    assert exit_of_batch(numbers) == Exit(code)


SPIRE_FILE = """
{"entries": [{"selectors": [{"type": "a", "value": "b"}], "spiffe_id": "spiffe://example.org/data1",
 "parent_id": {"trust_domain": "example.org", "path": "/spire/server"}, "ttl": 60, "jwt_svid_ttl": 30, "admin": true,
 "dns_names": ["d.example.org"], "hint": "h", "additional_attributes": {"jwt_svid_include_jti": true}}]}
"""


def test_spires_entry_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(SPIRE_FILE)
    [entry] = read_entries(tmp_path / "data.json")
    assert (entry.spiffe_id.path, entry.parent_id.path) == ("/data1", "/spire/server")
    assert (entry.x509_svid_ttl, entry.jwt_svid_ttl, entry.admin) == (60, 30, True)
    assert entry.additional_attributes.jwt_svid_include_jti
    assert (entry.selectors[0].type, entry.selectors[0].value) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is malformed"),
        ("just text", "expected a list of entries"),
        ("[1]", "expected a list of entries"),
        ("- {selectorz: []}", "entry 1 has an unknown key `selectorz`"),
        ("- {}\n- {spiffe_id: nope}", "entry 2: scheme is missing"),
        ("- {admin: 'yes'}", "entry 1: `admin` is malformed"),
        ("- {x509_svid_ttl_seconds: true}", "entry 1: `x509_svid_ttl_seconds` is malformed"),
        ("- {selectors: 'a:b'}", "entry 1: `selectors` is malformed"),
        ("- {additional_attributes: {surprise: true}}", "entry 1: `additional_attributes` is malformed"),
        ("- {dns_names: [1]}", "entry 1: `dns_names` is malformed"),
    ],
)
def test_a_bad_entry_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "entries.yaml").write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        read_entries(tmp_path / "entries.yaml")
    assert said in caught.value.detail


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "entries.yaml").write_text("- {selectorz: []}")
    with pytest.raises(InvalidArgument) as caught:
        read_entries(tmp_path / "entries.yaml")
    assert caught.value.hint == "did you mean `selectors`?"


def config(tmp_path: Path, **changes: object) -> str:
    values = {"trust_domain": "example.org", "data_dir": str(tmp_path / "d"), **changes}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "config.yaml")


AGENT = {
    "servers": ["127.0.0.1:8081"],
    "trust": {"insecure_bootstrap": True},
    "node_attestor": {"join_token": {"token": "t"}},
}


def test_configurations_are_told_apart_and_checked(caadmin: Caadmin, tmp_path: Path) -> None:
    server = caadmin("config", "check", config(tmp_path, bind_port=8081), "-o", "json")
    assert (server.code, server.json["kind"], server.json["valid"]) == (0, "server", True), server
    agent = caadmin("config", "check", config(tmp_path, **AGENT))
    assert agent.code == 0, agent.err
    assert agent.out == f"{tmp_path}/config.yaml: valid (agent configuration)\n"
    assert not (tmp_path / "d").exists(), "a check changes nothing"


def test_a_bad_configuration_exits_with_2_and_the_programs_words(caadmin: Caadmin, tmp_path: Path) -> None:
    ran = caadmin("config", "check", config(tmp_path, bind_prot=8081, bind_address="127.0.0.1"))
    assert ran.code == 2
    assert "bind_prot" in ran.err
    assert "bind_port" in ran.err
    assert "bind_prot" in caadmin("config", "check", f"{tmp_path}/config.yaml", "-o", "json").json["problem"]


def test_a_configuration_that_could_be_either_needs_kind(caadmin: Caadmin, tmp_path: Path) -> None:
    file = config(tmp_path, bind_port=8081, servers=["127.0.0.1:8081"])
    ran = caadmin("config", "check", file)
    assert ran.code == 2
    assert "--kind server or --kind agent" in ran.err
    assert "unknown key `servers`" in caadmin("config", "check", file, "--kind", "server").err
    (tmp_path / "empty.yaml").write_text("{}")
    assert "--kind server or --kind agent" in caadmin("config", "check", f"{tmp_path}/empty.yaml").err
    assert caadmin("config", "check", f"{tmp_path}/none.yaml").code == 2


def test_the_shortest_configuration_is_a_servers(caadmin: Caadmin, tmp_path: Path) -> None:
    """An agent's has servers at least."""
    ran = caadmin("config", "check", config(tmp_path))
    assert (ran.code, ran.out) == (0, f"{tmp_path}/config.yaml: valid (server configuration)\n"), ran.err


def test_version(caadmin: Caadmin) -> None:
    assert caadmin("version", "-o", "json").json["version"]
    assert caadmin("version").out.startswith("burgee ")


def test_the_reference_names_every_command_and_is_the_same_on_every_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = reference.reference()
    for command in (
        "burgee up",
        "caadmin entry create",
        "caadmin agent sds",
        "caadmin svid mint x509",
        "caadmin health",
    ):
        assert f" {command}\n" in text
    assert "| `--port` `NUMBER` |" in text
    monkeypatch.setenv("COLUMNS", "40")
    assert reference.reference() == text


def test_start_up_imports_nothing_heavy() -> None:
    """0.4 s is the promise; what would break it is an import, and that does not depend on how busy the machine is."""
    code = "import sys, ca.cli.caadmin, ca.cli.burgee; ca.cli.caadmin.program(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert not {"grpc", "rich", "yaml", "cryptography", "pydantic", "sqlalchemy", "asyncio"} & loaded


def test_of_the_commands_only_the_one_that_is_called_is_loaded() -> None:
    """What the others take is longer than what most calls take."""
    code = "import sys; from ca.cli.caadmin import program; program('ca'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "ca.cli.ca" in loaded
    assert not {"ca.cli.entry", "ca.cli.svid", "ca.cli.health", "importlib.metadata"} & loaded


@pytest.mark.parametrize("word", ["", "--help", "no-such-command"])
def test_whoever_names_no_command_is_shown_them_all(word: str) -> None:
    every = typer.main.get_command(caadmin_program.program(word))
    alone = typer.main.get_command(caadmin_program.program("ca"))
    assert len(every.commands) > 10  # type: ignore[attr-defined]
    assert list(alone.commands) == ["ca"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("program", ["server", "agent"])
def test_burgee_becomes_the_program_it_names(program: str) -> None:
    """And goes by the name that was typed."""
    command = [sys.executable, "-m", "ca.cli.burgee", program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: burgee {program} ")
    assert "--config" in done.stdout


@pytest.mark.parametrize("program", ["burgee", "caadmin"])
def test_both_programs_tell_their_version(program: str) -> None:
    command = [sys.executable, "-m", f"ca.cli.{program}"]
    asked = [
        subprocess.run([*command, word], capture_output=True, text=True, check=False, cwd=ROOT)
        for word in ("--version", "version")
    ]
    assert [done.returncode for done in asked] == [0, 0]
    assert asked[0].stdout == asked[1].stdout
    assert asked[0].stdout.startswith(f"burgee {package_version()} ")


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if not children:
        yield name, command
    for child, inner in children.items():
        yield from commands(f"{name} {child}", inner)


COMMANDS = dict(
    pair
    for name, app in (("burgee", burgee.app), ("caadmin", caadmin_program.program()))
    for pair in commands(name, typer.main.get_command(app))
)


def test_o_is_output_and_nothing_else() -> None:
    options = [(name, p.opts) for name, command in COMMANDS.items() for p in command.params]
    assert {name for name, opts in options if ("-o" in opts) != ("--output" in opts)} == set()
    assert sum("-o" in opts for _, opts in options) > 25


@pytest.mark.parametrize(
    "command",
    [
        ["token", "create", "--ttl"],
        ["svid", "mint", "jwt", "--spiffe-id", "spiffe://example.org/x", "--audience", "a", "--ttl"],
        ["svid", "mint", "x509", "--spiffe-id", "spiffe://example.org/x", "--ttl"],
        ["svid", "fetch", "--timeout"],
        ["svid", "inspect", "--timeout"],
        ["prune", "--agents-expired-for"],
        ["audit", "--since"],
        ["entry", "update", "id", "--x509-svid-ttl"],
        ["entry", "update", "id", "--jwt-svid-ttl"],
    ],
    ids=" ".join,
)
def test_every_duration_may_have_a_unit(caadmin: Caadmin, command: list[str]) -> None:
    """What is missing is somebody who answers, or for a workload the address: the duration was understood."""
    for text, reasons in (("1h", {"UNREACHABLE", "ENDPOINT_MISSING"}), ("soon", {"DURATION", "TIME"})):
        ran = caadmin(*command, text)
        assert ran.code != 0
        assert any(f"({reason})" in ran.err for reason in reasons), ran.err


def test_no_option_wants_bare_seconds() -> None:
    """An option that is a number and is about time would refuse `1h`."""
    options = [p for command in COMMANDS.values() for p in command.params if p.param_type_name == "option"]
    numbers = [p for p in options if p.type_descriptor.annotation in (int, float)]
    named = {name for p in numbers for name in p.opts}
    assert named == {
        "--port",
        "--after",
        "--count",
        "--limit",
        "--log-lines",
        "--pid",
        "--nearest",
        "--identifiers",
        "--words",
        "--uses",
    }


def test_no_time_to_wait_is_refused(caadmin: Caadmin) -> None:
    ran = caadmin("svid", "fetch", "--timeout", "0")
    assert (ran.code, "(DURATION)" in ran.err) == (2, True)


def test_a_duration_in_a_file_is_answered_with_its_seconds(tmp_path: Path) -> None:
    (tmp_path / "entries.yaml").write_text("- {x509_svid_ttl_seconds: 1h}")
    with pytest.raises(InvalidArgument) as refused:
        read_entries(tmp_path / "entries.yaml")
    assert refused.value.hint == "it takes a number of seconds: `x509_svid_ttl_seconds: 3600`"
    (tmp_path / "entries.yaml").write_text("- {hint: [1h]}")
    with pytest.raises(InvalidArgument) as refused:
        read_entries(tmp_path / "entries.yaml")
    assert refused.value.hint == ""
