"""Effective user and groups of a process, from its /proc/PID/status (proc_pid_status(5))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ca.errors import Unauthenticated, Unavailable

MAX_STATUS_BYTES = 1 << 20  # 65536 supplementary groups of ten digits fit
_EFFECTIVE = 1  # real, effective, saved, file system


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Effective ids and supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def read_ids(proc: int) -> Ids:
    """`proc` is a directory descriptor of /proc/PID. Raises Unauthenticated when the process is gone."""
    fields = dict(line.split(":", 1) for line in _read(proc, "status").split("\n") if ":" in line)
    try:
        uid = int(fields["Uid"].split()[_EFFECTIVE])
        gid = int(fields["Gid"].split()[_EFFECTIVE])
        groups = tuple(dict.fromkeys(int(text) for text in fields["Groups"].split()))
    except (KeyError, ValueError, IndexError) as error:
        raise Unavailable("the kernel's process status is unreadable", reason="PROC_STATUS") from error
    return Ids(
        uid=_mapped(uid, "uid"), gid=_mapped(gid, "gid"), groups=tuple(g for g in groups if not _hides(g, "gid"))
    )


def _read(proc: int, name: str) -> str:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Unauthenticated("the calling process is gone", reason="CALLER_GONE") from error
    except OSError as error:
        raise Unavailable(f"cannot read the caller's /proc entry: {error.strerror}", reason="PROC_STATUS") from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            return file.read(MAX_STATUS_BYTES).decode("utf-8", "replace")
        except ProcessLookupError as error:
            raise Unauthenticated("the calling process is gone", reason="CALLER_GONE") from error


def _mapped(number: int, kind: str) -> int:
    """In a user namespace the kernel shows every id it cannot map as the overflow id: that names nobody."""
    if _hides(number, kind):
        raise Unavailable(
            f"the caller's {kind} does not exist in the agent's user namespace",
            reason="ID_NOT_MAPPED",
            hint="run the agent in the initial user namespace",
        )
    return number


def _hides(number: int, kind: str) -> bool:
    return number == _overflow_id(kind)


@lru_cache(maxsize=2)
def _overflow_id(kind: str) -> int | None:
    """None where every id is mapped, so that the number means what it says."""
    whole = [0, 0, 0xFFFFFFFF]
    if [int(text) for text in Path(f"/proc/self/{kind}_map").read_text("ascii").split()] == whole:
        return None
    return int(Path(f"/proc/sys/kernel/overflow{kind}").read_text("ascii"))
