"""How the demo's two services are told apart by attestation: a uid each, or a program file each.

A uid per service needs root. Without it each service gets its own hard link (or copy) of the Envoy program and is
known by its path; whoever can run programs as this user can run those too, so this is demo-grade.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_FIRST_UID = 64001
_LAST_UID = 64200
_CAP_SETGID = 6
_CAP_SETUID = 7


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one service runs: `program` is what to execute, `uid` None means our own; `selectors` are `type:value`."""

    name: str
    program: Path
    uid: int | None
    selectors: tuple[str, ...]


def can_become_others() -> bool:
    """Whether this process may change to the demo's uids: the capabilities, and uids that its namespace maps."""
    effective = _status_field("CapEff")
    capable = bool(effective >> _CAP_SETUID & 1 and effective >> _CAP_SETGID & 1)
    return capable and all(_maps(f"/proc/self/{table}", _LAST_UID) for table in ("uid_map", "gid_map"))


def by_uid(names: Sequence[str], envoy: Path) -> list[Place]:
    """A uid per service: the first that have no account and no process."""
    free = _unused_uids()
    return [
        Place(name=name, program=envoy, uid=uid, selectors=(f"unix:uid:{uid}",))
        for name, uid in zip(names, free, strict=False)
    ]


def by_path(names: Sequence[str], envoy: Path, programs: Path) -> list[Place]:
    """A program file per service under `programs`/<name>/envoy, in 0700 directories."""
    places = []
    for name in names:
        directory = programs / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        program = directory / "envoy"
        _link_or_copy(envoy, program)
        selectors = (f"unix:uid:{os.getuid()}", f"unix:path:{program}")
        places.append(Place(name=name, program=program, uid=None, selectors=selectors))
    return places


def _unused_uids() -> Iterable[int]:
    running = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            running.add(os.stat(f"/proc/{pid}").st_uid)
        except FileNotFoundError:
            continue
    accounts = {account.pw_uid for account in pwd.getpwall()}
    return (uid for uid in range(_FIRST_UID, _LAST_UID) if uid not in running | accounts)


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists() and _same(source, target):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _same(source: Path, target: Path) -> bool:
    a, b = source.stat(), target.stat()
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) or (a.st_size, a.st_mtime) == (b.st_size, b.st_mtime)


def _status_field(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value, 16)
    return 0


def _maps(table: str, uid: int) -> bool:
    """Whether a user namespace's map (user_namespaces(7): inside, outside, length) holds `uid`."""
    rows = (tuple(map(int, line.split())) for line in Path(table).read_text().splitlines())
    return any(first <= uid < first + length for first, _, length in rows)
