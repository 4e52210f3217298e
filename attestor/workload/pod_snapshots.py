"""What the kubelet said last, and when: asked once for all who wait, and not more often than its pace allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256

from ca.errors import Unavailable, remembered
from ca.runtime.cpu import steps
from ca.runtime.log import get
from ca.runtime.pod_list import Pods, parse_pods
from ca.runtime.threads import to_thread, watch

Fetch = Callable[[], Awaitable[bytes]]
log = get("attestor.workload.k8s")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The answer to a request that was sent at `asked_at` (monotonic seconds)."""

    asked_at: float
    pods: Pods


class Pace:
    """`interval_seconds` between two requests, twice as much while one follows the other; from the beginning after a
    rest of as long."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval = interval_seconds
        self._next = self._last = float("-inf")

    def wait_seconds(self, now: float) -> float:
        """How long the next request has to wait."""
        return max(0.0, self._next - now)

    def asked(self, now: float) -> None:
        """A request is sent now."""
        rested = now - self._last > 2 * self._interval
        self._next = now + (self._interval if rested else 2 * self._interval)
        self._last = now


class PodSnapshots:
    """See the module. `fetch` is a request to the kubelet."""

    def __init__(
        self, fetch: Fetch, *, interval_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._pace = Pace(interval_seconds)
        self._digest = b""
        self._asking: asyncio.Task[None] | None = None
        self.last: Snapshot | None = None
        self.failure: tuple[float, Unavailable] | None = None
        """The last request's failure and when it ended; None after one that was answered."""
        self.requests = 0

    def age_seconds(self) -> float:
        """How long ago the last answer was asked for."""
        return float("inf") if self.last is None else self._monotonic() - self.last.asked_at

    async def newer(self, than: Snapshot | None) -> Snapshot:
        """A snapshot asked for after that one. Raises Unavailable."""
        while self.last is None or (than is not None and self.last.asked_at <= than.asked_at):
            await asyncio.shield(self._flight())
        return self.last

    def _flight(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(steps(self._ask))
            self._asking.add_done_callback(_look_at)
        return self._asking

    async def _ask(self) -> None:
        await asyncio.sleep(self._pace.wait_seconds(self._monotonic()))
        asked_at = self._monotonic()
        self._pace.asked(asked_at)
        self.requests += 1
        try:
            with watch():  # it belongs to no single one of those who wait, and its threads count against none
                body = await self._fetch()
                self.last = Snapshot(asked_at=asked_at, pods=await to_thread(self._parsed, body))
        except Unavailable as error:
            self.failure = (self._monotonic(), remembered(error))
            raise
        self.failure = None

    def _parsed(self, body: bytes) -> Pods:
        digest = sha256(body).digest()
        if self.last is not None and digest == self._digest:
            return self.last.pods
        pods = parse_pods(body)
        if pods.malformed or pods.claimed_twice:
            log.warning(
                "pods passed over",
                reason="K8S_PODS_PASSED_OVER",
                malformed=pods.malformed,
                claimed_twice=len(pods.claimed_twice),
            )
        self._digest = digest
        return pods


def _look_at(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # those who wait may have gone
