"""Aliases of the own trust domain: a principal that names one of them, or `cluster.local`, means all of them.

As Istio expands it: only what has the five parts `<domain>/ns/<namespace>/sa/<account>` is, `td/ns/foo/*` is not.
"""

from __future__ import annotations

from dataclasses import replace
from operator import is_

from policy.model import Attribute, Clause, Group, Match, MatchKind, Mesh, Policy, Rule

POINTER = "cluster.local"
"""Whatever the own trust domain is called."""
_PARTS = 5


def expanded(policy: Policy, mesh: Mesh) -> Policy:
    """The policy as it holds in a mesh; the same object where nothing is to be expanded."""
    if policy.rules is None:
        return policy
    own = f"{mesh.trust_domains[0]}/" if len(mesh.trust_domains) == 1 else None
    rules = tuple([rule if _stays(rule, own) else _rule(rule, mesh) for rule in policy.rules])
    if all(map(is_, rules, policy.rules)):
        return policy
    return replace(policy, rules=rules)


def _stays(rule: Rule, own: str | None) -> bool:
    """Whether every principal of a rule begins with the only name of the own trust domain, as nearly all do."""
    for group in (*rule.sources, rule.conditions):
        for clause in group:
            if clause.attribute is Attribute.SOURCE_PRINCIPAL:
                if own is None:
                    return False
                for match in clause.matches:
                    if not match.text.startswith(own):
                        return False
    return True


def _rule(rule: Rule, mesh: Mesh) -> Rule:
    sources = tuple(_group(group, mesh) for group in rule.sources)
    conditions = _group(rule.conditions, mesh)
    if conditions is rule.conditions and all(map(is_, sources, rule.sources)):
        return rule
    return replace(rule, sources=sources, conditions=conditions)


def _group(group: Group, mesh: Mesh) -> Group:
    if not any(clause.attribute is Attribute.SOURCE_PRINCIPAL for clause in group):
        return group
    clauses = tuple(_clause(clause, mesh) for clause in group)
    return group if all(new is old for new, old in zip(clauses, group, strict=True)) else clauses


def _clause(clause: Clause, mesh: Mesh) -> Clause:
    if clause.attribute is not Attribute.SOURCE_PRINCIPAL:
        return clause
    matches = tuple(dict.fromkeys(new for old in clause.matches for new in _match(old, mesh.trust_domains)))
    return clause if matches == clause.matches else replace(clause, matches=matches)


def _match(match: Match, domains: tuple[str, ...]) -> tuple[Match, ...]:
    principal = str(match)
    domain, _, rest = principal.partition("/")
    if principal.count("/") != _PARTS - 1 or domain in ("", "*") or not (domain == POINTER or _named(domain, domains)):
        return (match,)
    suffix = domain[1:] if domain.startswith("*") else None
    kept = match.kind if match.kind is MatchKind.PREFIX else MatchKind.EXACT
    text = rest[:-1] if kept is MatchKind.PREFIX else rest
    return tuple(
        match if suffix is not None and own.endswith(suffix) else Match(kept, f"{own}/{text}") for own in domains
    )


def _named(domain: str, domains: tuple[str, ...]) -> bool:
    """Whether a domain as it was written, perhaps with an asterisk at an end, is one of the own."""
    return any(
        domain == own
        or (domain.endswith("*") and own.startswith(domain[:-1]))
        or (domain.startswith("*") and own.endswith(domain[1:]))
        for own in domains
    )
