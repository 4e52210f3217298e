"""Whether addresses are free, found out before anything is made: one in use must leave no half-made server behind.

They are taken only later, so somebody may still come first; then the listener itself says so.
"""

from __future__ import annotations

import os

from ca.errors import FailedPrecondition
from ca.runtime import gate_unix
from ca.runtime.status_server import host_and_port


def require_free_port(host: str, port: int) -> None:
    """Raises FailedPrecondition (ADDRESS_IN_USE, ADDRESS_UNAVAILABLE). Port 0 is always free."""
    gate_unix.listen_tcp(host, port).close()


def require_free_metrics(address: str) -> None:
    """The same for where metrics and health are to be served. Raises ConfigError for what is not `host:port`."""
    try:
        require_free_port(*host_and_port(address))
    except FailedPrecondition as error:
        hint = "choose another `metrics_address`, or stop whoever has it (`ss -ltnp` tells)"
        raise FailedPrecondition(f"no metrics there: {error.detail}", reason=error.reason, hint=hint) from error


def require_free_socket(path: str | os.PathLike[str]) -> None:
    """Raises FailedPrecondition (ADDRESS_IN_USE) when something is there that is not a left-over socket file."""
    gate_unix.stands_stale(os.fspath(path))
