"""Runs `caadmin` as its console script does, and a real server and agent for it to talk to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ca.cli.caadmin import program
from ca.cli.exits import run
from tests.support.pair import Pair, pair


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Caadmin:
    """Calls like a shell would: `caadmin("entry", "list")`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ran:
        self._monkeypatch.setattr(sys, "argv", ["caadmin", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(program(*arguments[:1]), "caadmin")
        captured = self._capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)


@pytest.fixture
def caadmin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Caadmin:
    """The program, in an empty directory and without inherited sockets or those of an agent of this machine."""
    monkeypatch.chdir(tmp_path)
    for name in ("BURGEE_ADMIN_SOCKET", "BURGEE_AGENT_SOCKET", "SPIFFE_ENDPOINT_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ca.cli.workload.DEFAULT_SOCKET", str(tmp_path / "default.sock"))
    return Caadmin(monkeypatch, capsys)


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    """A real server and agent, shared by a file's tests."""
    with pair() as made:
        yield made


@pytest.fixture
def live(caadmin: Caadmin, running: Pair, monkeypatch: pytest.MonkeyPatch) -> Caadmin:
    """The program, pointed at `running`."""
    monkeypatch.setenv("BURGEE_ADMIN_SOCKET", str(running.admin_socket))
    monkeypatch.setenv("BURGEE_AGENT_SOCKET", str(running.agent_admin_socket))
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", f"unix://{running.workload_socket}")
    return caadmin
