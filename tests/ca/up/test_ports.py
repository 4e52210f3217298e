"""Ports in use are named with their holder."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ca.errors import FailedPrecondition
from ca.up.holder import holder
from ca.up.ports import claim, free_port

PRIVATE_LISTENER = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from ca.runtime.memory import keep_private
sock = socket.create_server(("127.0.0.1", 0))
keep_private()
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def private_listener(config: Path) -> Iterator[tuple[int, int]]:
    """(pid, port) of a program that keeps itself private, as server and agent do, started as by `burgee up`."""
    command = [sys.executable, "-c", PRIVATE_LISTENER, str(Path.cwd()), "--config", str(config)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open files of private programs cannot be read: so it is for every user but root, whom tests may run as."""
    listed = os.listdir

    def listdir(path: str) -> list[str]:
        if path.startswith("/proc/") and path.endswith("/fd") and os.stat(path).st_uid == 0 and path != _own():
            raise PermissionError
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)


def _own() -> str:
    return f"/proc/{os.getpid()}/fd"


def refusal(port: int) -> FailedPrecondition:
    with pytest.raises(FailedPrecondition) as caught:
        claim(port)
    assert caught.value.reason == "PORT_IN_USE"
    assert "--port" in caught.value.hint
    return caught.value


def test_a_port_in_use_names_who_holds_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refusal(port)
    assert f"port {port} is in use by `" in error.detail
    assert f"(pid {os.getpid()})" in error.detail


@pytest.mark.usefixtures("unprivileged")
@pytest.mark.parametrize("part", ["server", "agent"])
def test_a_private_program_of_a_burgee_up_is_named_by_its_status(tmp_path: Path, part: str) -> None:
    with private_listener(tmp_path / f"{part}.yaml") as (pid, port):
        here = {"pid": pid, "metrics_address": f"127.0.0.1:{port}"}
        (tmp_path / "status.json").write_text(json.dumps({"server": None, "agent": None, part: here}))
        error = refusal(port)
    assert f"(pid {pid})" in error.detail
    assert "ss -ltnp" not in error.hint


@pytest.mark.usefixtures("unprivileged")
def test_of_another_private_program_the_user_is_told_and_how_to_find_it(tmp_path: Path) -> None:
    with private_listener(tmp_path / "server.yaml") as (pid, port):
        other = {"pid": pid + 1, "address": f"127.0.0.1:{port}"}  # what another run left behind
        (tmp_path / "status.json").write_text(json.dumps({"server": other, "agent": None}))
        error = refusal(port)
    assert f"of the user `{pwd.getpwuid(os.getuid()).pw_name}`" in error.detail
    assert "`ss -ltnp` as root" in error.hint


def test_zero_means_any_and_a_free_port_is_kept() -> None:
    assert claim(0) > 0
    port = free_port()
    assert claim(port) == port


def test_nobody_holds_a_free_port() -> None:
    assert holder(free_port()) is None
