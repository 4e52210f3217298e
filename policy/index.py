"""What all rows of a target say about one attribute: a function from a request to the rows that are still possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from policy.attributes import READERS
from policy.matching import fold, folded
from policy.model import Attribute, Clause, Match, Request
from policy.tables import Table

Slot = tuple[Attribute, tuple[str, ...]]
Get = Callable[[Request], str | None]


@dataclass(frozen=True, slots=True)
class Lookup:
    """What rows an attribute leaves: with `get`, those `known` of its value, or `otherwise`, or what `of` finds, or
    `absent`; without, what `whole` says of the request."""

    get: Get | None
    known: dict[str, int]
    absent: int
    otherwise: int | None
    of: Callable[[str], int]
    whole: Callable[[Request], int]

    @property
    def step(self) -> Step:
        """The same as a bare tuple, which is faster to take apart."""
        return (self.get, self.known, self.absent, self.otherwise, self.of if self.get else self.whole)


Step = tuple[Get | None, dict[str, int], int, int | None, Callable[[Any], int]]

_PLAIN: dict[Attribute, Get] = {
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
    asking = 0
    for clause, bit in clauses:
        matches = map(folded, clause.matches) if attribute is Attribute.HOST else clause.matches
        (negative if clause.negated else positive).extend([(match, bit) for match in matches])
        if not clause.negated:
            asking |= bit
    base = everything & ~asking
    return _Rows(attribute, key, base, Table(positive), Table(negative) if negative else _NOTHING).lookup()


_NOTHING = Table(())


def _host(request: Request) -> str | None:
    return None if request.host is None else fold(request.host)


class _Rows:
    """A row is possible if it has no positive clause or one that holds, and no negated clause that matches."""

    __slots__ = ("absent", "attribute", "key", "negative", "positive", "read")

    def __init__(
        self, attribute: Attribute, key: tuple[str, ...], absent: int, positive: Table, negative: Table
    ) -> None:
        self.attribute, self.key, self.absent = attribute, key, absent
        self.positive, self.negative = positive, negative
        self.read = READERS[attribute]

    def lookup(self) -> Lookup:
        """With everything that is known beforehand."""
        plain = not (self.positive.finders or self.negative.finders)
        return Lookup(
            get=_host if self.attribute is Attribute.HOST else _PLAIN.get(self.attribute),
            known=self._known(plain=plain),
            absent=self.absent,
            otherwise=(self.absent | self.positive.present) & ~self.negative.present if plain else None,
            of=self.of,
            whole=self.whole,
        )

    def _known(self, *, plain: bool) -> dict[str, int]:
        """What is found for every text that is written out."""
        if plain and self.negative is _NOTHING:
            always = self.absent | self.positive.present
            return {value: always | rows for value, rows in self.positive.exact.items()}
        return {value: self.of(value) for value in {*self.positive.exact, *self.negative.exact}}

    def of(self, value: str) -> int:
        """The rows that one value leaves."""
        return (self.absent | self.positive.of(value)) & ~self.negative.of(value)

    def whole(self, request: Request) -> int:
        """The rows that a request's values leave, of which there may be any number."""
        yes, no = self.absent, 0
        for value in self.read(request, self.key):
            yes |= self.positive.of(value)
            no |= self.negative.of(value)
        return yes & ~no
