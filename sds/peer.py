"""A calling process, pinned so that its pid cannot come to mean another process while we look at it.

With a pidfd (Linux 5.3, from the socket itself since 6.5) the pin is exact once the socket gave the descriptor. Without
one, the pid and the process's start time are compared before and after each look. What remains then is the time
between the caller's connect and our first look: a caller that exits at once, whose pid is reused within that time,
would be taken for its successor. That race is small and real; a kernel with SO_PEERPIDFD does not have it.
"""

from __future__ import annotations

import os
import select

from ca.errors import Unauthenticated
from sds.program import HIDDEN, Program, program_of

ProcessKey = tuple[int, int, int, int, Program | None]
"""(pid, start time in clock ticks since boot, uid, gid, program): one process, as whom and as what it connected."""


def caller_gone() -> Unauthenticated:
    """The error for a caller that cannot be found (again)."""
    return Unauthenticated("could not verify existence of the original caller", reason="CALLER_GONE")


def program_changed() -> Unauthenticated:
    """The error for a caller that has begun another program (execve(2)) with its connection in its hands."""
    return Unauthenticated(
        "the caller began another program after it connected",
        reason="CALLER_CHANGED",
        hint="connect after the change, not before it",
    )


def start_time(stat: bytes) -> tuple[int, str]:
    """(start time in clock ticks, state letter) from the contents of /proc/PID/stat (proc_pid_stat(5)).

    The command name may hold spaces and parentheses, so fields are counted from the last parenthesis.
    """
    fields = stat[stat.rindex(b")") + 2 :].split()
    return int(fields[19]), fields[0].decode("ascii")


def read_start_time(pid: int) -> int:
    """Start time of a live process by pid. Raises Unauthenticated when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return start_time(file.read(4096))[0]
    except (OSError, ValueError):
        raise caller_gone() from None


class PinnedProcess:
    """Implements ca.ports.Process. Owns its descriptors: `close` it."""

    __slots__ = ("gid", "pid", "pidfd", "proc", "program", "start", "uid")

    def __init__(
        self, *, pid: int, uid: int, gid: int, proc: int, pidfd: int | None, start: int, program: Program | None
    ) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.proc = proc
        self.pidfd = pidfd
        self.start = start
        self.program = program

    @classmethod
    def pin(
        cls, *, pid: int, uid: int, gid: int, pidfd: int | None = None, program: Program | None = None
    ) -> PinnedProcess:
        """Pin the process of a socket's credentials.

        `pidfd` is the socket's own (SO_PEERPIDFD) and stays the caller's; without it one is opened by pid where the
        kernel can. `program` is what it ran when its connection was accepted, None if nobody looked. Raises
        Unauthenticated for a process that is gone or, as pid 0, not visible from our namespace.
        """
        if pid <= 0:
            raise Unauthenticated("the calling process is not visible to the agent", reason="CALLER_INVISIBLE")
        own = _pidfd(pid, pidfd)
        proc = -1
        try:
            proc = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            start, _ = _read_stat(proc)
            process = cls(pid=pid, uid=uid, gid=gid, proc=proc, pidfd=own, start=start, program=program)
            # The directory and the start time are the caller's own only if it still lives *after* they were read.
            process.ensure_alive()
            return process
        except (OSError, ValueError, Unauthenticated):
            _close(proc, own)
            raise caller_gone() from None

    @property
    def key(self) -> ProcessKey:
        return (self.pid, self.start, self.uid, self.gid, self.program)

    def alive(self) -> bool:
        """Whether the very process that was pinned still runs (a zombie does not)."""
        if self.pidfd is not None:
            return not pidfd_exited(self.pidfd)
        try:
            start, state = _read_stat(self.proc)
        except (OSError, ValueError):
            return False
        return start == self.start and state not in "ZX"

    def ensure_alive(self) -> None:
        """Raises Unauthenticated when the process that called is gone."""
        if not self.alive():
            raise caller_gone()

    def ensure_same_program(self) -> None:
        """Raises Unauthenticated when the process runs another program than the one that connected.

        What it runs when the agent may not look gives it nothing: `path` and `sha256` are then not found either.
        """
        if self.program is not None and program_of(self.proc) not in (self.program, HIDDEN):
            raise program_changed()

    def close(self) -> None:
        """Let go of the descriptors; harmless when done twice."""
        _close(self.proc, self.pidfd)
        self.proc, self.pidfd = -1, None


def pidfd_exited(pidfd: int) -> bool:
    """A pidfd becomes readable when its process ends (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _pidfd(pid: int, given: int | None) -> int | None:
    if given is not None:
        return os.dup(given)
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise caller_gone() from None
    except (OSError, AttributeError):
        return None  # a kernel without pidfds, or a sandbox that forbids them: start times it is


def _read_stat(proc: int) -> tuple[int, str]:
    fd = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return start_time(os.read(fd, 4096))
    finally:
        os.close(fd)


def _close(*fds: int | None) -> None:
    for fd in fds:
        if fd is not None and fd >= 0:
            os.close(fd)
