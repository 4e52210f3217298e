"""Whether workloads still find the agent's socket: its file may be removed, moved or replaced by others."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from ca.errors import FailedPrecondition
from ca.ports import Clock
from ca.runtime.health import Problem
from ca.runtime.log import get
from sds.condition import Condition

PART = "socket"
LOOK_SECONDS = 5.0
log = get("sds.socket")


class SocketWatch:
    """Looks at the file of a socket that listens, for `run`; `condition` and `problem` tell what it saw."""

    def __init__(self, path: Path, *, condition: Condition, clock: Clock) -> None:
        self._path = path
        self._condition = condition
        self._clock = clock
        self._ours = _file(path)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._note(await asyncio.to_thread(_file, self._path))
            await self._clock.sleep(LOOK_SECONDS)

    def problem(self) -> Problem | None:
        """For readiness: callers that are connected go on, and nobody else can come."""
        known = self._condition.problems.get(PART)
        return None if known is None else Problem(reason=known.reason, detail=known.detail, hint=known.hint)

    def _note(self, found: tuple[int, int] | None) -> None:
        if found == self._ours:
            if self._condition.clear(PART):
                log.info("workloads find the socket again", path=str(self._path))
            return
        error = FailedPrecondition(
            f"`{self._path}` {'was removed' if found is None else 'is another file by now'}: no workload can connect",
            reason="WORKLOAD_SOCKET_LOST",
            hint="restart the agent, which makes it anew, and keep others from writing to its directory",
        )
        if self._condition.report(PART, error):
            log.error("workloads do not find the socket", reason=error.reason, detail=error.detail, hint=error.hint)


def _file(path: Path) -> tuple[int, int] | None:
    """(device, inode) of what is there; None for nothing."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
