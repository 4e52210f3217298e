"""The agent's prerequisites, each a finding: values in, findings out."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.ports import Finding
from ca.runtime.findings import failed, ok, warning
from sds.condition import Condition, Problem, State
from sds.state import AgentSvid
from sds.views import WorkloadSvid

SKEW_WARNED = timedelta(seconds=5)
SKEW_FAILED = timedelta(seconds=30)
"""Certificates begin a little before they are made; beyond that one side takes the other's for not yet valid."""

SHORT_LIFE = timedelta(minutes=10)
"""Of an SVID: half of it is left for whatever keeps its successor from coming."""

SHOWN = 3


def identity(svid: AgentSvid | None, condition: Condition, now: datetime) -> list[Finding]:
    """The agent's own SVID, and whatever the agent says is wrong."""
    if condition.state is State.BANNED and condition.problem is not None:
        return [_problem("identity", condition.problem)]
    found = [_problem(part, problem) for part, problem in sorted(condition.problems.items())]
    if svid is None:
        return found or [
            failed("identity", "this agent has no identity yet", "wait a moment, and read the agent's log")
        ]
    left = svid.not_after - now
    if left <= timedelta(0):
        return [*found, failed("identity", f"`{svid.id}` expired at {svid.not_after:%Y-%m-%d %H:%M:%SZ}")]
    if svid.not_after - svid.issued_at < SHORT_LIFE:
        hint = "raise `agent_ttl_seconds` of the server: an outage of half of that costs the node its identity"
        return [
            *found,
            warning("identity", f"`{svid.id}` lives {_span(svid.not_after - svid.issued_at)} at a time", hint),
        ]
    return [*found, ok("identity", f"`{svid.id}`, for another {_span(left)}")]


def clock(offset: timedelta) -> Finding:
    """`offset`: the server's time less ours."""
    ahead = "behind" if offset > timedelta(0) else "ahead of"
    detail = f"the clock here is {abs(offset).total_seconds():.1f} s {ahead} the server's"
    if abs(offset) > SKEW_FAILED:
        return failed("clock", detail, "set the clock that is wrong, and keep it set (NTP)")
    if abs(offset) > SKEW_WARNED:
        return warning("clock", detail, "keep both clocks set (NTP)")
    return ok("clock", detail)


def bundle(held: TrustBundle, served: TrustBundle) -> Finding:
    """The bundle that the agent hands out against the one that the server has."""
    ours, theirs = _authorities(held), _authorities(served)
    if missing := theirs - ours:
        detail = f"{len(missing)} of the server's {len(theirs)} authorities are not in the bundle here"
        return failed("bundle", detail, "the agent follows the server by itself: is it in touch with it?")
    if more := ours - theirs:
        detail = f"{len(more)} authorities of the bundle here are not the server's any more"
        return warning("bundle", detail, "the agent follows the server by itself: is it in touch with it?")
    return ok("bundle", f"the server's {len(theirs)} authorities, at sequence number {served.sequence_number}")


def workload_socket(path: Path) -> Finding:
    """Every workload of the node must be able to open it."""
    what = "workload socket"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return failed(what, f"`{path}`: {error.strerror}", "is the agent listening? see its log")
    if not stat.S_ISSOCK(mode):
        return failed(what, f"`{path}` is no socket", "remove it, and restart the agent")
    if mode & 0o006 != 0o006:
        return failed(what, f"`{path}` has mode {mode & 0o777:04o}: not everybody can open it", f"chmod 0777 {path}")
    closed = [parent for parent in path.parents if not _passable(parent)]
    if closed:
        return failed(
            what, f"others may not pass through `{closed[-1]}`", f"chmod o+x {closed[-1]}, or move the socket"
        )
    return ok(what, f"`{path}` is open to all who run here")


def private(what: str, path: Path, *, group: bool = False) -> Finding:
    """Others must not reach it; a group may where the configuration says so."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return failed(what, f"`{path}`: {error.strerror}", "it must exist and belong to the agent's user")
    forbidden = 0o007 if group else 0o077
    if mode & forbidden:
        kept = mode & 0o777 & ~forbidden
        return failed(what, f"`{path}` has mode {mode & 0o777:04o}: others can reach it", f"chmod {kept:04o} {path}")
    return ok(what, f"`{path}` has mode {mode & 0o777:04o}")


def processes(proc: Path = Path("/proc")) -> Finding:
    """Whether the agent sees the processes of others at all."""
    try:
        (proc / "1" / "status").read_bytes()
    except OSError as error:
        hint = "run the agent in the host's pid namespace, and without `hidepid` on /proc, or as root"
        return failed("processes", f"`{proc}/1/status`: {error.strerror}", hint)
    try:
        os.readlink(proc / "1" / "exe")
    except OSError:
        hint = "give the agent CAP_SYS_PTRACE, or use no selectors such as `unix:path` and `unix:sha256`"
        return warning("processes", "executables of other users' processes cannot be told", hint)
    return ok("processes", "those of all users can be looked at")


def entries(known: Iterable[RegistrationEntry], attestors: Collection[str]) -> Finding:
    """Entries that no process here can ever match."""
    of_workloads = [entry for entry in known if not entry.store_svid]
    lost = [entry for entry in of_workloads if any(s.type not in attestors for s in entry.selectors)]
    if not lost:
        return ok("entries", f"{len(of_workloads)}, each of selectors that an attestor here can find")
    types = sorted({s.type for entry in lost for s in entry.selectors if s.type not in attestors})
    return warning(
        "entries",
        f"{len(lost)} of {len(of_workloads)} want selectors of {_list(types)}, for which there is no workload attestor "
        f"here: {_list([entry.id for entry in lost])}",
        "configure it under `workload_attestors`, or correct the entries; nothing is wrong where they are meant for "
        "other nodes",
    )


def lives(svids: Sequence[WorkloadSvid]) -> Finding:
    """Half of an SVID's life is what an outage may last."""
    short = [svid for svid in svids if svid.not_after - svid.issued_at < SHORT_LIFE]
    if not short:
        return ok("lives of SVIDs", f"none of {len(svids)} is shorter than {_span(SHORT_LIFE)}")
    least = min(short, key=lambda svid: svid.not_after - svid.issued_at)
    shortest = _span(least.not_after - least.issued_at)
    return warning(
        "lives of SVIDs",
        f"{len(short)} of {len(svids)} live less than {_span(SHORT_LIFE)}, `{least.spiffe_id}` {shortest}",
        f"an outage of half of that ends them: `caadmin ttl explain {least.spiffe_id}` says what cuts them short",
    )


def _problem(part: str, problem: Problem) -> Finding:
    names = {"sync": "server", "state": "state on disk"}
    return failed(names.get(part, part), f"{problem.detail} ({problem.reason})", problem.hint)


def _authorities(bundle: TrustBundle) -> set[str | bytes]:
    x509 = {authority.certificate for authority in bundle.x509_authorities}
    return x509 | {authority.key_id for authority in bundle.jwt_authorities}


def _passable(directory: Path) -> bool:
    try:
        return bool(directory.stat().st_mode & 0o001)
    except OSError:
        return False


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:SHOWN]) + more


def _span(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
