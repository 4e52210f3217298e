"""What Istio's proxies may ask for in a second, and how many tokens are reviewed at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager

from ca.api.access import current_caller
from ca.api.limits import RATE_REFUSED, Limits, address_of
from ca.errors import Exhausted
from ca.ports import Clock
from ca.runtime.istio_config import IstioConfig
from ca.service.admission import Admission
from ca.service.rates import TokenBuckets

BURST_SECONDS = 10.0
MAX_REVIEWS = 32
MAX_WAITING = 512
"""An API server that hangs keeps proxies waiting, and nobody else: they have a queue of their own for that."""


class IstioLimits:
    """Its methods judge the call that runs now; all raise Exhausted, which Istio's clients take as `come again`."""

    def __init__(
        self, config: IstioConfig, limits: Limits, clock: Clock, *, jitter: Callable[[], float] = random.random
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._jitter = jitter
        self._addresses = TokenBuckets(per_second=config.requests_per_second_per_address, burst_seconds=BURST_SECONDS)
        self._callers = TokenBuckets(per_second=config.requests_per_second_per_caller, burst_seconds=BURST_SECONDS)
        self._reviews = Admission(
            max_running=MAX_REVIEWS, max_waiting=MAX_WAITING, monotonic=clock.monotonic, jitter=jitter, shown=False
        )

    def address(self) -> None:
        """Before anything is looked at."""
        self._take("istio_address", self._addresses, address_of(current_caller()))

    def caller(self, key: Hashable) -> None:
        """Once it is known who it is."""
        self._take("istio_caller", self._callers, key)

    def review(self) -> AbstractAsyncContextManager[object]:
        """Around the questions to an API server."""
        return self._reviews.turn((0.0,), share=address_of(current_caller()))

    def signature(self, key: Hashable) -> AbstractAsyncContextManager[object]:
        """Around one signature."""
        return self._limits.signature(("istio", key))

    def _take(self, kind: str, buckets: TokenBuckets, caller: Hashable) -> None:
        seconds = buckets.take(caller, 1, self._clock.monotonic())
        if seconds:
            RATE_REFUSED.labels(kind).inc()
            raise Exhausted(
                f"more than {buckets.per_second:g} a second of one caller",
                reason="RATE_LIMITED",
                hint="come again after the time given; `istio` of the server's configuration says how much is allowed",
                retry_after_seconds=seconds * (1 + 0.5 * self._jitter()) + 0.1 * self._jitter(),
            )
