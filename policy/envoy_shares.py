"""What each policy has a share of in filters, made once for all of them and kept from one revision to the next.

A policy that did not change is the same object in both; of one that did, the rules before and after the change are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from weakref import WeakValueDictionary

from envoy.config.rbac.v3.rbac_pb2 import RBAC as Rules
from envoy.config.rbac.v3.rbac_pb2 import Action as RbacAction
from xds.type.matcher.v3.matcher_pb2 import Matcher

from policy.envoy_tree import Cell, Meaning, OnMatch, cells_of, meaning_of
from policy.envoy_wire import extension, field, raw_of
from policy.guard import looks_at_path
from policy.model import Action, Mesh, Policy, Rule
from policy.protocol import NEVER, for_connections
from policy.trust_domains import expanded

ASK = "burgee/ask"
CANNOT_ASK = "burgee/cannot-ask"

_action, _name = field(Matcher.OnMatch, "action"), field(RbacAction, "name")
_DENY = raw_of(RbacAction(action=Rules.DENY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """What a proxy's configuration has room for beside the filter of the policies."""

    ext_authz: bool = False
    """Behind it is an ext_authz filter that is switched on by the mark."""
    jwt: bool = False
    """What it is sent may be a chain, with our filter that verifies tokens before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaid:
    """A rule that the tree cannot say in full, and why."""

    policy: str
    rule: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Share:
    """Of one policy. `said` are the cells of its rules that the tree says in full, `might` those of the others."""

    origin: Policy
    mesh: Mesh
    rules: tuple[Rule, ...]
    """As they hold in the mesh, for the protocol."""
    meanings: tuple[Meaning, ...]
    said: tuple[Cell, ...]
    might: tuple[Cell, ...]
    unsaid: tuple[Unsaid, ...]
    paths: bool
    """Whether any looks at paths."""


class Shares:
    """Of all policies, for as long as somebody keeps what was made of them."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[object, ...], Share] = WeakValueDictionary()
        self._last: WeakValueDictionary[tuple[object, ...], Share] = WeakValueDictionary()

    def of(self, policy: Policy, mesh: Mesh, proxy: Proxy, *, http: bool) -> Share:
        """The share of a policy in filters for requests, or for connections. It keeps what its key tells apart by
        identity."""
        key, name = (id(policy), id(mesh), proxy, http), (policy.id, policy.action, proxy.jwt, http)
        share = self._known.get(key)
        if share is None:
            share = self._known[key] = self._last[name] = _share(policy, mesh, proxy, http, self._last.get(name))
        return share


def verdict(name: str, *, allow: bool) -> OnMatch:
    """What is decided, by the name under which Envoy tells it."""
    return _action(extension(name, RbacAction, _name(name.encode()) + (b"" if allow else _DENY)))


def rule_name(policy: Policy, rule: int) -> str:
    """By which a rule is found again in an access log: `namespace/name#2`, counted from 0."""
    return f"{policy.id}#{rule}"


def _share(policy: Policy, mesh: Mesh, proxy: Proxy, http: bool, last: Share | None) -> Share:
    holds = expanded(policy, mesh)
    rules = (holds if http else for_connections(holds)).rules or ()
    meanings = _meanings(rules, proxy, last)
    allows = policy.action is Action.ALLOW
    asked = (f"the provider {policy.provider}",) if _others_decide(policy, mesh) else ()
    ask = verdict(ASK, allow=True) if proxy.ext_authz else verdict(CANNOT_ASK, allow=False)
    said: list[Cell] = []
    might: list[Cell] = []
    unsaid = []
    for number, meaning in enumerate(meanings):
        if rules[number] is NEVER:
            continue
        if missing := (*meaning.missing, *asked):
            unsaid.append(Unsaid(policy=policy.id, rule=number, reason="; ".join(dict.fromkeys(missing))))
            might.extend(cells_of(meaning.alternatives, ask))
        else:
            said.extend(cells_of(meaning.alternatives, verdict(rule_name(policy, number), allow=allows)))
    return Share(
        origin=policy,
        mesh=mesh,
        rules=rules,
        meanings=meanings,
        said=tuple(said),
        might=tuple(might),
        unsaid=tuple(unsaid),
        paths=any(map(looks_at_path, rules)),
    )


def _others_decide(policy: Policy, mesh: Mesh) -> bool:
    return policy.action is Action.CUSTOM and policy.provider in mesh.providers


def _meanings(rules: Sequence[Rule], proxy: Proxy, last: Share | None) -> tuple[Meaning, ...]:
    """Of rules, of which those before and after a change were known."""
    known = last.rules if last is not None else ()
    head = _alike(rules, known)
    tail = _alike(rules[head:][::-1], known[head:][::-1])
    made = [meaning_of(rule, jwt=proxy.jwt) for rule in rules[head : len(rules) - tail]]
    if last is None:
        return tuple(made)
    return (*last.meanings[:head], *made, *last.meanings[len(known) - tail :])


def _alike(rules: Sequence[Rule], known: Sequence[Rule]) -> int:
    """How many are the same from the first on."""
    return sum(1 for _ in takewhile(bool, map(eq, rules, known)))
