"""Lines that strangers can cause, as often as they like: so many a second, and then how many were left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

MAX_KEYS = 1024


class Sparingly:
    """At most `per_second` lines for each key; the first of a later second says how many there would have been."""

    def __init__(self, per_second: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._monotonic = monotonic
        self._seen: dict[Hashable, tuple[int, int, int]] = {}

    def more(self, key: Hashable) -> dict[str, int] | None:
        """What to add to the line (`left_out`, where lines were), or None when it shall not be written."""
        second = int(self._monotonic())
        began, written, left_out = self._seen.get(key, (second, 0, 0))
        if second != began:
            began, written = second, 0
        if written >= self._per_second:
            self._seen[key] = (began, written, left_out + 1)
            return None
        if key not in self._seen and len(self._seen) >= MAX_KEYS:
            self._seen.clear()
        self._seen[key] = (began, written + 1, 0)
        return {"left_out": left_out} if left_out else {}
