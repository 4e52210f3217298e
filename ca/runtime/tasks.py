"""Background tasks that are watched: restarted with back-off, seen in the health report, cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from ca.ports import Clock
from ca.runtime import log
from ca.runtime.clock import SystemClock
from ca.runtime.health import Health, Problem

FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 30.0
STEADY_AFTER_SECONDS = 60.0
"""A task that ran this long starts its back-off anew when it fails again."""

_log = log.get("tasks")


class Tasks:
    """The background tasks of one program. While one is down, `health` says so under `task:<name>`."""

    def __init__(self, *, clock: Clock | None = None, health: Health | None = None) -> None:
        self._clock = clock or SystemClock()
        self._health = health
        self._running: dict[str, asyncio.Task[None]] = {}
        self._down: dict[str, str] = {}

    def spawn(self, name: str, run: Callable[[], Awaitable[object]], *, restart: bool = True) -> asyncio.Task[None]:
        """Start `run()` under a name that no running task has.

        With `restart` it is started again when it raises (0.1 s to 30 s apart, doubling); a normal return ends it.
        Without, one failure ends it, is logged, and stays in the health report.
        """
        if name in self._running:
            raise ValueError(f"a task named {name} is running")
        if self._health is not None:
            self._health.add(f"task:{name}", lambda: self._problem(name))
        task = asyncio.get_running_loop().create_task(self._supervise(name, run, restart), name=name)
        self._running[name] = task
        task.add_done_callback(lambda _: self._running.pop(name, None))
        return task

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that are running or waiting for their restart."""
        return tuple(self._running)

    async def close(self) -> None:
        """Cancel every task and wait until each has ended."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _supervise(self, name: str, run: Callable[[], Awaitable[object]], restart: bool) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            started = self._clock.monotonic()
            recovery = asyncio.get_running_loop().call_later(MAX_BACKOFF_SECONDS, self._down.pop, name, None)
            try:
                await run()
                self._down.pop(name, None)
                return
            except Exception as error:
                self._down[name] = f"{type(error).__name__}: {error}"
                _log.error("background task failed", task=name, reason="TASK_FAILED", restart=restart, exc_info=error)
            finally:
                recovery.cancel()
            if not restart:
                return
            if self._clock.monotonic() - started >= STEADY_AFTER_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            await self._clock.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)

    def _problem(self, name: str) -> Problem | None:
        cause = self._down.get(name)
        if cause is None:
            return None
        return Problem(reason="TASK_FAILED", detail=f"background task {name} failed: {cause}", hint="see the log")
