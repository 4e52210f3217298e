"""Prunes on schedule: a pass soon after the start, and then regularly."""

from __future__ import annotations

from ca.ports import Clock
from ca.service.pruning import Pruner

FIRST_SECONDS = 10.0
"""Not at once: a server that starts has agents to answer."""


class Maintenance:
    """A pass that fails is logged by the supervisor, which starts the schedule anew."""

    def __init__(self, *, pruner: Pruner, clock: Clock, every_seconds: float) -> None:
        self._pruner = pruner
        self._clock = clock
        self.every_seconds = every_seconds

    async def run(self) -> None:
        """Until cancelled."""
        await self._clock.sleep(FIRST_SECONDS)
        while True:
            await self._pruner.prune()
            await self._clock.sleep(self.every_seconds)
