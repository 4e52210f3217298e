"""Pauses between attempts at something that failed: longer each time, none the same, none too long for what is left."""

from __future__ import annotations

import random

from ca.errors import BurgeeError
from ca.ports import Clock

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 8.0
"""What was away is found back within ten seconds of its return."""
SHARE = 8
"""At least so many attempts fit into the time that is left."""


class Retry:
    """`error` is the last failure, None after a success."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._at = 0.0
        self.error: BurgeeError | None = None

    @property
    def seconds_left(self) -> float:
        """Until the next attempt; 0: now."""
        return max(0.0, self._at - self._clock.monotonic()) if self.error is not None else 0.0

    def failed(self, error: BurgeeError, *, seconds_left: float = LONGEST_SECONDS * SHARE) -> None:
        """`seconds_left` is how long there is before a success is too late."""
        longest = max(FIRST_SECONDS, min(LONGEST_SECONDS, seconds_left / SHARE))
        pause = min(FIRST_SECONDS * 2 ** min(self._failures, 16), longest)
        self._failures += 1
        self._at = self._clock.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 (spreads servers, no secret)
        self.error = error

    def succeeded(self) -> None:
        self._failures = 0
        self.error = None
