"""Room that is shared out: so many places for each workload, and turns that go round."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from ca.errors import Exhausted


class Places:
    """At most `limit` at once for each share; `what` and `reason` tell whoever comes beyond that."""

    def __init__(self, limit: int, *, what: str, reason: str) -> None:
        self._limit = limit
        self._what = what
        self._reason = reason
        self._taken: Counter[str] = Counter()

    def taken(self, share: str) -> int:
        """How many places the share has now."""
        return self._taken[share]

    @contextmanager
    def place(self, share: str) -> Iterator[None]:
        """One place while the block runs. Raises Exhausted."""
        if self._taken[share] >= self._limit:
            raise Exhausted(
                f"this workload has {self._limit} {self._what} already",
                reason=self._reason,
                hint="end some of them, or raise the agent's `limits`",
            )
        self._taken[share] += 1
        try:
            yield
        finally:
            self._taken[share] -= 1
            if not self._taken[share]:
                del self._taken[share]


class FairQueue:
    """At most `total` at once and `each` of one share. Who waits, waits behind its own share's earlier ones only:
    a place that becomes free goes to the share that has fewest, of several to the one whose turn is longest ago."""

    def __init__(self, *, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def waiting(self) -> int:
        """How many wait."""
        return sum(1 for queue in self._waiting.values() for future in queue if not future.done())

    @asynccontextmanager
    async def turn(self, share: str) -> AsyncIterator[None]:
        """Wait for a place and have it while the block runs."""
        await self._enter(share)
        try:
            yield
        finally:
            self._leave(share)

    async def _enter(self, share: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(share, deque()).append(future)
        self._call()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._leave(share)  # called and cancelled in the same moment
            raise

    def _leave(self, share: str) -> None:
        self._running[share] -= 1
        if not self._running[share]:
            del self._running[share]
        self._call()

    def _call(self) -> None:
        """Give every free place away, one to each share in its turn."""
        while self._running.total() < self._total:
            # `min` keeps the first of equals: the one whose turn is longest ago.
            share = min(self._waiting, key=lambda name: self._running[name], default=None)
            if share is None or self._running[share] >= self._each:
                return
            queue = self._waiting[share]
            future = queue.popleft()
            if queue:
                self._waiting.move_to_end(share)
            else:
                del self._waiting[share]
            if not future.done():
                self._running[share] += 1
                future.set_result(None)
