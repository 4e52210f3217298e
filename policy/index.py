"""What all rows of a target say about one attribute: a function from a request to the rows that are still possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

from policy.attributes import READERS
from policy.matching import fold, folded
from policy.model import Attribute, Clause, Match, Request
from policy.tables import Table

Slot = tuple[Attribute, tuple[str, ...]]
Lookup = Callable[[Request], int]

_PLAIN: dict[Attribute, Callable[[Request], str | None]] = {
    Attribute.SOURCE_PRINCIPAL: attrgetter("principal"),
    Attribute.SOURCE_NAMESPACE: attrgetter("principal"),
    Attribute.SOURCE_SERVICE_ACCOUNT: attrgetter("principal"),
    Attribute.SOURCE_TRUST_DOMAIN: attrgetter("principal"),
    Attribute.SOURCE_IP: attrgetter("source_ip"),
    Attribute.REMOTE_IP: attrgetter("remote_ip"),
    Attribute.DESTINATION_IP: attrgetter("destination_ip"),
    Attribute.SNI: attrgetter("sni"),
    Attribute.METHOD: attrgetter("method"),
    Attribute.PATH: attrgetter("path"),
}
"""Attributes of at most one value that need no more than a look. Those of HTTP are in no index for connections."""


def lookup(slot: Slot, clauses: Iterable[tuple[Clause, int]], everything: int) -> Lookup:
    """The function for one slot. `clauses` are those that look at it, each with the bit of its row, at most one negated
    and one not for each row; `everything` is the mask of all rows."""
    attribute, key = slot
    positive: list[tuple[Match, int]] = []
    negative: list[tuple[Match, int]] = []
    base = everything
    for clause, bit in clauses:
        matches = map(folded, clause.matches) if attribute is Attribute.HOST else clause.matches
        (negative if clause.negated else positive).extend((match, bit) for match in matches)
        if not clause.negated:
            base &= ~bit
    return _Lookup(attribute, key, base, Table(positive), Table(negative)).choose()


class _Lookup:
    """A row is possible if it has no positive clause or one that holds, and no negated clause that matches."""

    __slots__ = ("absent", "attribute", "key", "known", "negative", "positive", "read")

    def __init__(self, attribute: Attribute, key: tuple[str, ...], base: int, positive: Table, negative: Table) -> None:
        self.attribute, self.key = attribute, key
        self.absent = base
        self.positive, self.negative = positive, negative
        self.read = READERS[attribute]
        self.known = {value: self.of(value) for value in {*positive.exact, *negative.exact}}

    def of(self, value: str) -> int:
        return (self.absent | self.positive.of(value)) & ~self.negative.of(value)

    def choose(self) -> Lookup:
        """The fastest way to look that will do."""
        get = _PLAIN.get(self.attribute)
        if get is not None:
            return self._plain(get)
        if self.attribute is Attribute.HOST:
            return self._plain(lambda request: None if request.host is None else fold(request.host))
        return self._any

    def _plain(self, get: Callable[[Request], str | None]) -> Lookup:
        known, absent, of = self.known.get, self.absent, self.of
        if not (self.positive.finders or self.negative.finders):
            otherwise = (absent | self.positive.present) & ~self.negative.present
            return lambda request: absent if (value := get(request)) is None else known(value, otherwise)

        def look(request: Request) -> int:
            value = get(request)
            if value is None:
                return absent
            found = known(value)
            return of(value) if found is None else found

        return look

    def _any(self, request: Request) -> int:
        yes, no = self.absent, 0
        for value in self.read(request, self.key):
            yes |= self.positive.of(value)
            no |= self.negative.of(value)
        return yes & ~no
