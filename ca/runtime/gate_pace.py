"""How fast a share of a listener may begin calls: whoever is faster is read more slowly, and nobody else waits.

gRPC hands calls over one at a time, in the order in which they came. So a share may begin only so many calls per
second, and have only few begun that nobody has looked at yet: a neighbour's call waits behind those few at most.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from ca.runtime import metrics
from ca.runtime.gate_h2 import PREFACE, FrameTracker

BURST_SECONDS = 2.0
"""What may be begun at once after a pause: as many calls as in so long a time."""

MAX_UNSEEN_CALLS = 64
"""Of one share: begun, and not yet looked at."""

LOST_SECONDS = 1.0
"""Calls of which none is looked at for so long were cancelled before anybody could."""

MAX_SHARES = 1024
SLOWED = metrics.counter("gate_slowed", "Reads put off because a caller begins calls too fast.", ["listener"])


@dataclass(slots=True)
class _Account:
    calls: float
    at: float
    unseen: int = 0
    moved: float = 0.0
    held: OrderedDict[Callable[[], bool], None] = field(default_factory=OrderedDict)
    turn: float = 0.0
    """When the last of those that wait for another call was told to come again."""


class Pace:
    """A token bucket and a bound on unseen calls for each share. `now` is the loop's time in seconds."""

    def __init__(self, calls_per_second: float, *, max_unseen: int = MAX_UNSEEN_CALLS) -> None:
        self._rate = calls_per_second
        self._max_unseen = max_unseen
        self._accounts: dict[str, _Account] = {}

    def allowance(self, share: str, now: float) -> int:
        """How many calls the share may begin now."""
        account = self._account(share, now)
        if account.unseen >= self._max_unseen and now - account.moved >= LOST_SECONDS:
            account.unseen = 0
        return max(0, min(int(account.calls), self._max_unseen - account.unseen))

    def wait_seconds(self, share: str, now: float) -> float:
        """How long until the share may begin another call, unless one of its calls is seen before; 0 when it may.

        Of several that wait each gets a turn of its own: a thousand connections that all came again for the one next
        call would keep the loop busy.
        """
        if self.allowance(share, now):
            return 0.0
        account = self._account(share, now)
        if account.calls < 1:
            next_call = now + (1 - account.calls) / self._rate
            all_had_theirs = now + max(len(account.held), 1) / self._rate
            account.turn = min(max(next_call, account.turn + 1 / self._rate), all_had_theirs)
            return account.turn - now
        return max(0.0, account.moved + LOST_SECONDS - now)

    def spend(self, share: str, frames: int, calls: int, now: float) -> None:
        """So many header frames have been let through, which began so many calls."""
        account = self._account(share, now)
        account.calls -= frames
        if calls and not account.unseen:
            account.moved = now
        account.unseen += calls

    def seen(self, share: str, calls: int, now: float) -> None:
        """So many of them have been looked at, or cannot be any more; another may begin."""
        account = self._account(share, now)
        account.unseen = max(0, account.unseen - calls)
        account.moved = now
        while account.held and not account.held.popitem(last=False)[0]():
            pass

    def hold(self, share: str, go_on: Callable[[], bool], now: float) -> None:
        """`go_on` is called, once, when one of the share's calls has been seen; False gives the turn away."""
        self._account(share, now).held[go_on] = None

    def leave(self, share: str, go_on: Callable[[], bool]) -> None:
        """Undoes `hold`, whether there was one or not."""
        account = self._accounts.get(share)
        if account is not None:
            account.held.pop(go_on, None)

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
            share: account
            for share, account in self._accounts.items()
            if account.held or now - account.at < 2 * BURST_SECONDS
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
        self._unseen = 0
        self._held = b""
        self._queued = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def receive(self, plain: memoryview | bytes) -> None:
        """The next bytes from the client."""
        now = self._loop.time()
        used = self._let_through(plain, now)
        if used == len(plain):
            return
        self._slowed()
        self._held = bytes(plain[used:])
        self._pause()
        if not self._queued:
            self._queued = True
            self._pace.hold(self._share, self._called, now)
        self._timer = self._loop.call_later(self._pace.wait_seconds(self._share, now), self._let_go)

    def seen(self) -> None:
        """A call of this connection has been looked at."""
        if self._unseen:
            self._unseen -= 1
            self._pace.seen(self._share, 1, self._loop.time())

    def close(self) -> None:
        """Let nothing go any more; nobody will look at what was begun."""
        self._held = b""
        self._stop_timer()
        self._pace.leave(self._share, self._called)
        if self._unseen:
            unseen, self._unseen = self._unseen, 0
            self._pace.seen(self._share, unseen, self._loop.time())

    def _let_through(self, plain: memoryview | bytes, now: float) -> int:
        frames, calls = self._frames.header_frames, self._frames.headers
        used = self._frames.feed(plain, allowed=self._pace.allowance(self._share, now))
        frames, calls = self._frames.header_frames - frames, self._frames.headers - calls
        if frames:
            self._unseen += calls
            self._pace.spend(self._share, frames, calls, now)
        if used:
            self._forward(plain[:used])
        return used

    def _called(self) -> bool:
        self._queued = False
        if not self._held:
            return False
        self._let_go()
        return True

    def _let_go(self) -> None:
        self._stop_timer()
        held, self._held = self._held, b""
        self.receive(held)
        if not self._held:
            self._resume()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
