"""A rule as an explanation tells of it, and rules that would allow a request if their policies were for its target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from policy.evaluate import rule_holds
from policy.model import Action, Origin, Policy, Request, Target
from policy.protocol import looks_at_http
from policy.snapshot import Snapshot
from policy.trust_domains import expanded
from policy.words import Compared, clean, place
from policy.workload import is_for

MAX_ELSEWHERE = 3
MAX_LOOKED_AT = 300
"""Policies for others that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSeen:
    """One rule: `failed` is what kept it from matching, `held` what it asked and had. `rule` counts from 0, as it was
    written; None for a policy without rules."""

    policy: str
    action: Action
    rule: int | None
    origin: Origin
    failed: tuple[Compared, ...] = ()
    held: tuple[Compared, ...] = ()
    shadow: bool = False

    @property
    def name(self) -> str:
        """`namespace/name#rule`."""
        return self.policy if self.rule is None else f"{self.policy}#{self.rule}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "policy": self.policy,
            "action": self.action.value,
            "rule": self.rule,
            "origin": place(self.origin),
            "shadow": self.shadow,
            "failed": [one.document() for one in self.failed],
            "held": [one.document() for one in self.held],
        }

    def __str__(self) -> str:
        origin = f" ({place(self.origin)})" if place(self.origin) else ""
        return f"{self.action} {self.name}{' in shadow' if self.shadow else ''}{origin}"


def elsewhere(snapshot: Snapshot, target_id: str, request: Request) -> Iterator[RuleSeen]:
    """Rules of ALLOW policies in reach, the target's namespace and the root's, that match and are for others. A few."""
    root = snapshot.mesh.root_namespace
    target = snapshot.targets[target_id][0]
    others = (
        policy
        for policy in snapshot.policies
        if policy.action is Action.ALLOW
        and policy.namespace in (target.namespace, root)
        and not policy.shadow
        and not is_for(policy, target, root_namespace=root)
    )
    found = (seen for policy in islice(others, MAX_LOOKED_AT) for seen in _matching(policy, snapshot, target, request))
    return islice(found, MAX_ELSEWHERE)


def _matching(policy: Policy, snapshot: Snapshot, target: Target, request: Request) -> Iterator[RuleSeen]:
    for number, rule in enumerate(expanded(policy, snapshot.mesh).rules or ()):
        if (request.http or not looks_at_http(rule)) and rule_holds(rule, policy.action, request):
            origin = rule.origin if rule.origin.source else policy.origin
            yield RuleSeen(
                policy=policy.id, action=policy.action, rule=number, origin=origin, failed=(_scope(policy, target),)
            )
            return


def _scope(policy: Policy, target: Target) -> Compared:
    """Why a policy is not for a target."""
    scope = policy.scope
    if scope.references:
        what, want = "targetRefs", [f"{kind} {name}" for kind, name in scope.references]
        have = [f"{kind} {name}" for kind, name in target.references]
    elif scope.spiffe_ids:
        what, want, have = "spiffeIds", [str(match) for match in scope.spiffe_ids], [target.spiffe_id]
    else:
        labels = dict(target.labels)
        what = "labels"
        want = [f"{name}={value}" for name, value in scope.labels if labels.get(name) != value]
        have = [f"{name}={labels[name]}" for name, _ in scope.labels if name in labels]
        if target.waypoint:
            have.append("a waypoint, which labels do not select")
    want, have = [clean(text) for text in want[:5]], [clean(text) for text in have[:5]]
    text = f"it is for {what} {', '.join(want)}; the target has {', '.join(have) or 'none of them'}"
    return Compared(what=what, field=what, have=tuple(have), want=tuple(want), negated=False, text=text)
