"""A server's own name, in records and authorities: made once, in a file beside its data."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from ca.errors import FailedPrecondition
from ca.runtime.files import atomic_write

SERVER_ID = "server-id"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")


def has_name(data_dir: Path) -> bool:
    """Whether a server was started here before."""
    return (data_dir / SERVER_ID).exists()


def server_name(data_dir: Path) -> str:
    """The name; one is made at the first start. Raises FailedPrecondition (SERVER_ID_CORRUPT)."""
    path = data_dir / SERVER_ID
    if not path.exists():
        atomic_write(path, f"{secrets.token_hex(8)}\n".encode())
    name = path.read_bytes().decode("ascii", "replace").strip()
    if _NAME.fullmatch(name) is None:
        raise FailedPrecondition(
            f"`{path}` holds no name of a server",
            reason="SERVER_ID_CORRUPT",
            hint="restore it from a backup: with another name the server has no authority",
        )
    return name
