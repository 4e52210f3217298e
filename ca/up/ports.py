"""TCP ports: find a free one, and name who holds one that is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ca.errors import FailedPrecondition

LOOPBACK = "127.0.0.1"
_LISTEN = "0A"
"""TCP_LISTEN as /proc/net/tcp writes it (proc_net_tcp(5))."""


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def claim(port: int) -> int:
    """`port` if it can be bound on loopback now; 0 means any free one. Raises FailedPrecondition naming the holder."""
    if port == 0:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise _refused(port, error) from error
    return port


def _refused(port: int, error: OSError) -> FailedPrecondition:
    if isinstance(error, PermissionError):
        return FailedPrecondition(
            f"port {port} may not be used by this user", reason="PORT_DENIED", hint="choose a port above 1023: --port N"
        )
    return FailedPrecondition(
        f"port {port} is in use{holder(port)}",
        reason="PORT_IN_USE",
        hint="stop that program, or choose another port: --port N (0 picks a free one)",
    )


def holder(port: int) -> str:
    """` by `name` (pid N)`, or an empty string where that cannot be known."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listeners(Path("/proc/net") / table, port)}
    for pid in filter(str.isdigit, os.listdir("/proc")) if inodes else ():
        if inodes & set(_socket_inodes(pid)):
            return f" by `{_command(pid)}` (pid {pid})"
    return ""


def _listeners(table: Path, port: int) -> Iterator[str]:
    try:
        rows = table.read_text().splitlines()[1:]
    except OSError:
        return
    for row in rows:
        fields = row.split()
        if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            yield fields[9]


def _socket_inodes(pid: str) -> Iterator[str]:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:  # another user's process, or it has just ended
        return
    for name in names:
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return b" ".join(words).decode(errors="replace")[:120] or Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
