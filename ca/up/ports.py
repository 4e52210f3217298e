"""TCP ports: find a free one, and refuse one that is held."""

from __future__ import annotations

import socket

from ca.errors import FailedPrecondition
from ca.up.holder import Holder, holder

LOOPBACK = "127.0.0.1"


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
    found = holder(port) or Holder()
    look = "" if found.pid else "`ss -ltnp` as root names the program; "
    return FailedPrecondition(
        f"port {port} is in use {found}",
        reason="PORT_IN_USE",
        hint=f"{look}stop it, or choose another port: --port N (0 picks a free one)",
    )
