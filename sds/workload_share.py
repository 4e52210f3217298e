"""Whose share of the agent's room a caller uses: its container, its service, its login user, else its user id.

A uid says little about who is who: all containers of a node may run as the same one, root. Their cgroup
(cgroups(7), /proc/PID/cgroup) tells them apart, and no process can leave it unless somebody gave it another. Where
somebody may make cgroups of his own below his, only the part above counts.
"""

from __future__ import annotations

import os
import re

from ca.ports import Process
from ca.runtime.peers import PeerCred
from sds.peer import pidfd_exited

MAX_CGROUP_BYTES = 64 * 1024
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
"""The id that container runtimes put into the name of a container's cgroup."""

_LOGIN = re.compile(r"user-\d+\.slice")
"""systemd's slice of one user, who may make cgroups below it as he likes."""


def share_of_process(process: Process) -> str:
    """The share of a pinned process; of one that is gone, its user's."""
    try:
        return share_name(_read(os.open("cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process.proc)), process.uid)
    except OSError:
        return share_name("", process.uid)


def share_of_caller(cred: PeerCred) -> str:
    """The share of whoever connected, before anything else is known; believed only if the caller lives still."""
    try:
        text = _read(os.open(f"/proc/{cred.pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        text = ""
    if cred.pidfd is not None and pidfd_exited(cred.pidfd):
        text = ""
    return share_name(text, cred.uid)


def share_name(cgroups: str, uid: int) -> str:
    """`cgroup:PATH` for a container, service or login user, `cgroup:PATH uid:N` for other cgroups, else `uid:N`.

    `cgroups` is the text of /proc/PID/cgroup; empty when it could not be read.
    """
    path = _path(cgroups)
    if not path:
        return f"uid:{uid}"
    unit = _unit(path)
    return f"cgroup:{unit}" if unit else f"cgroup:{path} uid:{uid}"


def _path(cgroups: str) -> str:
    """The unified hierarchy's, else systemd's, else the longest of the old hierarchies'; empty at the root of all."""
    found: dict[str, str] = {}
    for line in cgroups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.strip("/"):
            found["unified" if number == "0" else controllers] = path
    preferred = found.get("unified") or found.get("name=systemd")
    return preferred or max(found.values(), key=lambda path: (len(path), path), default="")


def _unit(path: str) -> str:
    """The part of the path that its processes did not choose; empty when it names nothing that we know."""
    parts = path.split("/")
    login = [n for n, part in enumerate(parts) if _LOGIN.fullmatch(part)]
    container = [n for n, part in enumerate(parts) if _CONTAINER.search(part)]
    service = [n for n, part in enumerate(parts) if part.endswith((".service", ".scope"))]
    # The innermost container: the outer one may be the node itself. Of services the outermost.
    end = login[:1] or container[-1:] or service[:1]
    return "/".join(parts[: end[0] + 1]) if end else ""


def _read(descriptor: int) -> str:
    try:
        return os.read(descriptor, MAX_CGROUP_BYTES).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
