"""Admission to the work that costs: so much at once, so much waiting, the most urgent first, and no to the rest."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from ca.errors import Exhausted
from ca.runtime import metrics

WAIT_SECONDS = 10.0
"""The longest that a call waits for its turn; who called has something better to do then."""

SHORTEST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
SHARE = 4
"""One caller may have the queue's so-manieth part waiting."""

_SMOOTHING = 0.1

_running = metrics.gauge("admission_running", "Units of issuing and attesting under way.")
_queued = metrics.gauge("admission_waiting", "Units of issuing and attesting that wait for their turn.")
_refused = metrics.counter("admission_refused", "Calls that were told to come again, by reason.", ["reason"])


@dataclass(order=True, slots=True)
class _Waiting:
    """Sorted by urgency, then by arrival."""

    urgency: tuple[float, ...]
    number: int
    units: int = field(compare=False)
    share: Hashable = field(compare=False)
    turn: asyncio.Future[None] = field(compare=False)


class Turn(AbstractAsyncContextManager["Turn"]):
    """The right to work inside of it, from `Admission.turn`; it can be given up for a while and taken again."""

    def __init__(self, admission: Admission, urgency: tuple[float, ...], units: int, share: Hashable) -> None:
        self._admission = admission
        self._urgency = urgency
        self._units = units
        self._share = share
        self._began: float | None = None
        self._pauses = 0

    async def __aenter__(self) -> Turn:
        await self.take()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.give_up()

    async def take(self) -> None:
        await self._admission.enter(self._urgency, self._units, self._share)
        self._began = self._admission.monotonic()

    def give_up(self) -> None:
        """Idempotent."""
        if self._began is not None:
            self._admission.leave(self._units)
            self._began = None

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """While somebody else is waited for: who is silent keeps nobody from working. Several pauses of one turn may
        overlap."""
        self._pauses += 1
        self.give_up()
        try:
            yield
        finally:
            self._pauses -= 1
        if not self._pauses:
            await self.take()


class Admission:
    """`running` and `waiting` are counted in units. A call of more units than may run runs alone.

    `urgency` is a tuple of numbers, the smallest first. A call that finds the queue full takes the place of the least
    urgent one that waits, if it is more urgent itself. All on one event loop.
    """

    def __init__(
        self,
        *,
        max_running: int,
        max_waiting: int,
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
        shown: bool = True,
    ) -> None:
        """`jitter` gives 0 to 1. `shown`: in the metrics, which have room for one."""
        self.monotonic = monotonic
        self._jitter = jitter
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._numbers = itertools.count()
        self._queue: list[_Waiting] = []
        self._shares: Counter[Hashable] = Counter()
        self._done_at = monotonic()
        self._units_per_second = float(max_running)
        self.running = 0
        self.waiting = 0
        if shown:
            _running.set_function(lambda: self.running)
            _queued.set_function(lambda: self.waiting)

    def turn(self, urgency: tuple[float, ...], *, units: int = 1, share: Hashable = None) -> Turn:
        """Work inside of it. Raises Exhausted with a hint when to come again (SERVER_BUSY, QUEUE_SHARE).

        `share` names a caller that may not have the queue for itself; None is nobody.
        """
        return Turn(self, urgency, units, share)

    async def enter(self, urgency: tuple[float, ...], units: int, share: Hashable) -> None:
        """Returns when it is this call's turn. Prefer `turn`."""
        if not self._queue and self._fits(units):
            self._start(units)
            return
        if share is not None and self._shares[share] + units > max(self._max_waiting // SHARE, units):
            raise self._busy("QUEUE_SHARE", "too many calls of this caller are waiting")
        item = _Waiting(urgency, next(self._numbers), units, share, asyncio.get_running_loop().create_future())
        self._make_room(item)
        self._put(item)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await item.turn
        except TimeoutError:
            raise self._gave_up(item) from None
        except asyncio.CancelledError:
            self._gave_up(item)
            raise

    def leave(self, units: int) -> None:
        """The work of an `enter` is done."""
        self.running -= units
        self._learn(units)
        while self._queue and self._fits(self._queue[0].units):
            item = heapq.heappop(self._queue)
            self._forget(item)
            self._start(item.units)
            item.turn.set_result(None)

    def _fits(self, units: int) -> bool:
        return self.running == 0 or self.running + units <= self._max_running

    def _start(self, units: int) -> None:
        self.running += units

    def _make_room(self, item: _Waiting) -> None:
        while self._queue and self.waiting + item.units > self._max_waiting:
            last = max(self._queue)
            if last < item:
                raise self._busy("SERVER_BUSY", "the server has as much to sign as it bears")
            self._remove(last)
            last.turn.set_exception(self._busy("SERVER_BUSY", "calls that are more urgent went before"))

    def _put(self, item: _Waiting) -> None:
        heapq.heappush(self._queue, item)
        self.waiting += item.units
        self._shares[item.share] += item.units

    def _remove(self, item: _Waiting) -> None:
        self._queue.remove(item)
        heapq.heapify(self._queue)
        self._forget(item)

    def _forget(self, item: _Waiting) -> None:
        self.waiting -= item.units
        self._shares[item.share] -= item.units
        if not self._shares[item.share]:
            del self._shares[item.share]

    def _gave_up(self, item: _Waiting) -> Exhausted:
        """A call that waits no more, or was given its turn in the very moment in which it stopped to wait."""
        if item in self._queue:
            self._remove(item)
        elif item.turn.done() and not item.turn.cancelled() and item.turn.exception() is None:
            self.leave(item.units)
        return self._busy("SERVER_BUSY", f"the call's turn did not come within {WAIT_SECONDS:g} seconds")

    def _learn(self, units: int) -> None:
        """How much is done in a second, lately; only time in which somebody waited tells."""
        now, before = self.monotonic(), self._done_at
        self._done_at = now
        if self._queue and now > before:
            self._units_per_second += _SMOOTHING * (units / (now - before) - self._units_per_second)

    def _busy(self, reason: str, detail: str) -> Exhausted:
        """Spread over twice the time in which what waits now will have been done: they shall not all return at once."""
        _refused.labels(reason).inc()
        seconds = self.waiting / max(self._units_per_second, 1.0) * (1 + self._jitter())
        seconds += SHORTEST_RETRY_SECONDS * (1 + self._jitter())
        return Exhausted(
            detail,
            reason=reason,
            hint="come again after the time given",
            retry_after_seconds=min(seconds, LONGEST_RETRY_SECONDS),
        )
