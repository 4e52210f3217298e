"""The rules of one policy as rows of a table, once for all targets that it is for: there its bits are only shifted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from policy.matching import folded
from policy.model import Action, Attribute, Clause, Group, IpNetwork, Match, MatchKind, Mesh, Policy, Rule
from policy.protocol import for_connections, looks_at_http
from policy.trust_domains import expanded

MAX_ROWS_PER_RULE = 64
"""A rule with more combinations of source and operation gets one row, and is checked by itself where that is left."""

MAX_ROWS = 2048
"""In one piece: masks of a piece have a bit for each of its rows."""

Slot = tuple[Attribute, tuple[str, ...]]
Masks = dict[str, int]


class Row(NamedTuple):
    """One way in which a rule can match: all of `clauses`. `rule` is set where that is not all there is to check."""

    policy: Policy
    number: int
    clauses: Group
    rule: Rule | None = None


@dataclass(slots=True)
class Matches:
    """For each match the rows that have it, as bits. By kind and text, which is found faster than by match."""

    exact: Masks = field(default_factory=dict)
    others: dict[MatchKind, Masks] = field(default_factory=dict)
    networks: dict[IpNetwork, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.exact or self.others or self.networks)

    def add(self, match: Match, bit: int) -> None:
        """One row has a match that is not exact."""
        if match.network is not None:
            self.networks[match.network] = self.networks.get(match.network, 0) | bit
        else:
            masks = self.others.setdefault(match.kind, {})
            masks[match.text] = masks.get(match.text, 0) | bit

    def copy(self) -> Matches:
        """One that can be written to."""
        others = {kind: dict(masks) for kind, masks in self.others.items()}
        return Matches(dict(self.exact), others, dict(self.networks))

    def drop(self, other: Matches, keep: int) -> None:
        """What was taken in is taken out again; `keep` are all rows but those of the other."""
        _without(self.exact, other.exact, keep)
        _without(self.networks, other.networks, keep)
        for kind, masks in other.others.items():
            _without(self.others[kind], masks, keep)

    def take_in(self, other: Matches, shift: int) -> None:
        """What is said of rows the lowest of which becomes the row `shift`."""
        _shifted(self.exact, other.exact, shift)
        _shifted(self.networks, other.networks, shift)
        for kind, masks in other.others.items():
            _shifted(self.others.setdefault(kind, {}), masks, shift)


T = TypeVar("T")


def _shifted(into: dict[T, int], masks: dict[T, int], shift: int) -> None:
    known = into.get
    for key, mask in masks.items():
        into[key] = known(key, 0) | mask << shift


def _without(masks: dict[T, int], gone: Iterable[T], keep: int) -> None:
    for key in gone:
        masks[key] &= keep
        if not masks[key]:
            del masks[key]


@dataclass(slots=True)
class Column:
    """What rows say about one attribute: `positive` and `negated` clauses; `asking` are the rows that have one of the
    former."""

    positive: Matches = field(default_factory=Matches)
    negated: Matches | None = None
    asking: int = 0

    def __bool__(self) -> bool:
        return bool(self.positive or self.negated)

    def add(self, clause: Clause, bit: int) -> None:
        """One row's clause."""
        if clause.negated:
            matches = self.negated = self.negated or Matches()
        else:
            matches = self.positive
            self.asking |= bit
        exact = matches.exact
        for match in map(folded, clause.matches) if clause.attribute is Attribute.HOST else clause.matches:
            if match.kind is MatchKind.EXACT:  # as most are, so that no call is made for them
                exact[match.text] = exact.get(match.text, 0) | bit
            else:
                matches.add(match, bit)

    def copy(self) -> Column:
        """One that can be written to."""
        return Column(self.positive.copy(), self.negated and self.negated.copy(), self.asking)

    def drop(self, other: Column, keep: int) -> None:
        """What was taken in is taken out again; `keep` are all rows but those of the other."""
        self.positive.drop(other.positive, keep)
        if self.negated and other.negated:
            self.negated.drop(other.negated, keep)
        self.asking &= keep

    def take_in(self, other: Column, shift: int) -> None:
        """What a piece says whose lowest row becomes the row `shift`."""
        self.positive.take_in(other.positive, shift)
        if other.negated:
            self.negated = self.negated or Matches()
            self.negated.take_in(other.negated, shift)
        self.asking |= other.asking << shift


class Piece(NamedTuple):
    """Some rows of one policy, by bit: the first that decides has the highest. `checked` are those whose rule must be
    looked at."""

    action: Action
    rows: tuple[Row, ...]
    columns: dict[Slot, Column]
    checked: int


class Prepared:
    """One policy as it holds in a mesh, with its pieces in the order in which they decide. Those for connections are
    made when they are first asked for; both threads that make some make the same."""

    __slots__ = ("_connections", "_spoken", "origin", "policy", "requests")

    def __init__(self, origin: Policy, mesh: Mesh) -> None:
        self.origin = origin
        """As it was given."""
        self.policy = expanded(origin, mesh)
        self.requests = pieces_of(self.policy)
        self._connections: tuple[Piece, ...] | None = None
        self._spoken: tuple[int, ...] | None = None

    @property
    def connections(self) -> tuple[Piece, ...]:
        """The same object as `requests` where nothing in the policy is of HTTP."""
        if self._connections is None:
            self._connections = self._of_connections()
        return self._connections

    def _of_connections(self) -> tuple[Piece, ...]:
        if self.policy.action is Action.ALLOW:
            few = len(self.spoken) < len(self.policy.rules or ())
            return pieces_of(self.policy, self.spoken) if few else self.requests
        policy = for_connections(self.policy)
        return self.requests if policy is self.policy else pieces_of(policy)

    @property
    def spoken(self) -> tuple[int, ...]:
        """The numbers of the rules in which nothing is of HTTP. Most look at something of it, which the columns tell
        of all rows at once."""
        if self._spoken is None:
            rules = self.policy.rules or ()
            numbers = dict.fromkeys(row.number for piece in self.requests for row in _not_of_http(piece))
            self._spoken = tuple(sorted(number for number in numbers if not looks_at_http(rules[number])))
        return self._spoken

    @property
    def conditional(self) -> bool:
        """Whether a rule has a CEL condition; such a one is checked by itself."""
        return any(row.rule and row.rule.condition for some in self.requests if some.checked for row in some.rows)


def _not_of_http(piece: Piece) -> Iterable[Row]:
    """The rows that are not known at once to ask for something of HTTP."""
    left = (1 << len(piece.rows)) - 1
    for (attribute, _), column in piece.columns.items():
        if attribute.http_only:
            left &= ~column.asking
    return (row for bit, row in enumerate(piece.rows) if left >> bit & 1)


def pieces_of(policy: Policy, numbers: Iterable[int] | None = None) -> tuple[Piece, ...]:
    """All rows of a policy as it holds for a protocol, trust domains expanded; or those of the rules with `numbers`."""
    rules = policy.rules or ()
    chosen = range(len(rules)) if numbers is None else numbers
    rows = [row for number in chosen for row in _rule_rows(policy, number, rules[number])]
    return tuple(_piece(rows[at : at + MAX_ROWS][::-1]) for at in range(0, len(rows), MAX_ROWS))


def _piece(rows: Sequence[Row]) -> Piece:
    columns: dict[Slot, Column] = {}
    checked = 0
    for number, row in enumerate(rows):
        bit = 1 << number
        if row.rule is not None:
            checked |= bit
        for clause in row.clauses:
            slot = (clause.attribute, clause.key)
            column = columns.get(slot)
            if column is None:
                column = columns[slot] = Column()
            column.add(clause, bit)
    return Piece(rows[0].policy.action, tuple(rows), columns, checked)


def _rule_rows(policy: Policy, number: int, rule: Rule) -> Iterable[Row]:
    sources, operations = _merged(rule.sources) or ((),), _merged(rule.operations) or ((),)
    if len(sources) * len(operations) > MAX_ROWS_PER_RULE:
        yield _row(policy, number, rule.conditions, rule, whole=False)
        return
    for source in sources:
        for operation in operations:
            yield _row(policy, number, (*source, *operation, *rule.conditions), rule, whole=True)


def _row(policy: Policy, number: int, clauses: Group, rule: Rule, *, whole: bool) -> Row:
    """A table has room for one positive and one negated clause of a row; what is more is checked by itself."""
    fitting = {(clause.attribute, clause.key, clause.negated): clause for clause in reversed(clauses)}
    if len(fitting) < len(clauses):
        return Row(policy, number, tuple(reversed(fitting.values())), rule)
    return Row(policy, number, clauses, None if whole and not rule.condition else rule)


def _merged(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Groups of a single positive clause about the same attribute are one clause with all their alternatives."""
    if len(groups) < 2:
        return groups
    if any(len(group) != 1 or group[0].negated for group in groups):
        return groups
    first = groups[0][0]
    if any((group[0].attribute, group[0].key) != (first.attribute, first.key) for group in groups):
        return groups
    matches = tuple(match for group in groups for match in group[0].matches)
    return ((Clause(attribute=first.attribute, key=first.key, matches=matches, origin=first.origin),),)
