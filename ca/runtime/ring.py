"""What happened last, within bounds: whoever makes much happen loses his own oldest first, never everybody else's."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many items and how many bytes are kept."""

    items: int
    bytes: int


class FairRing(Generic[T]):
    """Keeps `total`, of each share at most `each`. Beyond the total, whichever share has most loses its oldest."""

    def __init__(self, *, total: Bounds, each: Bounds) -> None:
        self._total = total
        self._each = each
        self._shares: dict[str, deque[tuple[int, int, T]]] = {}
        self._bytes: dict[str, int] = {}
        self._order: list[tuple[int, int, str]] = []
        """A heap of what shares were once, the one that has most first; what is not so any more is passed over."""
        self._used = 0
        self._held = 0
        self._number = 0

    def __len__(self) -> int:
        return self._held

    @property
    def used_bytes(self) -> int:
        """By the sizes that were told."""
        return self._used

    def put(self, share: str, item: T, size: int) -> list[T]:
        """Keep it as the newest; returns what had to go for it. What is larger than a share's room is not kept."""
        if size > min(self._each.bytes, self._total.bytes):
            return [item]
        self._number += 1
        self._shares.setdefault(share, deque()).append((self._number, size, item))
        self._bytes[share] = self._bytes.get(share, 0) + size
        self._used += size
        self._held += 1
        self._note(share)
        gone = []
        while len(self._shares[share]) > self._each.items or self._bytes[share] > self._each.bytes:
            gone.append(self._drop(share))
        while self._held > self._total.items or self._used > self._total.bytes:
            gone.append(self._drop(self._largest()))
        return gone

    def __iter__(self) -> Iterator[T]:
        """All, the newest first."""
        every = sorted((kept for share in self._shares.values() for kept in share), key=lambda kept: -kept[0])
        return (item for _, _, item in every)

    def _rank(self, share: str) -> tuple[int, int, str]:
        """Of several that have as much, the one whose oldest is oldest comes first."""
        return -self._bytes[share], self._shares[share][0][0], share

    def _note(self, share: str) -> None:
        heapq.heappush(self._order, self._rank(share))
        if len(self._order) > 4 * len(self._shares) + 64:
            self._order = [self._rank(name) for name in self._shares]
            heapq.heapify(self._order)

    def _largest(self) -> str:
        while True:
            rank = self._order[0]
            if rank[2] in self._shares and rank == self._rank(rank[2]):
                return rank[2]
            heapq.heappop(self._order)

    def _drop(self, share: str) -> T:
        _, size, item = self._shares[share].popleft()
        self._used -= size
        self._held -= 1
        self._bytes[share] -= size
        if self._shares[share]:
            self._note(share)
        else:
            del self._shares[share], self._bytes[share]
        return item
