"""Whose share of the agent's room a caller uses: its container, its service, its login user, else its user id.

A uid says little about who is who: all containers of a node may run as the same one, root. Their cgroup
(cgroups(7), /proc/PID/cgroup) tells them apart, and no process can leave it unless somebody gave it another. Where
somebody may make cgroups of his own below his, only the part above counts: the outermost container, service or login,
and what root alone made below that.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ca.ports import Process
from ca.runtime.peers import PeerCred
from sds.peer import pidfd_exited

MAX_CGROUP_BYTES = 64 * 1024
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
"""The id that container runtimes put into the name of a container's cgroup."""

CGROUP_ROOT = Path("/sys/fs/cgroup")
"""Where the hierarchies are mounted, cgroups(7)."""

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


def share_name(cgroups: str, uid: int, root: Path = CGROUP_ROOT) -> str:
    """`cgroup:PATH` for a container, service or login user, `cgroup:PATH uid:N` for other cgroups, else `uid:N`.

    `cgroups` is the text of /proc/PID/cgroup; empty when it could not be read. `root` is where hierarchies are mounted.
    """
    hierarchy, path = _path(cgroups)
    if not path:
        return f"uid:{uid}"
    unit = _unit(path, _mounts(hierarchy, root))
    return f"cgroup:{unit}" if unit else f"cgroup:{path} uid:{uid}"


def _path(cgroups: str) -> tuple[str, str]:
    """(hierarchy, path): the unified one's, else systemd's, else the longest of the old ones'; empty at the root of
    all. The unified hierarchy has an empty name."""
    found: dict[str, str] = {}
    for line in cgroups.split("\n"):  # nothing else ends a line: whoever makes a cgroup may name it with a form feed
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.strip("/"):
            found["" if number == "0" else controllers] = path
    for hierarchy in ("", "name=systemd"):
        if hierarchy in found:
            return hierarchy, found[hierarchy]
    return max(found.items(), key=lambda item: (len(item[1]), item[1]), default=("", ""))


def _unit(path: str, mounts: tuple[Path, ...]) -> str:
    """The part of the path that its processes did not choose; empty when it names nothing that we know."""
    parts = path.split("/")
    login = [n for n, part in enumerate(parts) if _LOGIN.fullmatch(part)]
    container = [n for n, part in enumerate(parts) if _CONTAINER.search(part)]
    service = [n for n, part in enumerate(parts) if part.endswith((".service", ".scope"))]
    known = sorted({*login[:1], *container, *service[:1]})
    if not known:
        return ""
    # The innermost container: the outer one may be the node itself. Of services the outermost.
    wanted = (login[:1] or container[-1:] or service[:1])[0]
    end = known[0]
    if wanted > end:
        sure = _made_by_root(parts, above=end, end=wanted, mounts=mounts)
        end = max(n for n in known if n == end or n <= min(sure, wanted))
    return "/".join(parts[: end + 1])


def _made_by_root(parts: list[str], *, above: int, end: int, mounts: tuple[Path, ...]) -> int:
    """The last of `parts`, from `above` up to `end`, in a directory where only root makes any: whoever owns a cgroup's
    directory makes those in it. What cannot be looked at, as from within another cgroup namespace, counts as his."""
    if ".." in parts:
        return above
    for mount in mounts:
        for n in range(above, end):
            owner = _owner(mount.joinpath(*parts[1 : n + 1]))
            if owner is None:
                break
            if owner != 0:
                return n
        else:
            return end
    return above


def _owner(directory: Path) -> int | None:
    """Its user id; None where it cannot be looked at."""
    try:
        return os.lstat(directory).st_uid
    except OSError:
        return None


def _mounts(hierarchy: str, root: Path) -> tuple[Path, ...]:
    """Where a hierarchy may be mounted. The unified one is below the root where there are old ones as well."""
    return (root / "unified", root) if not hierarchy else (root / hierarchy.removeprefix("name="),)


def _read(descriptor: int) -> str:
    try:
        return os.read(descriptor, MAX_CGROUP_BYTES).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
