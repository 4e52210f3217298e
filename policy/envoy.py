"""A target's policies as what its Envoy enforces by itself: one RBAC filter with one matching tree.

The tree asks, in this order: whether the caller has several names; whether the path is one that every proxy reads alike
(only where policies look at paths, and the proxy is not declared to normalize them); whether a rule denies; whether one
that the tree cannot say in full might deny; whether a rule allows; whether one that it cannot say might. Who comes to
the end is denied. What might be goes on, marked by the verdict's name ASK, to an ext_authz filter that is switched on
by that mark and decides the whole; a proxy without such a filter is told to deny.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from envoy.config.rbac.v3.rbac_pb2 import RBAC as Rules
from envoy.config.rbac.v3.rbac_pb2 import Action as RbacAction
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC as HttpRbac
from envoy.extensions.filters.network.rbac.v3.rbac_pb2 import RBAC as NetworkRbac
from xds.type.matcher.v3.matcher_pb2 import Matcher

from policy.envoy_predicates import Input, Predicate, all_of, any_of, asks, extension, none_of
from policy.envoy_text import PATH_ASCII, PATH_NOT_NORMAL, PATH_PLAIN, Test
from policy.envoy_tree import Cell, OnMatch, cells_of, meaning_of, tree
from policy.model import Action, Attribute, Mesh, Policy, Target
from policy.protocol import NEVER, for_connections
from policy.trust_domains import expanded

PREFIX = "burgee_"
"""Of counters, and of what the filter leaves in its metadata: other filters of its kind do not overwrite it."""
HTTP_METADATA, NETWORK_METADATA = "envoy.filters.http.rbac", "envoy.filters.network.rbac"
HTTP_MARK, NETWORK_MARK = f"{PREFIX}enforced_effective_policy_id", f"{PREFIX}shadow_effective_policy_id"
"""Where ASK is found. The filter for connections says of shadow verdicts only what it decided."""

ASK = "burgee/ask"
CANNOT_ASK = "burgee/cannot-ask"
SEVERAL_NAMES = "burgee/several-names"
NOT_NORMAL = "burgee/path-not-normal"
DEFAULT = "burgee/default"
OPEN = "burgee/open-namespace"
NOT_DELIVERED = "burgee/not-delivered"

_CALLER: Input = (Attribute.SOURCE_PRINCIPAL, ())
_PATH: Input = (Attribute.PATH, ())
_SEVERAL = asks(_CALLER, Test("contains", ","))
"""Envoy joins the names of a certificate by commas, of which no SPIFFE ID has any."""
_ALWAYS = none_of(_SEVERAL)
"""Once that was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """What stands beside the filter in a proxy's configuration."""

    ext_authz: bool = False
    """Behind it is an ext_authz filter that is switched on by the mark."""
    jwt: bool = False
    """Before it is our filter that verifies tokens."""


NOTHING = Proxy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaid:
    """A rule that the tree cannot say in full, and why."""

    policy: str
    rule: int
    reason: str


@dataclass(slots=True)
class _Verdicts:
    deny: list[Cell] = field(default_factory=list)
    might_deny: list[Cell] = field(default_factory=list)
    allow: list[Cell] = field(default_factory=list)
    might_allow: list[Cell] = field(default_factory=list)
    unsaid: list[Unsaid] = field(default_factory=list)
    has_allow: bool = False
    paths: bool = False


def rule_name(policy: Policy, rule: int) -> str:
    """By which a rule is found again in an access log: `namespace/name#2`, counted from 0."""
    return f"{policy.id}#{rule}"


def http_filter(
    target: Target, policies: Sequence[Policy], mesh: Mesh, proxy: Proxy
) -> tuple[HttpRbac, tuple[Unsaid, ...]]:
    """The filter for requests, of all policies that are for a target, and what of them it has to ask for."""
    policies = [expanded(policy, mesh) for policy in policies]
    real = _verdicts((p for p in policies if not p.shadow), mesh, proxy)
    made = HttpRbac(matcher=_matcher(real, target, mesh, proxy), rules_stat_prefix=PREFIX)
    if any(p.shadow for p in policies):
        shadow = _matcher(_verdicts(policies, mesh, proxy), target, mesh, proxy)
        made.shadow_matcher.CopyFrom(shadow)
        made.shadow_rules_stat_prefix = PREFIX
    return made, tuple(real.unsaid)


def network_filter(
    target: Target, policies: Sequence[Policy], mesh: Mesh, proxy: Proxy
) -> tuple[NetworkRbac, tuple[Unsaid, ...]]:
    """The same for connections. Where it has to ask, the mark takes the place of shadow policies."""
    policies = [for_connections(expanded(policy, mesh)) for policy in policies]
    real = _verdicts((p for p in policies if not p.shadow), mesh, proxy)
    matcher = _matcher(real, target, mesh, proxy, http=False)
    made = NetworkRbac(matcher=matcher, stat_prefix=PREFIX, shadow_rules_stat_prefix=PREFIX)
    if real.might_deny or real.might_allow:
        made.shadow_matcher.CopyFrom(matcher)
    elif any(p.shadow for p in policies):
        made.shadow_matcher.CopyFrom(_matcher(_verdicts(policies, mesh, proxy), target, mesh, proxy, http=False))
    return made, tuple(real.unsaid)


def deny_all() -> HttpRbac:
    """What holds until the first delivery. An empty filter would allow everything."""
    return HttpRbac(matcher=Matcher(on_no_match=verdict(NOT_DELIVERED, allow=False)), rules_stat_prefix=PREFIX)


def deny_all_connections() -> NetworkRbac:
    """The same for connections."""
    return NetworkRbac(matcher=Matcher(on_no_match=verdict(NOT_DELIVERED, allow=False)), stat_prefix=PREFIX)


def verdict(name: str, *, allow: bool) -> OnMatch:
    """What is decided, by the name under which Envoy tells it."""
    action = RbacAction(name=name, action=Rules.ALLOW if allow else Rules.DENY)
    return Matcher.OnMatch(action=extension(name, action))


def _verdicts(policies: Iterable[Policy], mesh: Mesh, proxy: Proxy) -> _Verdicts:
    found = _Verdicts()
    ask = verdict(ASK, allow=True) if proxy.ext_authz else verdict(CANNOT_ASK, allow=False)
    for policy in policies:
        if policy.action is Action.AUDIT:
            continue
        found.has_allow |= policy.action is Action.ALLOW
        _add(found, policy, ask, mesh, proxy)
    return found


def _add(found: _Verdicts, policy: Policy, ask: OnMatch, mesh: Mesh, proxy: Proxy) -> None:
    allows = policy.action is Action.ALLOW
    others_decide = policy.action is Action.CUSTOM and policy.provider in mesh.providers
    might = found.might_allow if allows else found.might_deny
    for number, rule in enumerate(policy.rules or ()):
        if rule is NEVER:
            continue
        found.paths |= "path" in rule.condition or any(
            clause.attribute is Attribute.PATH for group in (*rule.operations, rule.conditions) for clause in group
        )
        meaning = meaning_of(rule, jwt=proxy.jwt)
        missing = (*meaning.missing, f"the provider {policy.provider}") if others_decide else meaning.missing
        if missing:
            found.unsaid.append(Unsaid(policy=policy.id, rule=number, reason="; ".join(dict.fromkeys(missing))))
            might.extend(cells_of(meaning.alternatives, ask))
        else:
            said = verdict(rule_name(policy, number), allow=allows)
            (found.allow if allows else found.deny).extend(cells_of(meaning.alternatives, said))


def _matcher(found: _Verdicts, target: Target, mesh: Mesh, proxy: Proxy, *, http: bool = True) -> Matcher:
    is_open = not found.has_allow and target.namespace in mesh.open_namespaces
    last = verdict(OPEN, allow=True) if is_open else verdict(DEFAULT, allow=False)
    stages = Matcher.MatcherList()
    for predicate, then in _stages(found, guarded=http and found.paths and not target.normalized):
        stages.matchers.add(predicate=predicate, on_match=then)
    return Matcher(matcher_list=stages, on_no_match=last)


def _stages(found: _Verdicts, *, guarded: bool) -> Iterator[tuple[Predicate, OnMatch]]:
    yield _SEVERAL, verdict(SEVERAL_NAMES, allow=False)
    if guarded:
        yield not_normal(), verdict(NOT_NORMAL, allow=False)
    for cells in (found.deny, found.might_deny, found.allow, found.might_allow):
        if cells:
            yield _ALWAYS, tree(cells)


def not_normal() -> Predicate:
    """Whether a path, before its query, is one that a proxy which normalizes would change."""
    present, ascii_only = asks(_PATH, Test("regex", r"\C+")), asks(_PATH, Test("regex", PATH_ASCII))
    read = any_of([asks(_PATH, Test("regex", PATH_NOT_NORMAL)), all_of([present, none_of(ascii_only)])])
    return all_of([none_of(asks(_PATH, Test("regex", PATH_PLAIN))), read])
