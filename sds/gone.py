"""Entries that this agent had a while ago: whoever asks why an identity is gone finds out which entry gave it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from ca.identity.entry import RegistrationEntry
from ca.runtime.ring import Bounds, FairRing

KEPT = Bounds(items=128, bytes=128 << 10)
ENTRY_BYTES = 800
SELECTOR_BYTES = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """An entry as it was last, and when the server took it away."""

    entry: RegistrationEntry
    since: datetime

    @property
    def expired(self) -> bool:
        """Whether it had run out; otherwise it was deleted, or moved away from this agent."""
        return self.entry.expires_at is not None and self.entry.expires_at <= self.since


class GoneEntries:
    """Bounded; the newest first."""

    def __init__(self) -> None:
        self._ring: FairRing[Gone] = FairRing(total=KEPT, each=KEPT)

    def __iter__(self) -> Iterator[Gone]:
        return iter(self._ring)

    def put(self, entry: RegistrationEntry, since: datetime) -> None:
        """It was taken away just now."""
        selectors = sum(SELECTOR_BYTES + len(selector.value) for selector in entry.selectors)
        self._ring.put("", Gone(entry=entry, since=since), ENTRY_BYTES + selectors)

    def clear(self) -> None:
        """After a ban nothing is remembered."""
        self._ring = FairRing(total=KEPT, each=KEPT)
