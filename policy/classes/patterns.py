"""Sets of texts as chains: one character of a set after the other, some of them any number of times.

Every match that a policy can say is one chain or several, so that whether a text is in some and not in others can be
decided. A state of a chain is the places in it at which a text's next character may stand, as bits of one int.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from policy.attributes import SEPARATOR
from policy.matching import fold, request_principal_parts
from policy.model import Attribute, Match, MatchKind
from policy.templates import MANY, ONE

Chars = tuple[bool, frozenset[str]]
"""(negated, characters)."""
Item = tuple[Chars, bool]
"""Characters, and whether any number of them may stand there."""

ANY: Chars = (True, frozenset())
NO_LINE_FEED: Chars = (True, frozenset("\n"))
NO_SLASH: Chars = (True, frozenset("/"))
PCHAR: Chars = (
    False,
    frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+,;=:@"),
)
PCHAR_OR_SLASH: Chars = (False, PCHAR[1] | {"/"})
MAX_REMEMBERED = 512
_FILLINGS = (("any", "any"), ("any", "sa/any"), ("", ""))
"""Of what may be anything, and of the last such place."""
_OPERATORS = re.compile(f"({re.escape(MANY)}|{re.escape(ONE)})")


def accepts(chars: Chars, character: str) -> bool:
    """Whether a character is one of those."""
    return (character in chars[1]) != chars[0]


@lru_cache(maxsize=4096)
def one(character: str) -> Item:
    """This character, once."""
    return ((False, frozenset(character)), False)


@lru_cache(maxsize=4096)
def either_case(character: str) -> Chars:
    """An ASCII letter in both cases, anything else as it is."""
    forms = (character.lower(), character.upper()) if character.isascii() else (character,)
    return False, frozenset(forms)


def literal(text: str) -> list[Item]:
    """Exactly this text."""
    return list(map(one, text))


def star(chars: Chars = ANY) -> Item:
    """Any number of them."""
    return (chars, True)


def plus(chars: Chars) -> list[Item]:
    """At least one of them."""
    return [(chars, False), (chars, True)]


class Pattern:
    """One chain."""

    __slots__ = (
        "_samples",
        "_tables",
        "accepting",
        "forever",
        "head",
        "is_prefix",
        "items",
        "stars",
        "start",
        "tail",
        "whole",
    )

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = tuple(items)
        self.stars = sum(1 << n for n, (_, many) in enumerate(self.items) if many)
        self.accepting = 1 << len(self.items)
        self.start = self.closed(1)
        self.head = _fixed(self.items)
        """What every text begins with."""
        self.tail = _fixed(self.items[::-1])[::-1]
        self.whole = len(self.head) == len(self.items)
        """There is no other text."""
        self.is_prefix = len(self.head) == len(self.items) - 1 and self.items[-1] == star()
        """Nothing more is asked of a text."""
        self._tables: dict[str, tuple[int, int]] = {}
        self._samples: tuple[str, ...] | None = None
        self.forever = self._forever()
        """Places from which every text is accepted."""

    @property
    def is_anything(self) -> bool:
        """Whether every text is in the set."""
        return bool(self.start & self.forever)

    def _forever(self) -> int:
        found = 0
        for number in range(len(self.items) - 1, -1, -1):
            chars, many = self.items[number]
            if not many:
                break
            if chars == ANY:
                found |= 1 << number
        return found

    def may_meet(self, other: Pattern) -> bool:
        """False where no text is in both sets, as far as what they begin and end with tells."""
        heads, tails = min(len(self.head), len(other.head)), min(len(self.tail), len(other.tail))
        if self.head[:heads] != other.head[:heads] or (tails and self.tail[-tails:] != other.tail[-tails:]):
            return False
        return not (
            (self.whole and len(self.head) < len(other.head)) or (other.whole and len(other.head) < len(self.head))
        )

    @property
    def samples(self) -> tuple[str, ...]:
        """Texts that are likely in the set: with something where anything may stand, and with nothing."""
        if self._samples is None:
            self._samples = tuple("".join(self._sample(*filling)) for filling in _FILLINGS)
        return self._samples

    def _sample(self, filling: str, last: str) -> Iterator[str]:
        for number, ((negated, chars), many) in enumerate(self.items):
            if many:
                yield (last if number == len(self.items) - 1 else filling) if (negated, chars) == ANY else ""
            else:
                yield ("x" if "x" not in chars else "y") if negated else min(chars, key=lambda c: (not c.islower(), c))

    def closed(self, state: int) -> int:
        """With the places that are reached by leaving out what may be left out."""
        while (more := state | ((state & self.stars) << 1)) != state:
            state = more
        return state

    def table(self, character: str) -> tuple[int, int]:
        """The places that the character moves on, and those where it may stay."""
        known = self._tables.get(character)
        if known is None:
            once = stay = 0
            for number, (chars, many) in enumerate(self.items):
                if (character in chars[1]) != chars[0]:
                    if many:
                        stay |= 1 << number
                    else:
                        once |= 1 << number
            known = once, stay
            if len(self.items) <= MAX_REMEMBERED:
                self._tables[character] = known
        return known

    def accepts(self, text: str) -> bool:
        """Whether a text is in the set."""
        state = self.start
        for character in text:
            once, stay = self.table(character)
            state = self.closed(((state & once) << 1) | (state & stay))
        return bool(state & self.accepting)


def _fixed(items: tuple[Item, ...]) -> str:
    found = []
    for (negated, chars), many in items:
        if negated or many or len(chars) != 1:
            break
        found.append(next(iter(chars)))
    return "".join(found)


def patterns_of(attribute: Attribute, match: Match) -> tuple[Pattern, ...]:
    """The texts that a match is for; the same objects for the same match, unless it is very long."""
    return (
        _remembered(attribute is Attribute.HOST, match)
        if len(match.text) <= MAX_REMEMBERED
        else _made(attribute is Attribute.HOST, match)
    )


def _made(folded: bool, match: Match) -> tuple[Pattern, ...]:
    if folded:
        return tuple(Pattern(map(_folded, chain)) for chain in _chains(Match(match.kind, fold(match.text))))
    return tuple(map(Pattern, _chains(match)))


_remembered = lru_cache(maxsize=8192)(_made)


def _folded(item: Item) -> Item:
    """Of a folded text both cases."""
    (negated, chars), many = item
    return item if negated else (either_case(next(iter(chars))), many)


def _chains(match: Match) -> list[list[Item]]:
    text = match.text
    match match.kind:
        case MatchKind.EXACT:
            return [literal(text)]
        case MatchKind.PREFIX:
            return [[*literal(text), star()]]
        case MatchKind.SUFFIX:
            return [[star(), *literal(text)]]
        case MatchKind.PRESENT:
            return [[star()]]
        case MatchKind.NON_EMPTY:
            return [plus(NO_LINE_FEED)]
        case MatchKind.TEMPLATE:
            return [_template(text)]
        case MatchKind.NAMESPACE:
            return [[star(), *literal("/ns/"), *_glob(text, ANY), *literal("/"), star()]]
        case MatchKind.TRUST_DOMAIN:
            return [] if "/" in text else [[*_glob(text, NO_SLASH), *literal("/"), star()]]
        case MatchKind.SERVICE_ACCOUNT:
            return _service_account(text)
        case MatchKind.REQUEST_PRINCIPAL:
            issuer, subject = request_principal_parts(text)
            return joined(_chains(issuer), _chains(subject))
    raise ValueError(f"{match.kind} is no match of texts")


def _glob(text: str, chars: Chars) -> list[Item]:
    first, *rest = text.split("*")
    return [*literal(first), *(item for part in rest for item in (star(chars), *literal(part)))]


def _template(text: str) -> list[Item]:
    found: list[Item] = []
    for part in _OPERATORS.split(text):
        found += plus(PCHAR) if part == ONE else [star(PCHAR_OR_SLASH)] if part == MANY else literal(part)
    return found


def _service_account(text: str) -> list[list[Item]]:
    namespace, _, account = text.partition("/")
    begin = [*plus(ANY), *literal(f"/ns/{namespace}/")]
    return [
        [*begin, *between, *literal(f"sa/{account}"), *end]
        for between in ([], [*plus(ANY), *literal("/")])
        for end in ([], [*literal("/"), *plus(ANY)])
    ]


def joined(issuers: list[list[Item]], subjects: list[list[Item]]) -> list[list[Item]]:
    """Issuer and subject as one text, with SEPARATOR between them, which no issuer has in it."""
    return [
        [*inside, *literal(SEPARATOR), *subject]
        for issuer in issuers
        if (inside := _without_separator(issuer)) is not None
        for subject in subjects
    ]


def _without_separator(items: list[Item]) -> list[Item] | None:
    if any(not chars[0] and SEPARATOR in chars[1] for chars, _ in items):
        return None
    return [((True, chars[1] | {SEPARATOR}) if chars[0] else chars, many) for chars, many in items]


@lru_cache(maxsize=4096)
def part_of_request_principal(match: Match, part: str) -> tuple[Pattern, ...]:
    """The texts of issuer and subject together, of which one part (`iss` or `sub`) is what a match is for."""
    anything = [[star()]]
    chains = _chains(match)
    return tuple(map(Pattern, joined(chains, anything) if part == "iss" else joined(anything, chains)))
