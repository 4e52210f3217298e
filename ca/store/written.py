"""What this process has just written, for whoever follows the change log: it need not be read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, TypeVar

from ca.store.values import Change, ChangeKind

T = TypeVar("T")

MAX_KEPT = 10_000


class Written(Generic[T]):
    """By the mark of the change that wrote each, which is like no other: what a rollback took away is never found."""

    def __init__(self, kind: ChangeKind) -> None:
        self._kind = kind
        self._values: dict[str, T] = {}

    def add(self, changes: Sequence[Change], values: Sequence[T]) -> None:
        """One change for each value, in order."""
        self._values |= zip((change.mark for change in changes), values, strict=True)
        while len(self._values) > MAX_KEPT:
            del self._values[next(iter(self._values))]

    def among(self, changes: Sequence[Change]) -> dict[str, T]:
        """By name, those whose writing is the one thing that these changes tell of them."""
        told = Counter(change.name for change in changes if change.kind == self._kind)
        return {
            change.name: value
            for change in changes
            if change.kind == self._kind and told[change.name] == 1 and (value := self._values.get(change.mark))
        }

    def drop(self, changes: Sequence[Change]) -> None:
        """They were followed."""
        for change in changes:
            self._values.pop(change.mark, None)
