"""From the policies for a target to one table: a row for each way in which a rule can match, a bit for each row.

Rows of CUSTOM policies have the highest bits, then those of DENY, then those of ALLOW: the highest bit that is left
after every attribute was looked at is the decisive row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from policy.index import Lookup, Slot, lookup
from policy.model import Action, Attribute, Clause, Group, Policy, Rule

MAX_ROWS_PER_RULE = 64
"""A rule with more combinations of source and operation gets one row, and is checked by itself where that is left."""

MAX_ROWS = 16384
"""In one block: every value of a block has a mask as long as the block, so that without a bound a target's memory would
grow with the square of its rules."""

_FIRST = (
    Attribute.SOURCE_PRINCIPAL,
    Attribute.SOURCE_NAMESPACE,
    Attribute.SOURCE_SERVICE_ACCOUNT,
    Attribute.PATH,
    Attribute.METHOD,
)
"""What most rules differ by is looked at first: nothing is asked once no row is left."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way in which a rule can match: all of `clauses`. `rule` is set where that is not all there is to check."""

    policy: Policy
    number: int
    clauses: Group
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are decided together, by bit. `lookups` give those that each attribute leaves; bits from `custom` up
    are of CUSTOM rows; `checked` are the rows whose rule must be looked at."""

    rows: tuple[Row, ...]
    lookups: tuple[Lookup, ...]
    everything: int
    custom: int
    checked: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """Blocks in the order in which they decide; one, unless there are very many rows. `any_allow`: an ALLOW policy is
    among the policies, even one without rules."""

    blocks: tuple[Block, ...]
    any_allow: bool


def compile_policies(policies: Sequence[Policy]) -> Compiled:
    """Policies as they hold for a protocol, trust domains expanded."""
    rows = [
        row
        for action in (Action.CUSTOM, Action.DENY, Action.ALLOW)
        for policy in policies
        if policy.action is action
        for row in _rows(policy)
    ]
    return Compiled(
        blocks=tuple(_block(rows[at : at + MAX_ROWS][::-1]) for at in range(0, len(rows), MAX_ROWS)) or (_block([]),),
        any_allow=any(policy.action is Action.ALLOW for policy in policies),
    )


def _block(rows: list[Row]) -> Block:
    slots: dict[Slot, list[tuple[Clause, int]]] = defaultdict(list)
    checked = 0
    for number, row in enumerate(rows):
        bit = 1 << number
        if row.rule is not None:
            checked |= bit
        for clause in row.clauses:
            slots[clause.attribute, clause.key].append((clause, bit))
    everything = (1 << len(rows)) - 1
    ordered = sorted(slots, key=lambda slot: _FIRST.index(slot[0]) if slot[0] in _FIRST else len(_FIRST))
    return Block(
        rows=tuple(rows),
        lookups=tuple(lookup(slot, slots[slot], everything) for slot in ordered),
        everything=everything,
        custom=sum(row.policy.action is not Action.CUSTOM for row in rows),
        checked=checked,
    )


def _rows(policy: Policy) -> Iterable[Row]:
    for number, rule in enumerate(policy.rules or ()):
        yield from _rule_rows(policy, number, rule)


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
    fitting: dict[tuple[Slot, bool], Clause] = {}
    for clause in clauses:
        fitting.setdefault(((clause.attribute, clause.key), clause.negated), clause)
    whole = whole and len(fitting) == len(clauses) and not rule.condition
    return Row(policy, number, tuple(fitting.values()), None if whole else rule)


def _merged(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Groups of a single positive clause about the same attribute are one clause with all their alternatives."""
    if len(groups) < 2 or any(len(group) != 1 or group[0].negated for group in groups):
        return groups
    first = groups[0][0]
    if any((group[0].attribute, group[0].key) != (first.attribute, first.key) for group in groups):
        return groups
    matches = tuple(match for group in groups for match in group[0].matches)
    return ((Clause(attribute=first.attribute, key=first.key, matches=matches, origin=first.origin),),)
