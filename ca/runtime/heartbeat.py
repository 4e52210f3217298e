"""Whether the program still moves: its event loop, its worker threads, and the tasks that it cannot do without."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from datetime import timedelta

from ca.ports import Clock
from ca.runtime import log
from ca.runtime.health import Problem

EVERY_SECONDS = 1.0
STUCK_SECONDS = 60.0
"""Without a beat for so long only a restart helps. A loop that is stuck altogether does not even answer /live."""

CLOCK_SET_SECONDS = 5.0
"""A step of the wall clock against the monotonic one that is worth a line; a machine that slept shows one, too."""

_log = log.get("heartbeat")


class Heartbeat:
    """`run` for ever; `check` is for liveness. A beat goes through the loop and through the worker threads: those of
    `pool`, or the loop's own."""

    def __init__(self, *, clock: Clock, pool: Executor | None) -> None:
        self._clock = clock
        self._pool = pool
        self._beat_at = clock.monotonic()
        self._offset = clock.now().timestamp() - clock.monotonic()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def essential(self, name: str, task: asyncio.Task[None]) -> None:
        """A task that restarts after failures and must never be over."""
        self._tasks[name] = task

    async def run(self) -> None:
        while True:
            await asyncio.get_running_loop().run_in_executor(self._pool, _nothing)
            self._beat_at = self._clock.monotonic()
            self._look_at_the_clock()
            await self._clock.sleep(EVERY_SECONDS)

    def _look_at_the_clock(self) -> None:
        """Somebody set it: what depends on it may look odd from here on, and the log says why."""
        now = self._clock.now()
        stepped = now.timestamp() - self._clock.monotonic() - self._offset
        if abs(stepped) > CLOCK_SET_SECONDS:
            self._offset += stepped
            was = now - timedelta(seconds=stepped)
            _log.warning(
                "this machine's clock was set",
                reason="CLOCK_SET",
                seconds=round(stepped),
                from_time=was.isoformat(timespec="seconds"),
                to_time=now.isoformat(timespec="seconds"),
            )

    def check(self) -> Problem | None:
        over = sorted(name for name, task in self._tasks.items() if task.done())
        if over:
            return Problem(reason="TASK_OVER", detail=f"essential tasks have ended: {', '.join(over)}", hint="restart")
        silent = self._clock.monotonic() - self._beat_at
        if silent > STUCK_SECONDS:
            return Problem(
                reason="STUCK", detail=f"the worker threads have not answered for {silent:.0f} seconds", hint="restart"
            )
        return None


def _nothing() -> None:
    return None
