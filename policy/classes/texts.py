"""Finds a text that is in all of some sets and in none of others, or proves that there is none.

All chains are followed at once, breadth first, over one character of each kind that they tell apart; a state that was
seen is not followed again, so that the search ends. How many states may be seen is bounded: beyond that nothing is
claimed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache

from policy.classes.patterns import Chars, Pattern, accepts

Set = tuple[Pattern, ...]
"""A text is in it if it is in one of its patterns."""

_OTHERS = "xyzabcdefghijklmnopqrstuvw0123456789ABCXYZ-_ .~é\u2603"


class Undecided(Exception):
    """The work was more than it may be: nothing is claimed."""


class Work:
    """How much may still be done, in steps of some microseconds; what is done here counts for `whole`, too, apart from
    the first `free` steps, so that many small questions are no large one."""

    __slots__ = ("_free", "_left", "_whole")

    def __init__(self, steps: int, whole: Work | None = None, *, free: int = 0) -> None:
        self._left, self._whole, self._free = steps, whole, steps - free

    def spend(self, steps: int = 1) -> None:
        """Counts some. Raises Undecided beyond what may be."""
        self._left -= steps
        if self._left < 0:
            raise Undecided("there are too many ways in which the rules meet")
        if self._whole is not None and self._left < self._free:
            self._whole.spend(steps)


def text_in(sets: Sequence[Set], without: Sequence[Pattern], work: Work) -> str | None:
    """A shortest text in each of `sets` and in none of `without`; None where there is none. Raises Undecided."""
    narrow = _narrowed(dict.fromkeys(some for some in sets if not any(pattern.is_anything for pattern in some)))
    if narrow is None or any(_covered(some, without) for some in narrow):
        return None
    return _found(narrow, tuple(dict.fromkeys(without)), work)


MAX_PAIRS = 4096


def _narrowed(sets: Iterable[Set]) -> tuple[Set, ...] | None:
    """Without patterns that no other set has a text for, by what their texts begin and end with; None where nothing is
    left of one."""
    found = tuple(sets)
    if sum(map(len, found)) ** 2 > MAX_PAIRS:
        return found
    narrow = []
    for number, some in enumerate(found):
        others = [other for at, other in enumerate(found) if at != number]
        kept = tuple(p for p in some if all(any(p.may_meet(q) for q in other) for other in others))
        if not kept:
            return None
        narrow.append(kept)
    return tuple(narrow)


def _covered(some: Set, without: Sequence[Pattern]) -> bool:
    """Whether what must not match says no more than how texts begin, and all of the set's begin so."""
    return any(q.is_prefix and all(p.head.startswith(q.head) for p in some) for q in without)


def _found(sets: tuple[Set, ...], without: tuple[Pattern, ...], work: Work) -> str | None:
    known = _KNOWN.get((sets, without))
    if known is None:
        size = sum(len(pattern.items) for some in (*sets, without) for pattern in some)
        work.spend(1 + size // 4)  # for the tables of the walk
        known = (_Walk(sets, without).found(work),)
        if size > _MAX_SIZE:
            return known[0]
        if len(_KNOWN) >= _MAX_KNOWN:
            _KNOWN.clear()
        _KNOWN[sets, without] = known
    return known[0]


_MAX_KNOWN, _MAX_SIZE = 4096, 4096
_KNOWN: dict[tuple[tuple[Set, ...], tuple[Pattern, ...]], tuple[str | None]] = {}
"""What was found for patterns, which are the same objects for the same matches."""


class _Walk:
    """One search. The states of all chains are one int, each chain's places above those of the one before."""

    def __init__(self, sets: tuple[Set, ...], without: tuple[Pattern, ...]) -> None:
        self.start = self.stars = self.never = self.forever = at = 0
        self.sets: list[tuple[int, int]] = []
        """Of each set: all places, and those at which a text may end."""
        self.chains: list[tuple[Pattern, int]] = []
        """Each with its lowest place."""
        for number, some in enumerate((*sets, without)):
            everywhere = ends = 0
            for pattern in some:
                self.chains.append((pattern, at))
                self.start |= pattern.start << at
                self.stars |= pattern.stars << at
                everywhere |= ((pattern.accepting << 1) - 1) << at
                ends |= pattern.accepting << at
                if number == len(sets):
                    self.forever |= pattern.forever << at
                at += len(pattern.items) + 1
            if number < len(sets):
                self.sets.append((everywhere, ends))
            else:
                self.never = ends
        self.places = at
        self.head = max((some[0].head for some in sets if len(some) == 1), key=len, default="")
        """What every text begins with."""

    def found(self, work: Work) -> str | None:
        start = self._through_head()
        if start is None:
            return None
        letters = _letters({chars for pattern, _ in self.chains for chars, _ in pattern.items})
        steps = [(letter, *self._table(letter)) for letter in letters]
        cost = 1 + len(steps) * (1 + self.places // 2048) // 8
        seen = {start}
        waiting = deque([(start, self.head)])
        while waiting:
            work.spend(cost)
            state, text = waiting.popleft()
            if not state & self.never and all(state & ends for _, ends in self.sets):
                return text
            for letter, once, stay in steps:
                after = self._after(state, once, stay)
                if after not in seen and self._alive(after):
                    seen.add(after)
                    waiting.append((after, text + letter))
        return None

    def _through_head(self) -> int | None:
        """The state after the head, which needs no search; None where nothing can follow it."""
        state, tables = self.start, {letter: self._table(letter) for letter in set(self.head)}
        for letter in self.head:
            if not self._alive(state):
                return None
            state = self._after(state, *tables[letter])
        return state if self._alive(state) else None

    def _table(self, letter: str) -> tuple[int, int]:
        once = stay = 0
        for pattern, at in self.chains:
            more_once, more_stay = pattern.table(letter)
            once |= more_once << at
            stay |= more_stay << at
        return once, stay

    def _after(self, state: int, once: int, stay: int) -> int:
        after = ((state & once) << 1) | (state & stay)
        while (more := after | ((after & self.stars) << 1)) != after:
            after = more
        return after

    def _alive(self, state: int) -> bool:
        """Whether every set can still be reached, and none of the others is certain."""
        return not state & self.forever and all(state & everywhere for everywhere, _ in self.sets)


def _letters(sets: set[Chars]) -> list[str]:
    """One character of each kind that the sets tell apart, those first that read well."""
    alone = {next(iter(chars)) for negated, chars in sets if not negated and len(chars) == 1}
    large = sorted((s for s in sets if s[0] or len(s[1]) != 1), key=lambda chars: (chars[0], sorted(chars[1])))
    named = {character for _, chars in large for character in chars} - alone
    kinds: dict[tuple[bool, ...], str] = {}
    for character in [*sorted(named, key=_rank), *(c for c in _OTHERS if c not in alone and c not in named)]:
        kinds.setdefault(tuple(accepts(chars, character) for chars in large), character)
    return sorted([*alone, *kinds.values()], key=_rank)


@lru_cache(maxsize=4096)
def _rank(character: str) -> tuple[int, str]:
    order = (str.islower, str.isdigit, str.isupper, lambda c: c in "/-._", str.isprintable)
    ascii_rank = 0 if character.isascii() else len(order)
    return ascii_rank + next((n for n, test in enumerate(order) if test(character)), len(order)), character
