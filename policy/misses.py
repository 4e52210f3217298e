"""Which rules came near: by how many of their conditions failed.

The index tells for every attribute the rows that it leaves, so that counting is a few operations on long integers, and
only the nearest rows are held against the request one condition after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from policy import cel
from policy.compile import Block
from policy.evaluate import Evaluator, kept
from policy.matching import holds
from policy.model import Action, Group, Policy, Request, Rule
from policy.pieces import Row
from policy.words import Compared, compared, unmet


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A rule that did not match, and what failed of the best of its sources and operations."""

    policy: Policy
    rule: Rule
    failed: tuple[Compared, ...]


def failed_of(rule: Rule, action: Action, request: Request) -> tuple[Compared, ...]:
    """What of a rule fails, with the source and the operation of which least does; nothing if it matches."""
    failed = [*_best(rule.sources, request), *_best(rule.operations, request), *_failing(rule.conditions, request)]
    found = [compared(clause, request, holds=False) for clause in failed]
    if rule.condition and not cel.holds(rule.condition, action, request):
        found.append(unmet(rule.condition))
    return tuple(found)


def held_of(rule: Rule, request: Request) -> tuple[Compared, ...]:
    """What of a rule that matches was asked, with the first source and operation that hold."""
    groups = [next((g for g in some if not _failing(g, request)), ()) for some in (rule.sources, rule.operations)]
    return tuple(compared(clause, request, holds=True) for group in (*groups, rule.conditions) for clause in group)


def _best(groups: tuple[Group, ...], request: Request) -> Group:
    return min((_failing(group, request) for group in groups), key=len, default=())


def _failing(group: Group, request: Request) -> Group:
    return tuple(clause for clause in group if not holds(clause, request))


def nearest(evaluator: Evaluator, request: Request, *, rules: int, policies: int) -> list[Miss]:
    """The `rules` of ALLOW policies that came nearest, and the nearest one of each of at most so many `policies`; all
    by what failed, least first. Rules that match are left out."""
    found = _Found(evaluator, rules, policies)
    for level, row in _by_level(evaluator.blocks, request):
        if level != found.level:
            found.next_level(level)
        if found.enough:
            break
        if found.wants(row):
            found.add(row, request)
    return sorted((miss for miss in found.misses.values() if miss.failed), key=lambda miss: len(miss.failed))


class _Found:
    """What was looked at so far. A miss is settled once no row that is left can fail in fewer conditions."""

    def __init__(self, evaluator: Evaluator, rules: int, policies: int) -> None:
        known = {id(row.policy) for block in evaluator.blocks for row in block.rows}
        allow = {(id(r.policy), r.number) for b in evaluator.blocks for r in b.rows if r.policy.action is Action.ALLOW}
        self.rules, self.policies = min(rules, len(allow)), min(policies, len(known))
        self.misses: dict[tuple[int, int], Miss] = {}
        self.level, self.allows = 0, 0
        self.settled: set[int] = set()

    @property
    def enough(self) -> bool:
        return self.allows >= self.rules and len(self.settled) >= self.policies

    def wants(self, row: Row) -> bool:
        if (id(row.policy), row.number) in self.misses:
            return False
        if row.policy.action is Action.ALLOW and self.allows < self.rules:
            return True
        return id(row.policy) not in self.settled and len(self.settled) < self.policies

    def add(self, row: Row, request: Request) -> None:
        rule = (row.policy.rules or ())[row.number]
        miss = Miss(policy=row.policy, rule=rule, failed=failed_of(rule, row.policy.action, request))
        self.misses[id(row.policy), row.number] = miss
        self._settle(miss)

    def next_level(self, level: int) -> None:
        self.level, self.allows = level, 0
        for miss in self.misses.values():
            self._settle(miss)

    def _settle(self, miss: Miss) -> None:
        if len(miss.failed) <= self.level:
            self.settled.add(id(miss.policy))
            self.allows += miss.policy.action is Action.ALLOW


def _by_level(blocks: Iterable[Block], request: Request) -> Iterator[tuple[int, Row]]:
    """Every row with the number of attributes that do not leave it, which is never more than what fails of its rule's
    conditions; smallest number first. A row's level is how often it was met, which is counted in masks."""
    levels = [(block, _levels(block, request)) for block in blocks]
    for level in range(max(len(of_block) for _, of_block in levels)):
        for block, of_block in levels:
            left = of_block[level] if level < len(of_block) else 0
            while left:
                top = left.bit_length() - 1
                left ^= 1 << top
                yield level, block.rows[top]


def _levels(block: Block, request: Request) -> list[int]:
    """For each number of failing attributes the rows with exactly so many."""
    at_least = [block.everything]
    for rows in kept(block, request):
        failing = block.everything & ~rows
        for level in range(len(at_least) - 1, -1, -1):
            more = at_least[level] & failing
            if level + 1 < len(at_least):
                at_least[level + 1] |= more
            elif more:
                at_least.append(more)
    at_least.append(0)
    return [some & ~further for some, further in pairwise(at_least)]
