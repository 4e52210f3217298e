"""The index of what is alive, brought up to date from the issuance log whenever somebody asks.

Nothing is done while nobody asks, and nothing on the path of a request: a first question reads what may be alive, each
later one what was recorded since. Whoever gives up waiting loses nothing: the next question goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from datetime import datetime, timedelta

from ca.ports import Clock
from ca.service.live_index import LiveIndex
from ca.store.issuance_tail import IssuanceBatch, IssuanceTail

SETTLE = timedelta(seconds=10)
"""Of two servers on one store the batch with the smaller number may be committed later, by so much at most."""

PAGE = 256
"""Batches that are read at a time."""


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
            now, last = self._clock.now(), self._after
            while page := await self._log.batches(after=last, live_at=now, limit=PAGE):
                await self._take([batch for batch in page if batch.id not in self._taken])
                self._settle(now)
                last = page[-1].id
                if len(page) < PAGE:
                    break
            self._index.expire(now)
            return self._index

    async def _take(self, batches: Sequence[IssuanceBatch]) -> None:
        """Into the index; the loop has its turn after each batch, and each one is taken whole or not at all."""
        keys = self._token_keys()
        closed = {batch.id for batch in batches if len(batch.authorities) == 1 and batch.authorities[0] in keys}
        records = dict(await self._log.records([batch.id for batch in batches if batch.id not in closed]))
        for batch in batches:
            if batch.id in closed:
                self._index.add_tokens(batch.authorities[0], batch.count, batch.last_not_after)
            else:
                self._index.add(batch.id, records.get(batch.id, []))
            self._taken[batch.id] = batch.recorded_at
            await asyncio.sleep(0)

    def _settle(self, now: datetime) -> None:
        """What is old enough is not asked for again."""
        settled = [number for number, at in self._taken.items() if at <= now - SETTLE]
        self._after = max(settled, default=self._after)
        self._taken = {number: at for number, at in self._taken.items() if number > self._after}
