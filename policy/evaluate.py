"""Decides for one target: each attribute leaves some rows, and the highest that remains is the decisive one."""

from __future__ import annotations

from policy import cel
from policy.compile import Compiled, Row
from policy.decision import Decision, Reason
from policy.matching import holds
from policy.model import Action, Group, Mesh, Policy, Request, Rule


class Evaluator:
    """The policies for a target, compiled."""

    __slots__ = ("_by_row", "_checked", "_custom", "_default", "_everything", "_providers", "_steps", "compiled")

    def __init__(self, compiled: Compiled, mesh: Mesh, *, is_open: bool) -> None:
        self.compiled = compiled
        self._steps = tuple(lookup.step for lookup in compiled.lookups)
        self._everything = compiled.everything
        self._checked = compiled.checked
        self._custom = compiled.deny_end
        self._providers = mesh.providers
        self._by_row: list[Decision | None] = [None] * len(compiled.rows)
        self._default = _default(compiled, is_open=is_open)

    def decide(self, request: Request) -> Decision:
        """The verdict, as if there were no shadow policies."""
        left = self._left(request)
        if not left:
            return self._default
        top = left.bit_length() - 1
        if top >= self._custom or self._checked & left:
            return self._carefully(left, request)
        return self._by_row[top] or self._of_row(top)

    def _left(self, request: Request) -> int:
        """The rows that every attribute leaves."""
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
                return 0
        return left

    def matches(self, request: Request) -> list[Row]:
        """Every row that matches, the decisive one first."""
        left = self._left(request)
        found: list[Row] = []
        while left:
            top = left.bit_length() - 1
            left ^= 1 << top
            if self._certain(top, request):
                found.append(self.compiled.rows[top])
        return found

    def _carefully(self, left: int, request: Request) -> Decision:
        asked: set[str] = set()
        while left:
            top = left.bit_length() - 1
            left ^= 1 << top
            if not self._certain(top, request):
                continue
            row = self.compiled.rows[top]
            if row.policy.action is not Action.CUSTOM:
                return _with(self._by_row[top] or self._of_row(top), asked)
            if row.policy.provider not in self._providers:
                return _decisive(row, Reason.NO_PROVIDER)
            asked.add(row.policy.provider)
        return _with(self._default, asked)

    def _certain(self, top: int, request: Request) -> bool:
        row = self.compiled.rows[top]
        return row.rule is None or rule_holds(row.rule, row.policy.action, request)

    def _of_row(self, top: int) -> Decision:
        row = self.compiled.rows[top]
        allows = row.policy.action is Action.ALLOW
        decision = _decisive(row, Reason.ALLOWED_BY_RULE if allows else Reason.DENIED_BY_RULE)
        self._by_row[top] = decision
        return decision


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
