"""How long to wait before the next try."""

from __future__ import annotations

from collections.abc import Callable

from ca.errors import BurgeeError

FIRST_SECONDS = 0.25
FACTOR = 1.8
SPREAD = 0.2
LEAST_CAP_SECONDS = 0.5


class Backoff:
    """Grows from a quarter of a second (or another first pause) to the caller's cap, each time spread by ±20 %."""

    def __init__(
        self,
        jitter: Callable[[], float],
        *,
        first_seconds: float = FIRST_SECONDS,
        factor: float = FACTOR,
        spread: float = SPREAD,
    ) -> None:
        self._jitter = jitter
        self._first = first_seconds
        self._factor = factor
        self._spread = spread
        self._failures = 0

    def next(self, cap_seconds: float) -> float:
        """The pause after one more failure."""
        seconds = min(self._first * self._factor**self._failures, cap_seconds)
        self._failures = min(self._failures + 1, 32)
        return seconds * (1 + self._spread * self._jitter())

    def reset(self) -> None:
        """It worked."""
        self._failures = 0


def hurried(cap_seconds: float, left_seconds: float | None) -> float:
    """The longest pause while something ends in `left_seconds`: a tenth of that, but half a second at least."""
    return cap_seconds if left_seconds is None else min(cap_seconds, max(left_seconds / 10, LEAST_CAP_SECONDS))


def at_least(seconds: float, error: BurgeeError, jitter: float) -> float:
    """`seconds`, or longer where the server said when to come again: never sooner than it said, and not all at once.

    `jitter` is -1 to 1.
    """
    asked = error.retry_after_seconds
    return seconds if asked is None else max(seconds, asked * (1 + SPREAD * abs(jitter)))
