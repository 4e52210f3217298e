"""Entries that this process has just created, for whoever follows the change log: they need not be read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ca.identity.entry import RegistrationEntry
from ca.store.values import Change

MAX_KEPT = 10_000


class Created:
    """By the mark of the change that made each, which is like no other: what a rollback took away is never found."""

    def __init__(self) -> None:
        self._entries: dict[str, RegistrationEntry] = {}

    def add(self, changes: Sequence[Change], entries: Sequence[RegistrationEntry]) -> None:
        """One change for each entry, in order."""
        self._entries |= zip((change.mark for change in changes), entries, strict=True)
        while len(self._entries) > MAX_KEPT:
            del self._entries[next(iter(self._entries))]

    def among(self, changes: Sequence[Change]) -> dict[str, RegistrationEntry]:
        """By ID, those whose creation is the one thing that these changes tell of them."""
        told = Counter(change.name for change in changes if change.kind == "entry")
        return {
            change.name: entry
            for change in changes
            if change.kind == "entry" and told[change.name] == 1 and (entry := self._entries.get(change.mark))
        }

    def drop(self, changes: Sequence[Change]) -> None:
        """They were followed."""
        for change in changes:
            self._entries.pop(change.mark, None)
