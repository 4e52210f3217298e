"""Which rules came near: by how many of their conditions failed.

The index tells for every attribute the rows that it leaves, so that counting is a few operations on long integers, and
only the nearest rows are held against the request one condition after the other.
"""

from __future__ import annotations

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
    number: int
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
    by what failed, in no order, and perhaps some more. Rules that match are left out."""
    found = _Found(evaluator, rules, policies)
    levels = [_levels(block, request) for block in evaluator.blocks]
    for level in range(max(map(len, levels))):
        found.next_level(level)
        for number, of_block in enumerate(levels):
            left = of_block[level] if level < len(of_block) else 0
            while left := left & found.wanted(number):
                top = left.bit_length() - 1
                left ^= 1 << top
                found.add(evaluator.blocks[number].rows[top], request)
    return [miss for miss in found.misses.values() if miss.failed]


class _Found:
    """What was looked at so far. A row's level is the number of attributes that do not leave it, which is never more
    than what fails of its rule's conditions: a miss is settled once no row that is left can fail in fewer."""

    def __init__(self, evaluator: Evaluator, rules: int, policies: int) -> None:
        self.rows: dict[int, dict[int, int]] = {}
        """Of each policy the rows in each block."""
        self.unsettled, self.allowing = [0] * len(evaluator.blocks), [0] * len(evaluator.blocks)
        for number, block in enumerate(evaluator.blocks):
            for piece, shift in block.pieces:
                mask = ((1 << len(piece.rows)) - 1) << shift
                mine = self.rows.setdefault(id(piece.rows[0].policy), {})
                mine[number] = mine.get(number, 0) | mask
                self.unsettled[number] |= mask
                if piece.action is Action.ALLOW:
                    self.allowing[number] |= mask
        self.rules, self.policies = rules, policies
        self.misses: dict[tuple[int, int], Miss] = {}
        self.level, self.allows, self.settled = 0, 0, 0

    def wanted(self, block: int) -> int:
        """The rows of a block that are still to be looked at."""
        unsettled = self.unsettled[block] if self.settled < self.policies else 0
        return unsettled | self.allowing[block] if self.allows < self.rules else unsettled

    def add(self, row: Row, request: Request) -> None:
        """Looks at a row's rule, unless that was done."""
        key = (id(row.policy), row.number)
        if key in self.misses:
            return
        rule = (row.policy.rules or ())[row.number]
        failed = failed_of(rule, row.policy.action, request)
        miss = self.misses[key] = Miss(policy=row.policy, number=row.number, rule=rule, failed=failed)
        self._settle(miss)

    def next_level(self, level: int) -> None:
        """What failed in as many conditions is settled now."""
        self.level, self.allows = level, 0
        for miss in self.misses.values():
            self._settle(miss)

    def _settle(self, miss: Miss) -> None:
        if len(miss.failed) > self.level:
            return
        self.allows += bool(miss.failed) and miss.policy.action is Action.ALLOW
        rows = self.rows.pop(id(miss.policy), None)
        if rows is not None:
            self.settled += 1
            for block, mask in rows.items():
                self.unsettled[block] &= ~mask


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
