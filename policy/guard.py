"""Requests that are refused before any rule: their path is one that proxies read differently, and rules look at it.

The tree of a proxy asks this first, and so does everything that tells beforehand what a proxy would do.
"""

from __future__ import annotations

from collections.abc import Iterable

from policy.model import Action, Policy, Request, Rule
from policy.paths import is_normal
from policy.snapshot import Snapshot

PATH_NOT_NORMAL = "PATH_NOT_NORMAL"
"""The reason by which this is told."""


def refused_unread(snapshot: Snapshot, target: str, request: Request) -> bool:
    """Whether a request to a target, by its SPIFFE ID, is refused so."""
    if not request.http or is_normal(request.path or ""):
        return False
    declared = all(one.normalized for one in snapshot.targets.get(target, ()))
    return not declared and any(_look_at_paths(judge.policies) for judge in snapshot.judges(target))


def looks_at_path(rule: Rule) -> bool:
    """Whether a rule does; a CEL condition that names it may."""
    return "path" in rule.condition or any(
        clause.of_path for group in (*rule.operations, rule.conditions) for clause in group
    )


def _look_at_paths(policies: Iterable[Policy]) -> bool:
    return any(
        looks_at_path(rule)
        for policy in policies
        if not policy.shadow and policy.action is not Action.AUDIT
        for rule in policy.rules or ()
    )
