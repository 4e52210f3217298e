"""How long to wait before the next try."""

from __future__ import annotations

from collections.abc import Callable

FIRST_SECONDS = 0.25
FACTOR = 1.8
SPREAD = 0.2


class Backoff:
    """Grows from a quarter of a second to the caller's cap, each time spread by ±20 %."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._failures = 0

    def next(self, cap_seconds: float) -> float:
        """The pause after one more failure."""
        seconds = min(FIRST_SECONDS * FACTOR**self._failures, cap_seconds)
        self._failures = min(self._failures + 1, 32)
        return seconds * (1 + SPREAD * self._jitter())

    def reset(self) -> None:
        """It worked."""
        self._failures = 0
