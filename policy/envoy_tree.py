"""Alternatives that lead to the same verdict, as a tree whose cost does not grow with their number.

The most telling attribute is looked up first: its exact values in a map, then its prefixes in another, from the longest
that fits to the shortest, then everything that says nothing about it. A miss further down falls back to the next of
these, so that an alternative stands in one place only for each of its values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

from xds.type.matcher.v3.ip_pb2 import IPMatcher
from xds.type.matcher.v3.matcher_pb2 import Matcher

from policy.envoy_predicates import (
    ADDRESSES,
    Input,
    Predicate,
    all_of,
    any_of,
    cidr,
    data_input,
    input_of,
    plain_tests,
    predicate_of,
)
from policy.envoy_text import PRINCIPAL, Inexpressible, Test, template_prefix
from policy.envoy_wire import entry_of, extension, field
from policy.model import Attribute, Clause, Group, IpNetwork, MatchKind, Rule

OnMatch: TypeAlias = bytes
"""A Matcher.OnMatch: a verdict or a tree."""
_matcher = field(Matcher.OnMatch, "matcher")
_list, _tree, _no_match = (field(Matcher, what) for what in ("matcher_list", "matcher_tree", "on_no_match"))
_listed_one = field(Matcher.MatcherList, "matchers")
_when, _then = (field(Matcher.MatcherList.FieldMatcher, what) for what in ("predicate", "on_match"))
_input, _custom = (field(Matcher.MatcherTree, what) for what in ("input", "custom_match"))
_MAPS = {how: field(Matcher.MatcherTree, f"{how}_match_map") for how in ("exact", "prefix")}
_entry = entry_of(Matcher.MatcherTree.MatchMap, "map")
_range = field(IPMatcher, "range_matchers")
_network, _there = (field(IPMatcher.IPRangeMatcher, what) for what in ("ranges", "on_match"))

LIST = 4
"""So many alternatives are compared one by one: a map for them would cost more."""
GROWTH, ROOM = 8, 16384
"""What is written once may take so many times its bytes, and so many more, to be looked up; what would take more is
compared one by one where it stands."""
DEPTH = 6
"""So many attributes are looked up on one way through the tree: messages may not be nested deeper than Envoy reads."""

_VERDICT = 150
"""Bytes of a verdict, about."""

Map = Literal["exact", "prefix", "network"]


class Key(NamedTuple):
    """Where an alternative stands in a map; `whole`: who stands there passes the condition."""

    map: Map
    value: str | IpNetwork
    whole: bool = True


class Part(NamedTuple):
    """One condition: as a predicate, and as keys of the map for an input where there are such."""

    predicate: Predicate
    input: Input | None = None
    keys: tuple[Key, ...] = ()
    whole: bool = True
    """So are all keys."""


@dataclass(slots=True)
class Cell:
    """All of `parts` must hold for `verdict`. In `places` places it stands, which may take `limit` bytes. Not changed
    once it is made."""

    parts: tuple[Part, ...]
    verdict: OnMatch
    limit: int
    size: int
    """Of all predicates, in bytes."""
    places: int = 1

    def part(self, wanted: Input) -> Part | None:
        """The condition by which this may stand in the map for an input."""
        for part in self.parts:
            if part.input == wanted and self._fits(part):
                return part
        return None

    def inputs(self) -> list[Input]:
        """In whose maps this may stand."""
        return [part.input for part in self.parts if part.input is not None and self._fits(part)]

    def _fits(self, part: Part) -> bool:
        kept = _VERDICT + self.size - (len(part.predicate) if part.whole else 0)
        return self.places * len(part.keys) * kept <= self.limit

    def without(self, part: Part) -> Cell:
        """The same where one condition was looked up and holds."""
        parts = tuple([p for p in self.parts if p is not part])
        return self._at(part, parts, self.size - len(part.predicate))

    def beside(self, part: Part) -> Cell:
        """The same where one condition was looked up and may hold."""
        bare = Part(part.predicate)
        return self._at(part, tuple([p if p is not part else bare for p in self.parts]), self.size)

    def _at(self, part: Part, parts: tuple[Part, ...], size: int) -> Cell:
        return Cell(parts, self.verdict, self.limit, size, self.places * len(part.keys))


@dataclass(frozen=True, slots=True)
class Meaning:
    """What of a rule a tree can say: it holds at most where one of `alternatives` does, and exactly there unless there
    is a reason in `missing`."""

    alternatives: tuple[tuple[Part, ...], ...]
    missing: tuple[str, ...] = ()


def meaning_of(rule: Rule, *, jwt: bool) -> Meaning:
    """A rule, condition by condition."""
    missing: list[str] = []
    if rule.condition:
        missing.append("a CEL condition")

    def parts(group: Group) -> tuple[Part, ...] | None:
        found: list[Part] = []
        for clause in group:
            try:
                part = _part(clause, jwt=jwt)
            except Inexpressible as unsaid:
                missing.append(str(unsaid))
                continue
            if part is False:
                return None
            if part is not True:
                found.append(part)
        return tuple(found)

    def groups(written: tuple[Group, ...]) -> list[tuple[Part, ...]]:
        return [found for group in dict.fromkeys(written) or ((),) if (found := parts(group)) is not None]

    return Meaning(
        tuple(_combined(groups(rule.sources), groups(rule.operations), parts(rule.conditions))), tuple(missing)
    )


def _combined(
    sources: list[tuple[Part, ...]], operations: list[tuple[Part, ...]], conditions: tuple[Part, ...] | None
) -> Iterator[tuple[Part, ...]]:
    if conditions is None:
        return
    of_sources, of_operations = (
        sum(len(part.predicate) for group in groups for part in group) for groups in (sources, operations)
    )
    spread = of_sources * len(operations) + of_operations * len(sources)
    if spread > GROWTH * (of_sources + of_operations) + ROOM:
        sources, operations = [_either(sources)], [_either(operations)]
    for source, operation in product(sources, operations):
        yield (*source, *operation, *conditions)


def _either(groups: list[tuple[Part, ...]]) -> tuple[Part, ...]:
    """Groups as one condition that cannot be looked up."""
    if not all(groups):
        return ()
    return (Part(any_of([all_of([part.predicate for part in group]) for group in groups])),)


def _part(clause: Clause, *, jwt: bool) -> Part | bool:
    tests = plain_tests(clause)
    predicate = predicate_of(clause, tests, jwt=jwt)
    if isinstance(predicate, bool):
        return predicate
    keys = None if clause.negated else _keys(clause, tests)
    if not keys:
        return Part(predicate)
    return Part(predicate, input_of(clause), tuple(dict.fromkeys(keys)), all(key.whole for key in keys))


def _keys(clause: Clause, tests: Sequence[tuple[Test, ...]] | None) -> list[Key] | None:
    """Where all its alternatives stand; None if one of them stands nowhere."""
    attribute = clause.attribute
    if attribute in ADDRESSES:
        return [Key("network", match.network) for match in clause.matches if match.network is not None]
    if tests is None or attribute is Attribute.HOST:
        return None
    keys = []
    for match, alternatives in zip(clause.matches, tests, strict=True):
        if match.kind is MatchKind.TEMPLATE:
            keys.append(Key("prefix", template_prefix(match.text), whole=False))
            continue
        if match.kind in (MatchKind.NON_EMPTY, MatchKind.PRESENT) and attribute in PRINCIPAL:
            return None  # everybody's prefix would be no help
        for test in alternatives:
            if test.how not in ("exact", "prefix"):
                return None
            keys.append(Key(test.how, test.text))
    return keys


def cells_of(alternatives: Iterable[tuple[Part, ...]], verdict: OnMatch) -> Iterator[Cell]:
    """One cell for each alternative."""
    for parts in alternatives:
        size = sum([len(part.predicate) for part in parts])
        yield Cell(parts, verdict, GROWTH * (_VERDICT + size) + ROOM, size)


def tree(cells: Sequence[Cell], depth: int = 0) -> OnMatch:
    """The verdict of a cell whose conditions all hold; a miss where there is none."""
    for cell in cells:
        if not cell.parts:
            return cell.verdict
    wanted = _telling(cells) if len(cells) > LIST and depth < DEPTH else None
    return _listed(cells) if wanted is None else _mapped(cells, wanted, depth + 1)


def _telling(cells: Sequence[Cell]) -> Input | None:
    """What most of them may be looked up by, and of those what is asked first: the same wherever it is made."""
    found: dict[Input, int] = {}
    for cell in cells:
        for wanted in dict.fromkeys(cell.inputs()):
            found[wanted] = found.get(wanted, 0) + 1
    most = max(found.items(), key=lambda item: item[1], default=None)
    return None if most is None or most[1] < LIST else most[0]


def listed(found: Iterable[tuple[Predicate, OnMatch]]) -> bytes:
    """A Matcher that asks one after the other."""
    return _list(b"".join([_listed_one(_when(predicate) + _then(then)) for predicate, then in found]))


def otherwise(matcher: bytes, then: OnMatch) -> bytes:
    """A Matcher, and what follows where it finds nothing."""
    return matcher + _no_match(then)


def _listed(cells: Sequence[Cell]) -> OnMatch:
    return _matcher(listed([(all_of([part.predicate for part in cell.parts]), cell.verdict) for cell in cells]))


def _mapped(cells: Sequence[Cell], wanted: Input, depth: int) -> OnMatch:
    maps: dict[Map, dict[str | IpNetwork, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    rest = []
    for cell in cells:
        part = cell.part(wanted)
        if part is None:
            rest.append(cell)
            continue
        without = cell.without(part)
        for key in part.keys:
            maps[key.map][key.value].append(without if key.whole else cell.beside(part))
    after = tree(rest, depth) if rest else None
    for kind in ("network", "prefix", "exact"):
        if found := maps.get(kind):
            after = _map(kind, wanted, {key: tree(there, depth) for key, there in found.items()}, after)
    if after is None:
        raise ValueError("a map needs alternatives")
    return after


def _map(kind: Map, wanted: Input, found: dict[str | IpNetwork, OnMatch], after: OnMatch | None) -> OnMatch:
    if kind == "network":
        made = _custom(extension("networks", IPMatcher, _networks(found)))
    else:
        texts = sorted((str(key), there) for key, there in found.items())
        made = _MAPS[kind](b"".join([_entry(key, there) for key, there in texts]))
    matcher = _tree(_input(data_input(wanted)) + made)
    return _matcher(matcher if after is None else otherwise(matcher, after))


def _networks(found: dict[str | IpNetwork, OnMatch]) -> bytes:
    ranges = [_network(cidr(key)) + _there(there) for key, there in found.items() if not isinstance(key, str)]
    return b"".join(map(_range, ranges))
