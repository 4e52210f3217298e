"""How fast a share of a listener may begin calls: whoever is faster is read more slowly, and nobody else waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ca.runtime import metrics
from ca.runtime.gate_h2 import PREFACE, FrameTracker

BURST_SECONDS = 2.0
"""What may be begun at once after a pause: as many calls as in so long a time."""

MAX_SHARES = 1024
SLOWED = metrics.counter("gate_slowed", "Reads put off because a caller begins calls too fast.", ["listener"])


@dataclass(slots=True)
class _Account:
    calls: float
    at: float


class Pace:
    """A token bucket for each share. `now` is the loop's time in seconds."""

    def __init__(self, calls_per_second: float) -> None:
        self._rate = calls_per_second
        self._accounts: dict[str, _Account] = {}

    def wait_seconds(self, share: str, now: float) -> float:
        """How long until the share may begin another call; 0 when it may now."""
        return max(0.0, -self._account(share, now).calls / self._rate)

    def spend(self, share: str, calls: int, now: float) -> None:
        """So many calls have begun: more than there were calls left makes the next ones wait."""
        self._account(share, now).calls -= calls

    def _account(self, share: str, now: float) -> _Account:
        most = self._rate * BURST_SECONDS
        account = self._accounts.get(share)
        if account is None:
            if len(self._accounts) >= MAX_SHARES:
                self._forget(now)
            account = self._accounts[share] = _Account(most, now)
        account.calls = min(most, account.calls + (now - account.at) * self._rate)
        account.at = now
        return account

    def _forget(self, now: float) -> None:
        """Those that have their whole burst again by now."""
        self._accounts = {
            share: account for share, account in self._accounts.items() if now - account.at < 2 * BURST_SECONDS
        }


class Throttle:
    """One HTTP/2 connection's way from the client: what comes too fast waits here, one chunk at most.

    `forward` takes bytes on, `pause` and `resume` stop and restart reading, `slowed` is told of each wait. While
    `holding` nobody else may resume.
    """

    def __init__(
        self,
        pace: Pace,
        share: str,
        loop: asyncio.AbstractEventLoop,
        *,
        forward: Callable[[memoryview | bytes], None],
        pause: Callable[[], None],
        resume: Callable[[], None],
        slowed: Callable[[], None],
    ) -> None:
        self._pace = pace
        self._share = share
        self._loop = loop
        self._forward = forward
        self._pause = pause
        self._resume = resume
        self._slowed = slowed
        self._frames = FrameTracker(skip_bytes=len(PREFACE))
        self._held = b""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def receive(self, plain: memoryview | bytes) -> None:
        """The next bytes from the client."""
        now = self._loop.time()
        wait = self._pace.wait_seconds(self._share, now)
        if wait > 0:
            self._slowed()
            self._held = bytes(plain)
            self._pause()
            self._timer = self._loop.call_later(wait, self._let_go)
            return
        before = self._frames.header_frames
        self._frames.feed(plain)
        self._pace.spend(self._share, self._frames.header_frames - before, now)
        self._forward(plain)

    def close(self) -> None:
        """Let nothing go any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._held = b""

    def _let_go(self) -> None:
        held, self._held = self._held, b""
        self.receive(held)
        if not self._held:
            self._resume()
