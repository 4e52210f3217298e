"""How much is kept in memory on behalf of each workload, so that none of them fills what is for all.

Sizes are estimates, near enough to bound what a workload can make the agent keep by its own choice: the selectors of
its processes, the names that its Envoys ask for, the answers that are made for its choice of names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ca.errors import Exhausted

OFFERED = 0.5
"""The part of a share's room that may go to what is only kept to save time, so that it keeps nothing else out."""


class Memory:
    """Bytes by share; each may have `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used: Counter[str] = Counter()

    def used(self, share: str) -> int:
        """Bytes that are kept for a share now."""
        return self._used[share]

    def room(self, share: str) -> Room:
        """What one share may use."""
        return Room(self, share)

    def offer(self, share: str, size: int) -> bool:
        """Take `size` bytes for what need not be kept; False where there is no room for it."""
        if self._used[share] + size > self._limit * OFFERED:
            return False
        self._used[share] += size
        return True

    def change(self, share: str, by: int) -> None:
        """Take so many bytes more, or give them back. Raises Exhausted (MEMORY_LIMIT)."""
        if by > 0 and self._used[share] + by > self._limit:
            raise Exhausted(
                f"the agent keeps {self._used[share]} bytes for this workload, and {by} more are beyond its limit",
                reason="MEMORY_LIMIT",
                hint="ask for fewer names on fewer streams, or raise the agent's `limits`",
            )
        self._used[share] += by
        if not self._used[share]:
            del self._used[share]

    def give_back(self, taken: Counter[str]) -> None:
        """Bytes by share."""
        for share, size in taken.items():
            self.change(share, -size)


@dataclass(frozen=True, slots=True)
class Room:
    """One share's part of the memory."""

    memory: Memory
    share: str

    @contextmanager
    def charge(self) -> Iterator[Charge]:
        """Something whose size changes, while the block runs."""
        charge = Charge(self)
        try:
            yield charge
        finally:
            charge.set(0)


class Charge:
    """The size of one thing that is kept for a share."""

    __slots__ = ("_room", "size")

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size = 0

    def set(self, size: int) -> None:
        """It has this many bytes now. Raises Exhausted when it has grown beyond the limit; then it is as it was."""
        if size != self.size:
            self._room.memory.change(self._room.share, size - self.size)
            self.size = size
