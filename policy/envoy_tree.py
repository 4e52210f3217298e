"""Alternatives that lead to the same verdict, as a tree whose cost does not grow with their number.

The most telling attribute is looked up first: its exact values in a map, then its prefixes in another, from the longest
that fits to the shortest, then everything that says nothing about it. A miss further down falls back to the next of
these, so that an alternative stands in one place only for each of its values.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, TypeAlias

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
    extension,
    input_of,
    predicate_of,
)
from policy.envoy_text import PRINCIPAL, Inexpressible, template_prefix, tests_of
from policy.model import Attribute, Clause, Group, IpNetwork, MatchKind, Rule

OnMatch: TypeAlias = Any
"""A Matcher.OnMatch: a verdict or a tree; Envoy's messages have no types."""
_OnMatch = Matcher.OnMatch

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


@dataclass(frozen=True, slots=True)
class Key:
    """Where an alternative stands in a map; `whole`: who stands there passes the condition."""

    map: Map
    value: str | IpNetwork
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """One condition: as a predicate, and as keys of the map for an input where there are such."""

    predicate: Predicate
    size: int
    """In bytes."""
    input: Input | None = None
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """All of `parts` must hold for `verdict`. In `places` places it stands, which may take `limit` bytes."""

    parts: tuple[Part, ...]
    verdict: OnMatch
    limit: int
    places: int = 1

    def part(self, wanted: Input) -> Part | None:
        """The condition by which this may stand in the map for an input."""
        for part in self.parts:
            if part.input == wanted:
                kept = _VERDICT + sum(p.size for p in self.parts if p is not part)
                if not all(key.whole for key in part.keys):
                    kept += part.size
                if self.places * len(part.keys) * kept <= self.limit:
                    return part
        return None

    def at(self, part: Part, key: Key) -> Cell:
        """The same where one condition was looked up."""
        places = self.places * len(part.keys)
        kept = replace(part, input=None, keys=())
        parts = (p if p is not part else kept for p in self.parts if p is not part or not key.whole)
        return Cell(tuple(parts), self.verdict, self.limit, places)


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
        sum(part.size for group in groups for part in group) for groups in (sources, operations)
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
    predicate = any_of([all_of([part.predicate for part in group]) for group in groups])
    return (Part(predicate, predicate.ByteSize()),)


def _part(clause: Clause, *, jwt: bool) -> Part | bool:
    predicate = predicate_of(clause, jwt=jwt)
    if isinstance(predicate, bool):
        return predicate
    keys = () if clause.negated else tuple(_keys(clause))
    if None in keys or not keys:
        return Part(predicate, predicate.ByteSize())
    return Part(predicate, predicate.ByteSize(), input_of(clause), tuple(key for key in keys if key is not None))


def _keys(clause: Clause) -> Iterator[Key | None]:
    if clause.attribute.needs_jwt or clause.attribute is Attribute.METADATA or clause.attribute is Attribute.HOST:
        yield None
        return
    for match in clause.matches:
        if match.network is not None and clause.attribute in ADDRESSES:
            yield Key("network", match.network)
        elif match.kind is MatchKind.TEMPLATE:
            yield Key("prefix", template_prefix(match.text), whole=False)
        elif match.kind in (MatchKind.NON_EMPTY, MatchKind.PRESENT) and clause.attribute in PRINCIPAL:
            yield None  # everybody's prefix would be no help
        else:
            for test in tests_of(clause.attribute, match):
                yield Key(test.how, test.text) if test.how in ("exact", "prefix") else None


def cells_of(alternatives: Iterable[tuple[Part, ...]], verdict: OnMatch) -> Iterator[Cell]:
    """One cell for each alternative."""
    for parts in alternatives:
        yield Cell(parts, verdict, GROWTH * (_VERDICT + sum(part.size for part in parts)) + ROOM)


def tree(cells: Sequence[Cell], depth: int = 0) -> OnMatch:
    """The verdict of a cell whose conditions all hold; a miss where there is none."""
    for cell in cells:
        if not cell.parts:
            return cell.verdict
    wanted = _telling(cells) if len(cells) > LIST and depth < DEPTH else None
    return _listed(cells) if wanted is None else _mapped(cells, wanted, depth + 1)


def _telling(cells: Sequence[Cell]) -> Input | None:
    found: Counter[Input] = Counter()
    for cell in cells:
        found.update({p.input for p in cell.parts if p.input is not None and cell.part(p.input) is p})
    most = max(found.items(), key=lambda item: item[1], default=None)
    return None if most is None or most[1] < LIST else most[0]


def _listed(cells: Sequence[Cell]) -> OnMatch:
    listed = Matcher.MatcherList()
    for cell in cells:
        listed.matchers.add(predicate=all_of([part.predicate for part in cell.parts]), on_match=cell.verdict)
    return _OnMatch(matcher=Matcher(matcher_list=listed))


def _mapped(cells: Sequence[Cell], wanted: Input, depth: int) -> OnMatch:
    maps: dict[Map, dict[str | IpNetwork, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    rest = []
    for cell in cells:
        part = cell.part(wanted)
        if part is None:
            rest.append(cell)
            continue
        for key in dict.fromkeys(part.keys):
            maps[key.map][key.value].append(cell.at(part, key))
    after = tree(rest, depth) if rest else None
    for kind in ("network", "prefix", "exact"):
        if found := maps.get(kind):
            after = _map(kind, wanted, {key: tree(there, depth) for key, there in found.items()}, after)
    if after is None:
        raise ValueError("a map needs alternatives")
    return after


def _map(kind: Map, wanted: Input, found: dict[str | IpNetwork, OnMatch], after: OnMatch | None) -> OnMatch:
    made = Matcher.MatcherTree(input=data_input(wanted))
    match kind:
        case "exact":
            for key, there in found.items():
                made.exact_match_map.map[str(key)].CopyFrom(there)
        case "prefix":
            for key, there in found.items():
                made.prefix_match_map.map[str(key)].CopyFrom(there)
        case "network":
            made.custom_match.CopyFrom(extension("networks", _networks(found)))
    return _OnMatch(matcher=Matcher(matcher_tree=made, on_no_match=after))


def _networks(found: dict[str | IpNetwork, OnMatch]) -> IPMatcher:
    made = IPMatcher()
    for key, there in found.items():
        if not isinstance(key, str):
            made.range_matchers.add(ranges=[cidr(key)], on_match=there)
    return made
