"""What is left of a rule where the protocol is not HTTP: the fail direction depends on the action.

An ALLOW rule that looks at anything of HTTP never matches, so that less is allowed; of DENY, CUSTOM and AUDIT rules
those clauses alone are ignored, so that more is denied.
"""

from __future__ import annotations

from dataclasses import replace

from policy.model import Action, Attribute, Clause, Group, Policy, Rule

NEVER = Rule(conditions=(Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=()),))
"""Stands where a rule was that has no meaning for connections: the others keep their numbers."""


def for_connections(policy: Policy) -> Policy:
    """The policy as it holds for connections; the same object where nothing in it is of HTTP."""
    if policy.rules is None or not any(looks_at_http(rule) for rule in policy.rules):
        return policy
    if policy.action is Action.ALLOW:
        return replace(policy, rules=tuple(NEVER if looks_at_http(rule) else rule for rule in policy.rules))
    return replace(policy, rules=tuple(_without_http(rule) for rule in policy.rules))


def looks_at_http(rule: Rule) -> bool:
    """Whether anything in a rule is absent from connections. CEL conditions may look at anything, so they count."""
    if rule.condition:
        return True
    for group in (*rule.operations, *rule.sources, rule.conditions):
        for clause in group:
            if clause.attribute.http_only:
                return True
    return False


def _without_http(rule: Rule) -> Rule:
    return replace(
        rule,
        sources=tuple(_kept(group) for group in rule.sources),
        operations=tuple(_kept(group) for group in rule.operations),
        conditions=_kept(rule.conditions),
        condition="",
    )


def _kept(group: Group) -> Group:
    return tuple(clause for clause in group if not clause.attribute.http_only)
