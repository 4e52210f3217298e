"""Decides for one target: each attribute leaves some rows, and the highest that remains is the decisive one."""

from __future__ import annotations

from collections.abc import Iterator

from policy import cel
from policy.compile import Block, Compiled
from policy.decision import Decision, Reason
from policy.index import Step
from policy.matching import holds
from policy.model import Action, Group, Mesh, Policy, Request, Rule
from policy.pieces import Row


class Evaluator:
    """The policies for a target, compiled."""

    __slots__ = ("_checked", "_custom", "_decisions", "_default", "_everything", "_providers", "_steps", "compiled")

    def __init__(self, compiled: Compiled, mesh: Mesh, *, is_open: bool) -> None:
        self._providers = mesh.providers
        self._default = _default(compiled, is_open=is_open)
        self.compiled = compiled
        first = compiled.blocks[0]
        self._steps = _steps(first)
        self._everything = first.everything
        self._checked = first.checked
        self._custom = first.custom
        self._decisions: list[Decision | None] = [None] * len(first.rows)
        """Of the first block's rows, made when they are first needed."""

    def decide(self, request: Request) -> Decision:
        """The verdict, as if there were no shadow policies."""
        left = self._everything
        for get, known, absent, otherwise, find in self._steps:
            if get is None:
                left &= find(request)
            elif (value := get(request)) is None:
                left &= absent
            elif (rows := known.get(value, otherwise)) is not None:
                left &= rows
            else:
                left &= find(value)
            if not left:
                break
        if left:
            top = left.bit_length() - 1
            if top < self._custom and not self._checked & left:
                return self._decisions[top] or self._decision(top)
        elif len(self.compiled.blocks) == 1:
            return self._default
        return self._carefully(request)

    @property
    def default(self) -> Decision:
        """What holds where no row matches."""
        return self._default

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The rows, for analyses."""
        return self.compiled.blocks

    def matches(self, request: Request) -> Iterator[Row]:
        """Every row that matches, the decisive one first."""
        for block in self.compiled.blocks:
            left = _left(block, request)
            while left:
                top = left.bit_length() - 1
                left ^= 1 << top
                row = block.rows[top]
                if row.rule is None or rule_holds(row.rule, row.policy.action, request):
                    yield row

    def _carefully(self, request: Request) -> Decision:
        asked: set[str] = set()
        for row in self.matches(request):
            if row.policy.action is not Action.CUSTOM:
                return _with(_of_row(row), asked)
            if row.policy.provider not in self._providers:
                return _decisive(row, Reason.NO_PROVIDER)
            asked.add(row.policy.provider)
        return _with(self._default, asked)

    def _decision(self, top: int) -> Decision:
        decision = _of_row(self.compiled.blocks[0].rows[top])
        self._decisions[top] = decision
        return decision


def _steps(block: Block) -> tuple[Step, ...]:
    return tuple(lookup.step for lookup in block.lookups)


def _left(block: Block, request: Request) -> int:
    """The rows that every attribute leaves."""
    left = block.everything
    for rows in kept(block, request):
        left &= rows
    return left


def kept(block: Block, request: Request) -> Iterator[int]:
    """For each attribute that rows look at, the rows that it leaves."""
    for get, known, absent, otherwise, find in _steps(block):
        value = None if get is None else get(request)
        if get is None:
            yield find(request)
        elif value is None:
            yield absent
        else:
            rows = known.get(value, otherwise)
            yield find(value) if rows is None else rows


def rule_holds(rule: Rule, action: Action, request: Request) -> bool:
    """Whether a rule matches, looked at by itself."""
    return (
        _all(rule.conditions, request)
        and (not rule.sources or any(_all(group, request) for group in rule.sources))
        and (not rule.operations or any(_all(group, request) for group in rule.operations))
        and (not rule.condition or cel.holds(rule.condition, action, request))
    )


def _all(group: Group, request: Request) -> bool:
    return all(holds(clause, request) for clause in group)


def _default(compiled: Compiled, *, is_open: bool) -> Decision:
    if is_open and not compiled.any_allow:
        return Decision(allowed=True, reason=Reason.NAMESPACE_IS_OPEN)
    return Decision(allowed=False, reason=Reason.NOTHING_ALLOWS)


def _of_row(row: Row) -> Decision:
    allows = row.policy.action is Action.ALLOW
    return _decisive(row, Reason.ALLOWED_BY_RULE if allows else Reason.DENIED_BY_RULE)


def _decisive(row: Row, reason: Reason) -> Decision:
    policy: Policy = row.policy
    allowed = reason is Reason.ALLOWED_BY_RULE
    return Decision(allowed=allowed, reason=reason, policy=policy.id, rule=row.number)


def _with(decision: Decision, asked: set[str]) -> Decision:
    """The decision with those that must agree; who is denied anyway needs nobody's agreement."""
    if not asked or not decision.allowed:
        return decision
    return Decision(
        allowed=True,
        reason=decision.reason,
        policy=decision.policy,
        rule=decision.rule,
        providers=tuple(sorted(asked)),
    )
