"""Attesting the callers of open streams again and again, within a share of one processor core.

Each is due once an interval, at a moment of its own: a thousand callers are a few every moment and never all at once.
What an attestation costs is metered; when there is nothing left to spend, those that are due wait, the longest due
first, and the interval gets longer for all alike. An attestation that hangs holds up others of its workload only.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from ca.ports import Clock
from ca.runtime import cpu
from ca.runtime.log import get
from sds.rarely import Rarely

FEWEST_STEPS, MOST_STEPS = 10, 100
"""How many times in an interval it is looked who is due."""

SAVED_SECONDS = 1.0
"""So long may what is not spent be saved up."""

FIRST_COST = 0.001
"""What one attestation is taken to cost, in seconds, before any was metered."""

UNSEEN = 1.5
"""What is spent in all for what can be metered: the event loop and the handing over to threads come on top."""

log = get("sds.reattestation")


class Followed(Protocol):
    """What is attested again: `share` says whose it is, `followed` whether anybody still wants to know."""

    @property
    def share(self) -> str: ...

    @property
    def followed(self) -> bool: ...


F = TypeVar("F", bound=Followed)


class Budget:
    """Processor seconds to spend: `share` of the time that passes. Pure; `now` is a monotonic time."""

    def __init__(self, share: float, *, now: float) -> None:
        self._share = share
        self._most = share * SAVED_SECONDS
        self._left = self._most
        self._now = now
        self.cost = FIRST_COST
        """Of one attestation, as the last ones were."""

    def passed(self, now: float) -> None:
        """It is `now`."""
        self._left = min(self._left + (now - self._now) * self._share, self._most)
        self._now = now

    def spent(self, seconds: float) -> None:
        """One attestation is over, and was so much."""
        self._left -= seconds
        self.cost += (seconds - self.cost) / 16

    def allows(self, running: int) -> bool:
        """Whether one more may begin beside so many whose cost is not known yet."""
        return self._left > running * self.cost


@dataclass(order=True, slots=True)
class _Due(Generic[F]):
    at: float
    number: int
    item: F = field(compare=False)


class Reattestation(Generic[F]):
    """`again` attests one and never fails. `each` of one share and `total` at once; callers have the other places."""

    def __init__(
        self,
        again: Callable[[F], Coroutine[Any, Any, None]],
        *,
        clock: Clock,
        interval_seconds: float,
        cpu_share: float,
        each: int,
        total: int,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._again = again
        self._clock = clock
        self._interval = interval_seconds
        self._each = each
        self._total = total
        self._jitter = jitter
        self._numbers = count()
        self._due: list[_Due[F]] = []
        self._held: set[F] = set()
        """Those that wait or are at it: each is in here once, whoever asks for it."""
        self._running: dict[asyncio.Task[None], F] = {}
        self._by_share: Counter[str] = Counter()
        self.budget = Budget(cpu_share, now=clock.monotonic())
        self._complaint = Rarely(clock)
        self._stopped = False

    def follow(self, item: F) -> None:
        """From now on it is due within an interval, once in each. Harmless when it is followed already."""
        if item not in self._held:
            self._held.add(item)
            self._push(item, self._interval * self._jitter())

    @property
    def behind_seconds(self) -> float:
        """How long the one that waits longest has been due."""
        return max(self._clock.monotonic() - self._due[0].at, 0.0) if self._due else 0.0

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                steps = min(max(len(self._due), FEWEST_STEPS), MOST_STEPS)
                await self._clock.sleep(self._interval / steps)
                self._begin_due()
                self._complain()
        finally:
            self._stopped = True
            for task in self._running:
                task.cancel()

    def _begin_due(self) -> None:
        now = self._clock.monotonic()
        self.budget.passed(now)
        while self._due and self._due[0].at <= now:
            if len(self._running) >= self._total or not self.budget.allows(len(self._running)):
                return
            item = heapq.heappop(self._due).item
            if not item.followed:
                self._held.discard(item)
            elif self._by_share[item.share] >= self._each:
                self._push(item, self._interval / FEWEST_STEPS)
            else:
                self._begin(item)

    def _begin(self, item: F) -> None:
        self._by_share[item.share] += 1
        task = asyncio.ensure_future(self._metered(item))
        self._running[task] = item
        task.add_done_callback(self._over)

    async def _metered(self, item: F) -> None:
        with cpu.metering() as meter:
            try:
                await cpu.steps(self._again, item)
            finally:
                self.budget.spent(meter.seconds * UNSEEN)

    def _over(self, task: asyncio.Task[None]) -> None:
        item = self._running.pop(task)
        self._by_share[item.share] -= 1
        if not self._by_share[item.share]:
            del self._by_share[item.share]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("attesting again failed", exc_info=error)
        if item.followed:
            self._push(item, self._interval)
        else:
            self._held.discard(item)
        if not self._stopped:
            self._begin_due()  # its place is free

    def _push(self, item: F, seconds: float) -> None:
        heapq.heappush(self._due, _Due(self._clock.monotonic() + seconds, next(self._numbers), item))

    def _complain(self) -> None:
        behind = self.behind_seconds
        if behind <= self._interval:
            self._complaint.forget()
        elif self._complaint.worth("behind"):
            log.warning(
                "callers are attested again later than they should be",
                reason="ATTESTATION_BEHIND",
                behind_seconds=round(behind, 1),
                callers=len(self._due),
                milliseconds_each=round(self.budget.cost * 1000, 2),
                hint="raise `attest_cpu_share`, or `attest_interval_seconds`",
            )
