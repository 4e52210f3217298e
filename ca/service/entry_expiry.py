"""Entries end when they are due: agents are told at once, long before the entries are forgotten."""

from __future__ import annotations

from ca.ports import Clock
from ca.service.follower import Follower
from ca.store.authorized import AuthorizedIndex

TICK_SECONDS = 1.0
"""The clock may be set, and entries may come that end sooner."""


class EntryExpiry:
    """Wakes for the next end, and once a second."""

    def __init__(self, *, index: AuthorizedIndex, follower: Follower, clock: Clock) -> None:
        self._index = index
        self._follower = follower
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._follower.expire()
            await self._clock.sleep(self._pause())

    def _pause(self) -> float:
        due = self._index.next_expiry
        if due is None:
            return TICK_SECONDS
        return min(TICK_SECONDS, max((due - self._clock.now()).total_seconds(), 0.001))
