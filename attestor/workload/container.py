"""Which container a process runs in, from the kernel's records: its cgroup, or what cgroup its mounts begin at.

No process leaves its cgroup by itself, but whoever may make cgroups below his own chooses their names. So what counts
is the outermost name of a container that does not stand above the agent as well: what a container makes below itself
never does, and the container that the whole node runs in (kind, nested Docker) is passed over. The kernel shows cgroups
as seen from the reader's cgroup namespace (cgroup_namespaces(7)): `/../../podX/ID` is a neighbour of ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attestor.workload.procfile import lines_of, read_proc_file
from ca.errors import Denied

MAX_CGROUP_BYTES = 64 * 1024
MAX_MOUNTINFO_BYTES = 1 << 20

CGROUP_ROOT = Path("/sys/fs/cgroup")

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_HEX = "[0-9a-f]"
_POD = re.compile(
    rf"(?:^|[-_.:])pod({_HEX}{{8}}[-_]{_HEX}{{4}}[-_]{_HEX}{{4}}[-_]{_HEX}{{4}}[-_]{_HEX}{{12}}|{_HEX}{{32}})(?![0-9a-f])"
)
"""A pod's UID; systemd's slices have underscores in it, static pods have a hash of 32 digits."""

_MONITOR = re.compile(r"(?:^|[-_])conmon(?:$|[-_])")
"""podman's and CRI-O's monitors bear the container's id in their cgroup's name and are not inside."""

_PODMANS = "libpod_parent"

_LOGIN = re.compile(r"user-(\d+)\.slice|user@(\d+)\.service")
_MACHINE = re.compile(r"lxc(?:\.payload.*)?|machine-.*\.scope|.*\.service")
_RUNTIME = re.compile(r"containerd|docker|crio|cri-o|kubelet|k3s|k0s|rke2|podman|libpod")


@dataclass(frozen=True, kw_only=True)
class Container:
    """`login_uid` is set when it stands below that user's login, or below another cgroup that is his: he chose its
    name, and only his own rootless runtime knows it. `hidden` when what stands above it, such as its pod, may be
    outside of the agent's cgroup namespace. `found_in` says in which file and line, for those who ask why."""

    pod_uid: str | None
    container_id: str
    login_uid: int | None = None
    hidden: bool = False
    found_in: str = ""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    container: Container
    around_us: bool  # the agent is in it too


def find_container(proc: int, *, own_cgroups: str | None = None, root: Path = CGROUP_ROOT) -> Container | None:
    """`proc` is a directory descriptor of /proc/PID; None where it runs in no container. Blocks.

    `own_cgroups` is the agent's own /proc/self/cgroup, read when it is not given; `root` is where cgroups are mounted:
    who owns those that can be seen there, may make others below them. Raises Unauthenticated when the
    process is gone, Denied where different ids are found (CONTAINER_AMBIGUOUS) or another machine's root may have
    chosen the name (CONTAINER_NESTED).
    """
    if own_cgroups is None:
        own_cgroups = _own_cgroups()
    found = from_cgroups(read_proc_file(proc, "cgroup", max_bytes=MAX_CGROUP_BYTES), own_cgroups, root)
    if found is None and _shares_user_namespace(proc):
        found = from_mounts(read_proc_file(proc, "mountinfo", max_bytes=MAX_MOUNTINFO_BYTES), own_cgroups)
    return found


def from_cgroups(text: str, own: str, root: Path | None = None) -> Container | None:
    """`text` and `own` are /proc/PID/cgroup of the process and of the agent, cgroups(7). Who owns a cgroup is looked up
    where `root` is given."""
    ours = dict(_hierarchies(own))
    return _agreed(
        _candidate(path, [ours.get(hierarchy, "")], f"cgroup {hierarchy}:{path}", _mounts(hierarchy, root))
        for hierarchy, path in _hierarchies(text)
    )


def from_mounts(text: str, own: str) -> Container | None:
    """`text` is /proc/PID/mountinfo, proc_pid_mountinfo(5): the cgroup that the process's view of cgroups begins at.

    Only for processes that cannot have mounted that themselves: see `find_container`.
    """
    ours = [path for _, path in _hierarchies(own)]
    return _agreed(_candidate(root, ours, f"mountinfo {point}:{root}") for root, point in _cgroup_mounts(text))


def _hierarchies(text: str) -> Iterable[tuple[str, str]]:
    """(number:controllers, path) of each line. A path may hold colons, the rest does not."""
    for line in lines_of(text):
        number, first, rest = line.partition(":")
        controllers, second, path = rest.partition(":")
        if first and second and path.startswith("/"):
            yield f"{number}:{controllers}", path


def _cgroup_mounts(text: str) -> Iterable[tuple[str, str]]:
    """(root, mount point) of what is mounted where programs look for their cgroups."""
    for line in lines_of(text):
        fields, separator, rest = line.partition(" - ")
        parts = fields.split(" ")
        if not separator or len(parts) < 6 or rest.split(" ")[0] not in ("cgroup", "cgroup2"):
            continue
        if parts[4] == "/sys/fs/cgroup" or parts[4].startswith("/sys/fs/cgroup/"):
            yield parts[3], parts[4]


def _candidate(path: str, own: Iterable[str], found_in: str, mounts: Sequence[Path] = ()) -> _Candidate | None:
    """The container in one path; `own` are the agent's paths, what of them is above both is around us. `mounts` are
    where that hierarchy may be looked at."""
    parts = path.strip("/").split("/")
    around = max((_common(parts, ours.strip("/").split("/")) for ours in own), default=0)
    named = [(n, found) for n, part in enumerate(parts) if (found := _container_id(part, parts[n - 1] if n else ""))]
    inside = [one for one in named if one[0] >= around]
    if not named:
        return None
    n, container_id = inside[0] if inside else named[-1]
    _refuse_machine(parts[around:n])
    container = Container(
        pod_uid=_pod_uid(parts[: n + 1]),
        container_id=container_id,
        login_uid=_foreign(parts, around, n, mounts),
        hidden=parts[0] == "..",
        found_in=found_in,
    )
    return _Candidate(container=container, around_us=not inside)


def _common(parts: list[str], own: list[str]) -> int:
    """How many leading names both paths share."""
    shared = (n for n, (mine, theirs) in enumerate(zip(own, parts, strict=False)) if mine != theirs)
    return next(shared, min(len(parts), len(own)))


def _container_id(part: str, parent: str) -> str | None:
    if part.endswith(".slice") or (parent == _PODMANS and not part.startswith("libpod")):
        return None  # a group of containers, such as a pod of podman's
    found = set(_ID.findall(part))
    if len(found) > 1:
        raise _ambiguous()
    return found.pop() if found and not _MONITOR.search(part) else None


def _pod_uid(parts: list[str]) -> str | None:
    found = [match[1] for part in parts for match in _POD.finditer(part)]
    return found[-1].replace("_", "-") if found else None


def _foreign(parts: list[str], around: int, end: int, mounts: Sequence[Path]) -> int | None:
    """The user, neither root nor we, who may make cgroups between `around` and `end`: by his login, or as their owner.
    Where they cannot be looked at, as outside of our cgroup namespace, names are all there is."""
    logins = (match for part in parts[around:end] if (match := _LOGIN.fullmatch(part)))
    login = next((int(match[1] or match[2]) for match in logins), None)
    if login is not None or parts[0] == "..":
        return login
    above = (mount.joinpath(*parts[:n]) for mount in mounts for n in range(around + 1, end + 1))
    owners = (owner for directory in above if (owner := _owner(directory)) is not None)
    return next((owner for owner in owners if owner not in (0, os.geteuid())), None)


def _owner(directory: Path) -> int | None:
    try:
        return os.lstat(directory).st_uid
    except (OSError, ValueError):
        return None


def _mounts(hierarchy: str, root: Path | None) -> tuple[Path, ...]:
    """Where a hierarchy may be mounted. The unified one is below the root where there are old ones as well."""
    controllers = hierarchy.partition(":")[2].removeprefix("name=")
    if root is None or "/" in controllers:
        return ()
    return (root / controllers,) if controllers else (root / "unified", root)


def _refuse_machine(above: list[str]) -> None:
    """Whoever runs a machine, or a service to which systemd gave its own cgroups, names those below as he likes."""
    for part in above:
        if _MACHINE.fullmatch(part) and not _LOGIN.fullmatch(part) and not _RUNTIME.search(part):
            raise Denied(
                "the caller's container is named by another machine or service of this node, not by its runtime",
                reason="CONTAINER_NESTED",
                hint="run an agent inside that machine",
            )


def _agreed(candidates: Iterable[_Candidate | None]) -> Container | None:
    """The one container that all hierarchies name; those that only say where we are ourselves count for the least."""
    found = [one for one in candidates if one is not None]
    found = [one for one in found if not one.around_us] or found
    if len({one.container.container_id for one in found}) > 1:
        raise _ambiguous()
    pods = {one.container.pod_uid for one in found} - {None}
    if len(pods) > 1:
        raise _ambiguous()
    if not found:
        return None
    # One with a pod, and one with a login user, say more than one without.
    best = max(found, key=lambda one: (one.container.pod_uid is not None, one.container.login_uid is not None))
    logins = {one.container.login_uid for one in found} - {None}
    if logins and best.container.login_uid is None:
        raise _ambiguous()
    return best.container


def _ambiguous() -> Denied:
    return Denied(
        "the kernel's records name several containers for the caller",
        reason="CONTAINER_AMBIGUOUS",
        hint="`caadmin explain workload --pid` on the node shows them",
    )


def _shares_user_namespace(proc: int) -> bool:
    """In a user namespace of his own anybody may mount what he likes where he likes (user_namespaces(7))."""
    try:
        theirs, ours = os.stat("ns/user", dir_fd=proc), os.stat("/proc/self/ns/user")
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _own_cgroups() -> str:
    descriptor = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return read_proc_file(descriptor, "cgroup", max_bytes=MAX_CGROUP_BYTES)
    finally:
        os.close(descriptor)
