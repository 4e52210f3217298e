from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ca.errors import Unauthenticated
from sds import peer
from sds.peer import PinnedProcess, read_start_time, start_time


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_start_time_survives_a_hostile_command_name():
    stat = b"7 (a) R 1 (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"
    assert start_time(stat) == (4242, "S")


@pytest.mark.parametrize("kernel", ["pidfd", "start time"])
def test_a_process_is_pinned_until_it_ends(
    child: subprocess.Popen[bytes], kernel: str, monkeypatch: pytest.MonkeyPatch
):
    if kernel == "start time":
        monkeypatch.setattr(os, "pidfd_open", _no_pidfds)
    pinned = PinnedProcess.pin(pid=child.pid, uid=0, gid=0)
    assert (pinned.pidfd is None) == (kernel == "start time")
    pinned.ensure_alive()
    assert pinned.key == (child.pid, read_start_time(child.pid), 0, 0, None)
    assert os.readlink("exe", dir_fd=pinned.proc) == os.readlink(f"/proc/{child.pid}/exe")
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie keeps its pid and is gone all the same
    with pytest.raises(Unauthenticated) as gone:
        pinned.ensure_alive()
    assert gone.value.reason == "CALLER_GONE"
    pinned.close()
    pinned.close()


def test_a_dead_caller_is_refused(child: subprocess.Popen[bytes]):
    pidfd = os.pidfd_open(child.pid)
    child.kill()
    child.wait()
    try:
        with pytest.raises(Unauthenticated):
            PinnedProcess.pin(pid=child.pid, uid=0, gid=0)
        # The pid may be anybody's by now; the descriptor is still the dead caller's.
        with pytest.raises(Unauthenticated):
            PinnedProcess.pin(pid=os.getpid(), uid=0, gid=0, pidfd=pidfd)
    finally:
        os.close(pidfd)


def test_a_process_of_another_pid_namespace_is_refused():
    with pytest.raises(Unauthenticated) as refused:
        PinnedProcess.pin(pid=0, uid=0, gid=0)
    assert refused.value.reason == "CALLER_INVISIBLE"


def test_another_process_under_the_same_pid_is_noticed(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "pidfd_open", _no_pidfds)
    pinned = PinnedProcess.pin(pid=child.pid, uid=0, gid=0)
    pinned.start -= 1  # as if the pid had been another process's when we first looked
    assert not pinned.alive()
    pinned.close()


def test_descriptors_are_let_go_of_when_pinning_fails(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch):
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(peer, "_read_stat", _raise_os_error)
    with pytest.raises(Unauthenticated):
        PinnedProcess.pin(pid=child.pid, uid=0, gid=0)
    assert len(os.listdir("/proc/self/fd")) == before


def _no_pidfds(pid: int) -> int:
    raise OSError("pidfd_open is not there")


def _raise_os_error(proc: int) -> tuple[int, str]:
    raise OSError("gone")
