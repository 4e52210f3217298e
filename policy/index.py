"""What all rows of a target say about one attribute: a function from a request to the rows that are still possible."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from policy.attributes import READERS
from policy.matching import fold
from policy.model import Attribute, Request
from policy.pieces import Column, Matches, Slot
from policy.tables import Table

Get = Callable[[Request], str | None]


class Lookup(NamedTuple):
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


def lookup(slot: Slot, column: Column, everything: int) -> Lookup:
    """The function for one slot. `column` is what the rows say about it, each with at most one negated clause and one
    that is not; `everything` is the mask of all rows."""
    attribute, key = slot
    negative = Table(column.negated) if column.negated else _NOTHING
    base = everything & ~column.asking
    return _Rows(attribute, key, base, Table(column.positive), negative).lookup()


_NOTHING = Table(Matches())


def _host(request: Request) -> str | None:
    return None if request.host is None else fold(request.host)


class _Rows:
    """A row is possible if it has no positive clause or one that holds, and no negated clause that matches."""

    __slots__ = ("_found", "absent", "attribute", "key", "negative", "positive", "read")

    def __init__(
        self, attribute: Attribute, key: tuple[str, ...], absent: int, positive: Table, negative: Table
    ) -> None:
        self.attribute, self.key, self.absent = attribute, key, absent
        self.positive, self.negative = positive, negative
        self.read = READERS[attribute]
        self._found: dict[str, int] = {}

    def lookup(self) -> Lookup:
        """With everything that is known beforehand."""
        plain = not (self.positive.finders or self.negative.finders)
        return Lookup(
            get=_host if self.attribute is Attribute.HOST else _PLAIN.get(self.attribute),
            known=self._plainly() if plain else self._found,
            absent=self.absent,
            otherwise=(self.absent | self.positive.present) & ~self.negative.present if plain else None,
            of=self.of,
            whole=self.whole,
        )

    def _plainly(self) -> dict[str, int]:
        """What is found for every text that is written out, where nothing else is written."""
        if self.negative is _NOTHING:
            always = self.absent | self.positive.present
            if not always:
                return self.positive.exact
            return {value: always | rows for value, rows in self.positive.exact.items()}
        return {value: self._of(value) for value in {*self.positive.exact, *self.negative.exact}}

    def of(self, value: str) -> int:
        """The rows that one value leaves. For a text that is written out they are remembered."""
        found = self._of(value)
        if value in self.positive.exact or value in self.negative.exact:
            self._found[value] = found
        return found

    def _of(self, value: str) -> int:
        return (self.absent | self.positive.of(value)) & ~self.negative.of(value)

    def whole(self, request: Request) -> int:
        """The rows that a request's values leave, of which there may be any number."""
        yes, no = self.absent, 0
        for value in self.read(request, self.key):
            yes |= self.positive.of(value)
            no |= self.negative.of(value)
        return yes & ~no
