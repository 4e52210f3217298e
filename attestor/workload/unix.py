"""Workload attestation from the kernel's own records: user, groups, executable.

Everything is read through the directory file descriptor of the process, so that a recycled pid reads as gone.
Effective ids are used, as SPIRE does, but only those that the process connected with: whoever connects, keeps the
socket in a child and executes `su` would otherwise be root for the child. What remains: a process may pass its
connected socket to another one, and may itself become any program that its user can execute, before the agent has
looked at it once; the kernel names the process that connected, and that one is attested. So select by user or group,
and by `path` or `sha256` only besides.
"""

from __future__ import annotations

from pydantic import Field

from attestor.workload.executable import Executables
from attestor.workload.names import Names
from attestor.workload.procfs import Ids, read_ids
from ca.errors import Unauthenticated
from ca.identity.selector import Selector
from ca.ports import Process, WorkloadAttestorPlugin
from ca.runtime.config import StrictModel
from ca.runtime.log import get
from ca.runtime.notes import note
from ca.runtime.threads import to_thread

NAME = "unix"
MAX_GROUPS = 256
"""Of a process with more supplementary groups none is told: looking up and remembering 65,536 of them, which the kernel
allows, would cost the agent what its other callers need."""

log = get("attestor.workload.unix")


class Config(StrictModel):
    """What to look at besides user and groups."""

    path: bool = Field(
        default=True,
        description="Find `path` and `sha256` of the executable. Needs the agent to see the workload's files: root, or "
        "the same user, in the same mount namespace.",
    )
    hash_size_limit_bytes: int = Field(
        default=256 * 1024 * 1024, ge=0, description="Larger executables get no `sha256`; 0 computes none."
    )


class UnixAttestor:
    """Finds `unix:` selectors."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._names = Names()
        self._executables = Executables(size_limit_bytes=config.hash_size_limit_bytes)

    async def attest(self, process: Process) -> frozenset[Selector]:
        process.ensure_alive()
        found = await to_thread(self._look, process)
        process.ensure_alive()
        return frozenset(Selector(NAME, value) for value in found)

    def _look(self, process: Process) -> list[str]:
        ids = read_ids(process.proc)
        note("connected as", f"uid {process.uid}, gid {process.gid}")
        _require_same_user(ids, process)
        values = self._identity(ids)
        if self._config.path:
            executable = self._executables.find(process.proc)
            if executable is not None:
                values.append(f"path:{executable.path}")
                if executable.sha256:
                    values.append(f"sha256:{executable.sha256}")
        return values

    def _identity(self, ids: Ids) -> list[str]:
        values = [f"uid:{ids.uid}", f"gid:{ids.gid}"]
        groups = ids.groups
        if len(groups) > MAX_GROUPS:
            note("supplementary groups withheld", f"there are {len(groups)}, more than {MAX_GROUPS}")
            log.debug("supplementary groups withheld", reason="GROUPS_WITHHELD", uid=ids.uid, groups=len(groups))
            groups = ()
        values += [f"supplementary_gid:{gid}" for gid in groups]
        if user := self._names.user(ids.uid):
            values.append(f"user:{user}")
        if group := self._names.group(ids.gid):
            values.append(f"group:{group}")
        values += [f"supplementary_group:{name}" for gid in groups if (name := self._names.group(gid))]
        return values


def _require_same_user(ids: Ids, process: Process) -> None:
    """A set-user-ID program gives the process another user, and nothing to those who hold its socket (execve(2))."""
    if (ids.uid, ids.gid) != (process.uid, process.gid):
        raise Unauthenticated(
            "the caller changed its user or group after it connected",
            reason="CALLER_CHANGED",
            hint="connect after the change, not before it",
        )


plugin = WorkloadAttestorPlugin(name=NAME, config=Config, attestor=UnixAttestor)
