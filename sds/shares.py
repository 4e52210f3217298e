"""Room that is shared out: so many places for each workload, and turns that go round.

A turn may leave threads behind that nobody can end. Until they end by themselves they keep one of their share's places,
and none of those that are for all.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from ca.errors import Exhausted
from ca.runtime.threads import Begun, when_over


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


class Turn:
    """One place in a queue. `unfinished`: threads that were begun in it and go on after it."""

    __slots__ = ("unfinished",)

    def __init__(self) -> None:
        self.unfinished: tuple[Begun, ...] = ()


class FairQueue:
    """At most `total` at once and `each` of one share. Who waits, waits behind its own share's earlier ones only:
    a place that becomes free goes to the share that has fewest, of several to the one whose turn is longest ago.

    A share whose places are all kept by what does not end is told so, with `what` and `reason`, and does not wait.
    """

    def __init__(self, *, total: int, each: int, what: str = "calls", reason: str = Exhausted.reason) -> None:
        self._total = total
        self._each = each
        self._what = what
        self._reason = reason
        self._running: Counter[str] = Counter()
        self._stuck: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def waiting(self) -> int:
        """How many wait."""
        return sum(1 for queue in self._waiting.values() for future in queue if not future.done())

    def stuck(self, share: str) -> int:
        """How many of the share's places are kept by what has not ended."""
        return self._stuck[share]

    def refusal(self) -> Exhausted:
        """The error for whoever would wait for what does not end."""
        return Exhausted(
            f"earlier {self._what} of this workload hang: a file system or a name service does not answer",
            reason=self._reason,
            hint="is the program's file on a mount whose server is gone? Once that answers, all goes on by itself",
        )

    @asynccontextmanager
    async def turn(self, share: str) -> AsyncIterator[Turn]:
        """Wait for a place and have it while the block runs. Raises Exhausted."""
        await self._enter(share)
        turn = Turn()
        try:
            yield turn
        finally:
            self._leave(share, turn.unfinished)

    async def _enter(self, share: str) -> None:
        if self._stuck[share] >= self._each:
            raise self.refusal()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(share, deque()).append(future)
        self._call()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._leave(share)  # called and cancelled in the same moment
            raise

    def _leave(self, share: str, unfinished: tuple[Begun, ...] = ()) -> None:
        _less(self._running, share)
        if unfinished:
            self._stuck[share] += 1
            when_over(unfinished, partial(self._free, share))
            if self._stuck[share] >= self._each:
                self._refuse_waiting(share)
        self._call()

    def _free(self, share: str) -> None:
        _less(self._stuck, share)
        self._call()

    def _refuse_waiting(self, share: str) -> None:
        for future in self._waiting.pop(share, ()):
            if not future.done():
                future.set_exception(self.refusal())

    def _has(self, share: str) -> int:
        return self._running[share] + self._stuck[share]

    def _call(self) -> None:
        """Give every free place away, one to each share in its turn."""
        while self._running.total() < self._total:
            # `min` keeps the first of equals: the one whose turn is longest ago.
            share = min(self._waiting, key=self._has, default=None)
            if share is None or self._has(share) >= self._each:
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


def _less(counter: Counter[str], share: str) -> None:
    counter[share] -= 1
    if not counter[share]:
        del counter[share]
