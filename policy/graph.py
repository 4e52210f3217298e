"""Who can reach whom, as policies say it: services, those that rules name as callers, and what they may do.

Callers that a rule names by namespace, ending or wildcard stay one node with its members, so that a rule for everybody
is one edge. What is said is never less than what can be: where a rule looks at more than the graph knows, the pair is
`limited`, and a pair that is not there, or `denied`, is never allowed whatever the request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from policy.graph_callers import ANYONE, Caller, callers_of
from policy.model import Action, Attribute, Group, Mesh, Policy, Rule
from policy.snapshot import Judge, Snapshot
from policy.words import clean, phrase, place

FIELDS = {
    (Attribute.METHOD, False): "methods",
    (Attribute.METHOD, True): "not_methods",
    (Attribute.PATH, False): "paths",
    (Attribute.PATH, True): "not_paths",
    (Attribute.HOST, False): "hosts",
    (Attribute.HOST, True): "not_hosts",
    (Attribute.DESTINATION_PORT, False): "ports",
    (Attribute.DESTINATION_PORT, True): "not_ports",
}


class Effect(StrEnum):
    """What an edge does. ASK: a provider must agree besides."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class Verdict(StrEnum):
    """Of a pair: LIMITED where it depends on more than who calls, be it method, path or a condition."""

    ALLOWED = "allowed"
    LIMITED = "limited"
    DENIED = "denied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one rule says of a caller. Any of `operations` and all of `conditions`; both empty is everything."""

    policy: str
    rule: int | None
    origin: str
    shadow: bool = False
    operations: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...] = ()
    conditions: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is for every request of the caller's."""
        return not self.operations and not self.conditions

    def document(self) -> dict[str, Any]:
        """As JSON."""
        operations = [{name: list(texts) for name, texts in operation} for operation in self.operations]
        found = {"policy": self.policy, "rule": self.rule, "origin": self.origin}
        return found | {"shadow": self.shadow, "operations": operations, "conditions": list(self.conditions)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """From a caller to a service. `variant` counts the workloads of different policies that share the service's ID."""

    caller: str
    service: str
    effect: Effect
    variant: int
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A target. `open`: it can be called by anybody, as no ALLOW policy is for it and its namespace says so."""

    id: str
    namespace: str
    labels: tuple[tuple[str, str], ...]
    open: bool
    variants: int
    policies: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One service, or caller that is named, and one that it may reach."""

    caller: str
    service: str
    verdict: Verdict
    grants: tuple[Grant, ...]


@dataclass(slots=True)
class Graph:
    """Nodes and edges; made by `graph_of`."""

    services: dict[str, Service] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=dict)
    """By their ids; those that are services are not among them."""
    edges: list[Edge] = field(default_factory=list)
    revision: int | None = None

    def principals(self) -> Iterator[str]:
        """Everybody who is known by an ID."""
        yield from self.services
        yield from (caller.id for caller in self.callers.values() if caller.exact)

    def members(self, caller: Caller) -> tuple[str, ...]:
        """Who of them a caller stands for; not asked of one that stands for everybody."""
        return tuple(who for who in self.principals() if caller.includes(who.removeprefix("spiffe://")))

    def pairs(self) -> Iterator[Pair]:
        """Everybody with an ID and every service that may be reached, or is denied by name."""
        principals = tuple(self.principals())
        covered = {
            caller.id: frozenset(principals if caller.everyone else self.members(caller))
            for caller in self.callers.values()
        }
        into: dict[str, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            into[edge.service].append(edge)
        for service in self.services.values():
            for who in principals:
                mine = [e for e in into[service.id] if who == e.caller or who in covered.get(e.caller, ())]
                if mine and (pair := self._pair(who, service, mine)) is not None:
                    yield pair

    def _pair(self, who: str, service: Service, edges: list[Edge]) -> Pair | None:
        """None where nothing allows it."""
        enforced = [(edge, grant) for edge in edges for grant in edge.grants if not grant.shadow]
        whole = {(edge.effect, edge.variant) for edge, grant in enforced if grant.whole and self._certain(edge)}
        allows = [(edge, grant) for edge, grant in enforced if edge.effect is Effect.ALLOW]
        variants = range(service.variants)
        if {edge.variant for edge, _ in allows} != set(variants):
            return None
        if any(effect is Effect.DENY for effect, _ in whole):
            verdict = Verdict.DENIED
        elif len(allows) == len(enforced) and all((Effect.ALLOW, variant) in whole for variant in variants):
            verdict = Verdict.ALLOWED
        else:
            verdict = Verdict.LIMITED
        return Pair(caller=who, service=service.id, verdict=verdict, grants=tuple(grant for _, grant in allows))

    def _certain(self, edge: Edge) -> bool:
        caller = self.callers.get(edge.caller)
        return caller is None or caller.certain

    def document(self) -> dict[str, Any]:
        """As JSON. Members are left out of callers that stand for everybody."""
        return {
            "revision": self.revision,
            "services": [_service(service) for service in self.services.values()],
            "callers": [
                caller.document() | {"members": [] if caller.everyone else list(self.members(caller))}
                for caller in self.callers.values()
            ],
            "edges": [
                {
                    "caller": edge.caller,
                    "service": edge.service,
                    "effect": edge.effect.value,
                    "variant": edge.variant,
                    "grants": [grant.document() for grant in edge.grants],
                }
                for edge in self.edges
            ],
        }


def _service(service: Service) -> dict[str, Any]:
    return {
        "id": service.id,
        "namespace": service.namespace,
        "labels": dict(service.labels),
        "default": "allow" if service.open else "deny",
        "variants": service.variants,
        "policies": service.policies,
    }


def graph_of(snapshot: Snapshot, *, revision: int | None = None) -> Graph:
    """The graph of all targets of a snapshot."""
    graph = Graph(revision=revision)
    for spiffe_id, targets in snapshot.targets.items():
        judges = snapshot.judges(spiffe_id)
        graph.services[spiffe_id] = Service(
            id=spiffe_id,
            namespace=targets[0].namespace,
            labels=targets[0].labels,
            open=all(map(_is_open, judges)),
            variants=len(judges),
            policies=sum(len(judge.policies) for judge in judges),
        )
    for spiffe_id in snapshot.targets:
        for variant, judge in enumerate(snapshot.judges(spiffe_id)):
            _add(graph, spiffe_id, variant, judge, snapshot.mesh)
    return graph


def _add(graph: Graph, spiffe_id: str, variant: int, judge: Judge, mesh: Mesh) -> None:
    found: dict[tuple[str, Effect], list[Grant]] = defaultdict(list)
    for policy in judge.policies:
        if policy.action is Action.AUDIT:
            continue
        effect = _effect(policy, mesh)
        for number, rule in enumerate(policy.rules or ()):
            for caller, grant in _grants(policy, number, rule):
                found[_node(graph, caller), effect].append(grant)
    if _is_open(judge):
        found[_node(graph, ANYONE), Effect.ALLOW].append(Grant(policy="", rule=None, origin="the namespace's default"))
    graph.edges += [
        Edge(caller=caller, service=spiffe_id, effect=effect, variant=variant, grants=tuple(dict.fromkeys(grants)))
        for (caller, effect), grants in found.items()
    ]


def _is_open(judge: Judge) -> bool:
    return judge.evaluators(http=True)[0].default.allowed


def _node(graph: Graph, caller: Caller) -> str:
    if caller.id not in graph.services:
        graph.callers.setdefault(caller.id, caller)
    return caller.id


def _effect(policy: Policy, mesh: Mesh) -> Effect:
    if policy.action is Action.CUSTOM:
        return Effect.ASK if policy.provider in mesh.providers else Effect.DENY
    return Effect.ALLOW if policy.action is Action.ALLOW else Effect.DENY


def _grants(policy: Policy, number: int, rule: Rule) -> Iterable[tuple[Caller, Grant]]:
    """For each caller that a rule names, what it says."""
    operations = () if any(not group for group in rule.operations) else tuple(map(_operation, rule.operations))
    of_operations = tuple(words for group in rule.operations for words in _unnamed(group))
    condition = (clean(rule.condition, 400),) if rule.condition else ()
    origin = place(rule.origin) or place(policy.origin)
    for callers, others in callers_of(rule):
        conditions = tuple(dict.fromkeys((*map(phrase, others), *of_operations, *condition)))
        grant = Grant(
            policy=policy.id,
            rule=number,
            origin=origin,
            shadow=policy.shadow,
            operations=operations,
            conditions=conditions,
        )
        for caller in callers:
            yield caller, grant


def _operation(group: Group) -> tuple[tuple[str, tuple[str, ...]], ...]:
    named = ((FIELDS[key], clause) for clause in group if (key := (clause.attribute, clause.negated)) in FIELDS)
    return tuple((name, tuple(clean(str(match)) for match in clause.matches)) for name, clause in named)


def _unnamed(group: Group) -> Iterator[str]:
    return (phrase(clause) for clause in group if (clause.attribute, clause.negated) not in FIELDS)
