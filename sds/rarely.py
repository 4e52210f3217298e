"""Saying the same thing over and over, but not every time."""

from __future__ import annotations

from ca.ports import Clock

AGAIN_SECONDS = 300.0
"""How often what has not changed is worth another line in the log."""


class Rarely:
    """Counts how often the same was to be said, and tells when it is worth saying: when it is new, and now and then."""

    def __init__(self, clock: Clock, *, again_seconds: float = AGAIN_SECONDS) -> None:
        self._clock = clock
        self._again = again_seconds
        self._said = ""
        self._due = float("-inf")
        self.times = 0
        """How often in a row, this time included."""

    def worth(self, what: str) -> bool:
        """Whether `what` is to be said now."""
        self.times = self.times + 1 if what == self._said else 1
        if self.times > 1 and self._clock.monotonic() < self._due:
            return False
        self._said, self._due = what, self._clock.monotonic() + self._again
        return True

    def forget(self) -> None:
        """It is over: the next time is news."""
        self._said, self.times = "", 0
