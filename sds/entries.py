"""Which registration entries a caller's selectors earn: an index by selector, flat in the number of entries."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector


class EntryIndex:
    """Entries by id, each filed under the rarest of its selectors, so that a lookup touches few candidates."""

    def __init__(self) -> None:
        self._by_id: dict[str, RegistrationEntry] = {}
        self._filed_under: dict[str, Selector] = {}
        self._buckets: dict[Selector, set[str]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, entry_id: str) -> RegistrationEntry | None:
        return self._by_id.get(entry_id)

    def all(self) -> Iterable[RegistrationEntry]:
        return self._by_id.values()

    def put(self, entry: RegistrationEntry) -> bool:
        """Add or replace; False when nothing changed."""
        if self._by_id.get(entry.id) == entry:
            return False
        self.remove(entry.id)
        self._by_id[entry.id] = entry
        # An entry that belongs into a secret store is never a workload's; one without selectors would be everybody's.
        if entry.selectors and not entry.store_svid:
            rarest = min(sorted(entry.selectors), key=lambda s: len(self._buckets.get(s, ())))
            self._filed_under[entry.id] = rarest
            self._buckets.setdefault(rarest, set()).add(entry.id)
        return True

    def remove(self, entry_id: str) -> bool:
        """False when it was not there."""
        if self._by_id.pop(entry_id, None) is None:
            return False
        selector = self._filed_under.pop(entry_id, None)
        if selector is not None:
            bucket = self._buckets[selector]
            bucket.discard(entry_id)
            if not bucket:
                del self._buckets[selector]
        return True

    def matching(self, selectors: frozenset[Selector], now: datetime) -> tuple[RegistrationEntry, ...]:
        """Entries whose selectors the caller has all of, and which have not expired, by ascending id.

        Workload API §8 (F59): the order is stable and the first is the default identity.
        """
        found = []
        for selector in selectors:
            for entry_id in self._buckets.get(selector, ()):
                entry = self._by_id[entry_id]
                if entry.selectors <= selectors and not _expired(entry, now):
                    found.append(entry)
        return tuple(sorted(found, key=lambda entry: entry.id))


def _expired(entry: RegistrationEntry, now: datetime) -> bool:
    return entry.expires_at is not None and entry.expires_at <= now


def is_partial(entry: RegistrationEntry) -> bool:
    """Whether an entry's parent, TTLs and DNS names are unknown: it was polled with the mask of SPIRE's agents.

    Such an entry has the bare trust domain for a parent, which no server accepts in an entry.
    """
    return entry.parent_id.is_trust_domain_id


def unique_hints(entries: Iterable[RegistrationEntry]) -> dict[str, str]:
    """Entry id → hint, where a hint that several entries have stays with the oldest and the others lose theirs.

    Workload API §5.2.1 and §6.2.1 (F19, F30): non-empty hints in one response are unique.
    """
    keepers: dict[str, RegistrationEntry] = {}
    for entry in entries:
        rival = keepers.get(entry.hint)
        if entry.hint and (rival is None or _age(entry) < _age(rival)):
            keepers[entry.hint] = entry
    return {entry.id: hint for hint, entry in keepers.items()}


def _age(entry: RegistrationEntry) -> tuple[float, str]:
    return (entry.created_at.timestamp() if entry.created_at else 0.0, entry.id)
