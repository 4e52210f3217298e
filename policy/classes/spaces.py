"""What is still possible of one attribute: the questions that must be answered yes and no, and a value that does.

A space is never empty: to be asked for one that is gives None. The value is one that reads well where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from policy.attributes import SEPARATOR
from policy.classes.literals import HOST, METHOD, PATH, PRINCIPAL, REQUEST_PRINCIPAL, Literal, Variable
from policy.classes.patterns import PCHAR, Chars, Pattern, literal, plus, star
from policy.classes.texts import Undecided, Work, text_in

Values = tuple[str, ...]
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_DOMAIN: Chars = (False, frozenset(f"{_LOWER}0123456789-._"))
_SEGMENT: Chars = (False, _DOMAIN[1] | frozenset(_LOWER.upper()))
_SEGMENTS: Chars = (False, _SEGMENT[1] | {"/"})
_IN_PATH: Chars = (False, (PCHAR[1] | {"/"}) - {"%"})
_PRINTABLE: Chars = (False, frozenset(map(chr, range(0x21, 0x7F))))

ANY_METHOD, ANY_PATH = "GET", "/"
LOOKS = 2_000
"""Steps after which a value need not look better."""
_LIKELY: dict[Variable, Values] = {METHOD: (ANY_METHOD, "POST", "PUT"), PATH: (ANY_PATH, "/any")}


def _containing(text: str) -> Pattern:
    return Pattern([star(), *literal(text), star()])


def _ending(text: str) -> Pattern:
    return Pattern([star(), *literal(text)])


_DOTS = (_containing("//"), _containing("/./"), _containing("/../"), _ending("/."), _ending("/.."))
Look = tuple[tuple[Pattern, ...], tuple[Pattern, ...]]
"""Values of one of these patterns, and none of those."""
_ID: Look = (
    (Pattern([*plus(_DOMAIN), *literal("/"), *plus(_SEGMENTS)]), Pattern(plus(_DOMAIN))),
    (*_DOTS, _ending("/")),
)
_LOOKS: dict[Variable, tuple[Look, ...]] = {
    PRINCIPAL: (
        ((Pattern([*plus(_DOMAIN), *literal("/ns/"), *plus(_SEGMENT), *literal("/sa/"), *plus(_SEGMENT)]),), _DOTS),
        _ID,
    ),
    PATH: (((Pattern([*literal("/"), star(_IN_PATH)]),), _DOTS),),
    HOST: (((Pattern(plus((False, _DOMAIN[1] | {":"}))),), ()),),
    METHOD: (((Pattern(plus((False, frozenset(_LOWER.upper())))),), ()),),
    REQUEST_PRINCIPAL: (((Pattern([*plus(_PRINTABLE), *literal(SEPARATOR), *plus(_PRINTABLE)]),), ()),),
}
"""What such values look like in the world, the most usual first."""
_READS_WELL = {
    PRINCIPAL: re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*/ns/[a-z0-9-]+/sa/[A-Za-z0-9_-]+"),
    PATH: re.compile(r"/|(?:/[A-Za-z0-9_~!$&'()+,;:@=-][A-Za-z0-9_~!$&'()+,;:@=.-]*)+/?"),
    HOST: re.compile("[a-z0-9.:-]+"),
    METHOD: re.compile("[A-Z]+"),
    REQUEST_PRINCIPAL: re.compile(f"[!-~]+{SEPARATOR}[!-~]+"),
}
"""Guesses that are not looked at more closely: all of them look as usual."""
_PRINTABLE_TEXT = re.compile("[!-~]+")
_OTHERS_LOOK: tuple[Look, ...] = (((Pattern(plus(_PRINTABLE)),), ()),)


@dataclass(frozen=True, slots=True)
class Space:
    """`values` is the example: none is absent, a list has several."""

    variable: Variable
    must: tuple[Literal, ...] = ()
    never: tuple[Literal, ...] = ()
    values: Values = ()
    absent: bool = False
    """It cannot be there, since what is at odds with it is."""

    def matched(self, literal: Literal) -> bool:
        """Whether the example is one of the literal's values."""
        return any(map(literal.test, self.values))

    def few(self) -> list[str] | None:
        """All values that are still possible, where they are written out."""
        finite = next((one.texts for one in self.must if one.texts is not None), None)
        return None if finite is None else [value for value in finite if self._good(value)]

    def _one_of(self, texts: frozenset[str]) -> str | None:
        if self.values and self.values[0] in texts:
            return self.values[0]
        return next((value for value in (sorted(texts) if len(texts) > 1 else texts) if self._good(value)), None)

    def _good(self, value: str) -> bool:
        return all(one.test(value) for one in self.must) and not any(one.test(value) for one in self.never)

    def with_match(self, literal: Literal, work: Work) -> Space | None:
        """Those of which a value is one of the literal's."""
        if self.absent:
            return None
        if literal in self.must:
            return self
        if literal.texts is not None and self.variable.kind != "many":
            value = self._one_of(literal.texts)
            return None if value is None else Space(self.variable, (*self.must, literal), self.never, (value,))
        must = (*self.must, literal)
        if self.matched(literal):
            return Space(self.variable, must, self.never, self.values)
        if self.variable.kind == "many":
            found = found_in(self.variable, (literal,), self.never, work)
            return None if found is None else Space(self.variable, must, self.never, (*self.values, *found))
        values = found_in(self.variable, must, self.never, work)
        return None if values is None else Space(self.variable, must, self.never, values)

    def without_match(self, literal: Literal, work: Work) -> Space | None:
        """Those of which no value is one of the literal's."""
        if literal in self.never or self.absent:
            return self
        never = (*self.never, literal)
        if not self.matched(literal):
            return Space(self.variable, self.must, never, self.values)
        if self.variable.kind != "many":
            values = found_in(self.variable, self.must, never, work)
            return None if values is None else Space(self.variable, self.must, never, values)
        each = [found_in(self.variable, (must,), never, work) for must in self.must]
        if any(found is None for found in each):
            return None
        values = tuple(dict.fromkeys(value for found in each for value in found or ()))
        return Space(self.variable, self.must, never, values)

    def without_any(self) -> Space | None:
        """Those where it is absent."""
        return None if self.must else Space(self.variable, (), self.never, (), absent=True)


def found_in(variable: Variable, must: Sequence[Literal], never: Sequence[Literal], work: Work) -> Values | None:
    """A value that all of `must` match and none of `never`; None where there is none. Raises Undecided."""

    def good(value: str) -> bool:
        return all(one.test(value) for one in must) and not any(one.test(value) for one in never)

    if variable.kind == "condition":
        return (None if never else ("true",)) if must else ()
    finite = next((one.texts for one in must if one.texts is not None), None)
    if finite is not None:
        return next(((value,) for value in sorted(finite) if good(value)), None)
    if variable.kind == "network":
        found = next((value for value in _points([*must, *never]) if good(value)), None)
    elif variable.kind == "port":
        found = next((value for value in map(str, range(8443, 65536)) if good(value)), None)
    elif must:
        found = _text(variable, must, never, work)
    else:
        found = next((value for value in _LIKELY.get(variable, ()) if good(value)), None)
    if found is not None:
        return (found,)
    return None if must else ()


def _points(literals: Iterable[Literal]) -> Iterator[str]:
    """Networks lie in each other or apart, so that one of these is in every set that they make, if anything is: where
    each begins, and where what follows it does."""
    networks = sorted({network for one in literals for network in one.networks}, key=str)
    for network in networks:
        yield str(network.network_address)
    for network in networks:
        after = int(network.broadcast_address) + 1
        if after < 1 << network.max_prefixlen:
            yield str(IPv4Address(after) if network.version == 4 else IPv6Address(after))
    yield from ("0.0.0.0", "::")  # noqa: S104 - the first of all addresses, which no network need begin with


def _text(variable: Variable, must: Sequence[Literal], never: Sequence[Literal], work: Work) -> str | None:
    """Exact: what is guessed is tried, and what is not found by guessing is looked for."""
    looks = _LOOKS.get(variable, _OTHERS_LOOK)
    reads_well = _READS_WELL.get(variable, _PRINTABLE_TEXT).fullmatch
    for value in _guesses(must):
        if reads_well(value) and all(one.test(value) for one in must) and not any(one.test(value) for one in never):
            return value
    sets = [one.patterns for one in must]
    first = _searched(sets, (), never, work)
    if first is None or reads_well(first):
        return first
    for some, but_not in looks:
        found = _tried([*sets, some], but_not, never, work)
        if found is not None:
            return found
    return first


def _tried(
    sets: list[tuple[Pattern, ...]], but_not: Sequence[Pattern], never: Sequence[Literal], work: Work
) -> str | None:
    """One that looks better, if it is found soon: what is there already is as true."""
    try:
        return _searched(sets, but_not, never, Work(LOOKS, work))
    except Undecided:
        return None


def _guesses(must: Sequence[Literal]) -> Iterator[str]:
    for one in must[:4]:
        for pattern in one.patterns[:8]:
            yield from pattern.samples


def _searched(
    sets: list[tuple[Pattern, ...]], but_not: Sequence[Pattern], never: Sequence[Literal], work: Work
) -> str | None:
    """What must not match is asked for only once it did: most of it never does."""
    counted: list[Literal] = []
    while True:
        found = text_in(sets, [*but_not, *(pattern for one in counted for pattern in one.patterns)], work)
        hit = None if found is None else next((one for one in never if one.test(found)), None)
        if hit is None:
            return found
        counted.append(hit)
