"""The index of what is alive, brought up to date from the issuance log whenever somebody asks.

Nothing is done while nobody asks, and nothing on the path of a request: a first question reads what may be alive, each
later one what was recorded since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Set
from datetime import datetime, timedelta

from ca.ports import Clock
from ca.service.live_index import LiveIndex
from ca.store.issuance_tail import IssuanceBatch, IssuanceTail

SETTLE = timedelta(seconds=10)
"""Of two servers on one store the batch with the smaller number may be committed later, by so much at most."""


class LiveIssued:
    """`token_keys` tells the key IDs that sign JWTs: batches of theirs alone are counted without being opened."""

    def __init__(self, *, log: IssuanceTail, clock: Clock, token_keys: Callable[[], Set[str]]) -> None:
        self._log = log
        self._clock = clock
        self._token_keys = token_keys
        self._index = LiveIndex()
        self._after = 0
        self._taken: dict[int, datetime] = {}
        """Batches after `_after` that are in the index, and when they were recorded."""
        self._lock = asyncio.Lock()

    async def look(self) -> LiveIndex:
        """The index as of now. Raises Unavailable."""
        async with self._lock:
            now = self._clock.now()
            batches = await self._log.batches(after=self._after, live_at=now)
            fresh = [batch for batch in batches if batch.id not in self._taken]
            closed, opened = self._sort(fresh)
            for number, records in await self._log.records([batch.id for batch in opened]):
                self._index.add(number, records)
            for batch in closed:
                self._index.add_tokens(batch.authorities[0], batch.count, batch.last_not_after)
            self._note(fresh, now)
            self._index.expire(now)
            return self._index

    def _sort(self, batches: Collection[IssuanceBatch]) -> tuple[list[IssuanceBatch], list[IssuanceBatch]]:
        """(batches of one JWT key alone, batches to open)."""
        keys = self._token_keys()
        closed = [batch for batch in batches if len(batch.authorities) == 1 and batch.authorities[0] in keys]
        ids = {batch.id for batch in closed}
        return closed, [batch for batch in batches if batch.id not in ids]

    def _note(self, batches: Collection[IssuanceBatch], now: datetime) -> None:
        """What is old enough is not asked for again."""
        self._taken |= {batch.id: batch.recorded_at for batch in batches}
        settled = [number for number, at in self._taken.items() if at <= now - SETTLE]
        self._after = max(settled, default=self._after)
        self._taken = {number: at for number, at in self._taken.items() if number > self._after}
