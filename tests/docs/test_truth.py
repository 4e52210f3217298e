"""What the documentation names exists: commands and options, files, keys, metrics, reason codes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from ca.cli import burgee, caadmin
from ca.errors import FailedPrecondition
from ca.runtime.config import load_yaml
from ca.runtime.server_config import ServerConfig
from ca.up.envoy_program import find_envoy
from sds.config import AgentConfig
from tests.docs.pages import PAGES, blocks, commands, spans
from tests.docs.reason_codes import NO_REASONS as NOT_GIVEN
from tests.docs.reason_codes import ROOT, reason_codes
from tests.support.real import require

PROGRAMS = {"burgee": typer.main.get_command(burgee.app), "caadmin": typer.main.get_command(caadmin.program())}
THEIR_OWN = {"--config", "--check", "--dry-run"}
"""Options of `burgee server`, `agent` and `controller`, which read their own command line."""

FILE = re.compile(r"(?<![\w/.-])(?:ca|sds|attestor|policy|tests|docs)/[\w/.-]*\w")
CAPABILITIES = {"CAP_CHOWN", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"}
NO_REASONS = NOT_GIVEN | {"BURGEE_REQUIRE_REAL", "SO_PEERPIDFD"} | CAPABILITIES
METRIC = re.compile(r"burgee_[a-z0-9_]+")
DECLARED = re.compile(r'\b(counter|gauge|histogram)\(\s*"([a-z0-9_]+)"')
ids = [str(page.relative_to(ROOT)) for page in PAGES]


def complaint(words: list[str]) -> str:
    """What is wrong with a call, or nothing."""
    if words[0] == "make":
        return _make(words[1:])
    command: Any = PROGRAMS[words[0]]
    rest = words[1:]
    if "--" in rest:  # what follows is another program's
        rest = rest[: rest.index("--")]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    if getattr(command, "commands", {}) and rest and not rest[0].startswith("-"):
        return f"`{rest[0]}` is no command of `{command.name}`"
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    if command.context_settings.get("ignore_unknown_options"):
        known |= THEIR_OWN
    unknown = [w for w in rest if re.match(r"--?[a-z]", w) and w.partition("=")[0] not in known]
    return f"no options {unknown}" if unknown else ""


def _make(words: list[str]) -> str:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    wrong = [word for word in words if word.isalpha() and word.islower() and word not in targets]
    return f"no targets {wrong}" if wrong else ""


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_and_options_exist(page: Path) -> None:
    """A renamed option must not live on in a page."""
    wrong = {" ".join(words): said for words in commands(page) if (said := complaint(words))}
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_exist(page: Path) -> None:
    """Files and folders of the repository that are named in backticks; `<name>` stands for any."""
    named = {m for span in spans(page) if "<" not in span and "*" not in span for m in FILE.findall(span)}
    assert not {name for name in named if not (ROOT / name).exists()}


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Of the pages outside of the site; inside, its strict build looks after them."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert not {t for t in targets if "://" not in t and not (page.parent / t).exists()}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_reason_codes_exist(page: Path) -> None:
    """Also outside of the page of reasons."""
    named = {span for span in spans(page) if re.fullmatch(r"[A-Z]+(_[A-Z0-9]+)+", span)}
    assert named - NO_REASONS <= set(reason_codes())


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys_of(field.annotation, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_configuration_keys_exist(page: Path) -> None:
    """Dotted keys such as `cache.persist`, a value after them ignored."""
    known = keys_of(ServerConfig) | keys_of(AgentConfig)
    tops = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    named = {span.partition(":")[0] for span in spans(page) if re.fullmatch(r"[a-z_]+\.[a-z_]+(: \S+)?", span)}
    assert not {key for key in named if key.partition(".")[0] in tops and key not in known}


def test_example_configurations_are_valid(tmp_path: Path) -> None:
    """Every YAML block that is a whole configuration."""
    seen = 0
    for page in PAGES:
        for text in blocks(page, "yaml"):
            document, *_ = yaml.safe_load_all(text)  # manifests are several
            if isinstance(document, dict) and {"trust_domain", "data_dir"} <= document.keys():
                file = tmp_path / "example.yaml"
                file.write_text(text)
                load_yaml(file, AgentConfig if "servers" in document else ServerConfig)
                seen += 1
    assert seen >= 2


_METADATA = {f"burgee_shadow_{name}" for name in ("allowed", "denied", "effective_policy_id", "engine_result")}
NO_METRICS = {"burgee_agent", "burgee_cgroup", "burgee_machine_key"} | _METADATA
"""A user's name in a unit, packages of the pages that teach how to write a plugin, and what Envoy's filter writes."""


def metrics_of_the_code() -> set[str]:
    names = set()
    for room in ("ca", "sds", "attestor"):
        for path in (ROOT / room).rglob("*.py"):
            for kind, name in DECLARED.findall(path.read_text()):
                names.add(f"burgee_{name}_total" if kind == "counter" else f"burgee_{name}")
    return names


def test_metrics_are_those_of_the_code() -> None:
    """None is missing in the operations page, and none is named anywhere that is not there."""
    operations = set(METRIC.findall((ROOT / "docs/operations.md").read_text()))
    named = {name for page in PAGES for name in METRIC.findall(page.read_text())} - NO_METRICS
    assert metrics_of_the_code() <= operations
    assert named <= metrics_of_the_code()


def test_the_example_envoys_are_valid() -> None:
    """Envoy itself judges both configurations of the Envoy page."""
    try:
        envoy = find_envoy()
    except FailedPrecondition as error:
        require("envoy", False, error.hint)
        raise
    whole = [text for text in blocks(ROOT / "docs/envoy.md", "yaml") if "static_resources" in text]
    assert len(whole) == 2
    for text in whole:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            command = [str(envoy), "--mode", "validate", "--config-path", file.name, "--log-level", "error"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr + done.stdout


def test_the_reader_of_commands_finds_mistakes() -> None:
    """The checks above can fail."""
    assert complaint(["caadmin", "entry", "frobnicate"])
    assert complaint(["caadmin", "entry", "list", "--frobnicate"])
    assert complaint(["burgee", "up", "--frobnicate"])
    assert complaint(["make", "frobnicate"])
    assert not complaint(["burgee", "server", "--config", "FILE"])
