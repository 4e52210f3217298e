"""How much may be taken away at once: one mistake must not take every identity of a cluster."""

from __future__ import annotations

from collections import deque

from ca.controller.config import DeletionGuardConfig
from ca.ports import Clock


class DeletionGuard:
    """Counts deletions over a window. What was seen to go (a pod that was deleted) is not counted, and always may."""

    def __init__(self, config: DeletionGuardConfig, clock: Clock) -> None:
        self.config = config
        self.held = 0
        """How many it refused last; 0 when none."""
        self._clock = clock
        self._past: deque[tuple[float, int]] = deque()

    def permits(self, count: int, existing: int, *, allowed: int = 0) -> bool:
        """Whether `count` of `existing` entries may go now. `allowed`: so many somebody said may."""
        if count == 0 or count <= allowed:
            self.held = 0
            return True
        recent = self._recent()
        limit = max(self.config.entries, int(self.config.share * (existing + recent)))
        if self.config.share < 1 and count + recent > limit:
            self.held = count
            return False
        self.held = 0
        return True

    def deleted(self, count: int) -> None:
        if count:
            self._past.append((self._clock.monotonic(), count))

    def _recent(self) -> int:
        begin = self._clock.monotonic() - self.config.window_seconds
        while self._past and self._past[0][0] < begin:
            self._past.popleft()
        return sum(count for _, count in self._past)
