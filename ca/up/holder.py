"""Who listens on a TCP port, as far as this user may know.

The kernel tells it by a program's open files. Server and agent keep theirs from all but root, because who may look
there may read their keys; those of a `burgee up` are found by the `status.json` beside the configuration that they
were started with. Of any other program there is still the user.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LISTEN = "0A"
"""TCP_LISTEN as /proc/net/tcp writes it (proc_net_tcp(5))."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A listening program. `pid` 0: it cannot be known by us which; `user` is then whose it is, or empty."""

    pid: int = 0
    command: str = ""
    user: str = ""

    def __str__(self) -> str:
        """Completes "is in use …"."""
        if self.pid:
            return f"by `{self.command}` (pid {self.pid})"
        return f"by a program of the user `{self.user}`" if self.user else "by another program"


def holder(port: int) -> Holder | None:
    """Who listens on `port`; None when nobody does."""
    listeners = dict(row for table in ("tcp", "tcp6") for row in _listeners(Path("/proc/net") / table, port))
    if not listeners:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if not listeners.keys().isdisjoint(_socket_inodes(pid)) or _says_status(pid, port):
            return Holder(pid=int(pid), command=" ".join(_words(pid))[:120] or "?")
    return Holder(user=_user(next(iter(listeners.values()))))


def _listeners(table: Path, port: int) -> Iterator[tuple[str, int]]:
    """(inode, uid) of each socket that listens there."""
    try:
        rows = table.read_text().splitlines()[1:]
    except OSError:
        return
    for row in rows:
        fields = row.split()
        if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            yield fields[9], int(fields[7])


def _socket_inodes(pid: str) -> Iterator[str]:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:  # another user's process, one that keeps itself private, or it has just ended
        return
    for name in names:
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _says_status(pid: str, port: int) -> bool:
    """Whether a `burgee up` of this user wrote that this process of it listens on the port."""
    words = _words(pid)
    if "--config" not in words[:-1]:
        return False
    file = Path(words[words.index("--config") + 1]).parent / "status.json"
    try:
        if not file.is_absolute() or file.stat().st_uid != os.geteuid():
            return False
        status = json.loads(file.read_bytes())
        return any(_listens(status[part], int(pid), port) for part in ("server", "agent") if status[part])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _listens(part: dict[str, Any], pid: int, port: int) -> bool:
    addresses = (part.get("address"), part.get("metrics_address"))
    return part["pid"] == pid and any(address and address.endswith(f":{port}") for address in addresses)


def _words(pid: str) -> list[str]:
    """Its command line; everybody may read that of everybody."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
        return line.split("\0") if line else [Path(f"/proc/{pid}/comm").read_text().strip()]
    except OSError:
        return []


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
