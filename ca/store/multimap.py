"""A dictionary of small dictionaries that spends nothing extra on a key with a single member."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=Hashable)
V = TypeVar("V")


class MultiMap(Generic[K, M, V]):
    """Key → member → value. A lone member is kept as a pair, several as a dictionary (200 octets saved per key)."""

    __slots__ = ("_map",)

    def __init__(self) -> None:
        self._map: dict[K, tuple[M, V] | dict[M, V]] = {}

    def put(self, key: K, member: M, value: V) -> None:
        """Add or replace."""
        held = self._map.get(key)
        if held is None or (isinstance(held, tuple) and held[0] == member):
            self._map[key] = (member, value)
        elif isinstance(held, tuple):
            self._map[key] = {held[0]: held[1], member: value}
        else:
            held[member] = value

    def remove(self, key: K, member: M) -> None:
        """The member must be there."""
        held = self._map[key]
        if isinstance(held, tuple):
            del self._map[key]
            return
        del held[member]
        if len(held) == 1:
            self._map[key] = next(iter(held.items()))

    def values(self, key: K) -> Iterable[V]:
        """Not to be held across a change."""
        held = self._map.get(key)
        if held is None:
            return ()
        return (held[1],) if isinstance(held, tuple) else held.values()

    def count(self, key: K) -> int:
        held = self._map.get(key)
        return 0 if held is None else 1 if isinstance(held, tuple) else len(held)

    def __contains__(self, key: K) -> bool:
        return key in self._map
