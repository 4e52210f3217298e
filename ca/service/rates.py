"""Token buckets: so many a second of each caller, and so many seconds' worth at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

MAX_CALLERS = 20_000
"""Callers that are remembered; beyond them, those that were longest not seen start anew."""


class TokenBuckets:
    """One bucket for each caller. Pure: time is given, in monotonic seconds."""

    def __init__(self, *, per_second: float, burst_seconds: float) -> None:
        self.per_second = per_second
        self.capacity = max(per_second * burst_seconds, 1.0)
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, caller: Hashable, amount: float, now: float) -> float:
        """Takes `amount` and returns 0; or takes nothing and returns the seconds until there would be enough.

        More than a bucket holds is granted to a full one, which is then in debt: it would never be granted else.
        """
        level, at = self._buckets.pop(caller, (self.capacity, now))
        level = min(level + (now - at) * self.per_second, self.capacity)
        short = min(amount, self.capacity) - level
        if short <= 1e-9:
            level -= amount
        self._buckets[caller] = (level, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return max(short, 0.0) / self.per_second if short > 1e-9 else 0.0

    def give_back(self, caller: Hashable, amount: float) -> None:
        """What was taken for nothing."""
        if (found := self._buckets.get(caller)) is not None:
            self._buckets[caller] = (min(found[0] + amount, self.capacity), found[1])
