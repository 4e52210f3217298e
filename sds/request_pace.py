"""How fast the Envoys of one workload are listened to: whoever asks faster is read more slowly, and nobody else waits.

The gate paces calls; an SDS stream is one call, with as many requests as its client likes. What a request costs grows
with its size and with the names of its stream, all of which are looked up again for each.
"""

from __future__ import annotations

from asyncio import CancelledError

from ca.ports import Clock
from ca.runtime import metrics

BURST_SECONDS = 2.0
"""What may come at once after a pause: as many requests as in so long a time."""

BYTES_PER_REQUEST = 1024
NAMES_PER_REQUEST = 16
"""So many of them are as much work as one more request without."""

MAX_SHARES = 1024
SLOWED = metrics.counter("sds_slowed", "SDS requests put off because a workload's Envoys send them too fast.")


class RequestPace:
    """A token bucket for each share, kept as the time at which all that it asked for is paid."""

    def __init__(self, requests_per_second: float, clock: Clock) -> None:
        self._rate = requests_per_second
        self._clock = clock
        self._paid_at: dict[str, float] = {}

    async def turn(self, share: str, size_bytes: int) -> None:
        """Wait until the share may have a request of that size looked at; one after the other, as they came."""
        cost = 1 + size_bytes / BYTES_PER_REQUEST
        wait = self._spend(share, cost)
        if wait <= 0:
            return
        SLOWED.inc()
        try:
            await self._clock.sleep(wait)
        except CancelledError:
            self._spend(share, -cost)  # it is not looked at
            raise

    def looked_up(self, share: str, names: int) -> None:
        """A request had so many names looked up: the share's next ones come so much later."""
        self._spend(share, names / NAMES_PER_REQUEST)

    def _spend(self, share: str, cost: float) -> float:
        """Seconds until it is paid; not above zero where it was paid before."""
        now = self._clock.monotonic()
        if share not in self._paid_at and len(self._paid_at) >= MAX_SHARES:
            self._forget(now)
        paid_at = max(self._paid_at.get(share, float("-inf")), now - BURST_SECONDS) + cost / self._rate
        self._paid_at[share] = paid_at
        return paid_at - now

    def _forget(self, now: float) -> None:
        """Those that have their whole burst again by now."""
        self._paid_at = {share: at for share, at in self._paid_at.items() if at > now - BURST_SECONDS}
