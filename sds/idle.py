"""Views that nobody looks at, kept a while for the next call of the same workload."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Idle(Generic[K, V]):
    """So many in all. Beyond that the oldest goes of the share that has most: nobody puts out what others use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[K, tuple[V, str]] = OrderedDict()
        self._shares: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[V]:
        return (value for value, _ in self._kept.values())

    def put(self, key: K, value: V, share: str) -> None:
        """Keep it for `share`, which used it last."""
        self.pop(key)
        self._kept[key] = (value, share)
        self._shares[share] += 1
        while len(self._kept) > self._limit:
            most = max(self._shares, key=lambda name: self._shares[name])
            self.pop(next(key for key, (_, owner) in self._kept.items() if owner == most))

    def pop(self, key: K) -> V | None:
        """Take it out; None when it is not here."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        value, share = found
        self._shares[share] -= 1
        if not self._shares[share]:
            del self._shares[share]
        return value

    def clear(self) -> None:
        self._kept.clear()
        self._shares.clear()
