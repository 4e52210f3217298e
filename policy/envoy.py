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

from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC as HttpRbac
from envoy.extensions.filters.network.rbac.v3.rbac_pb2 import RBAC as NetworkRbac
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from xds.type.matcher.v3.matcher_pb2 import Matcher

from policy.envoy_predicates import Input, Predicate, all_of, any_of, asks, none_of
from policy.envoy_shares import ASK, CANNOT_ASK, Proxy, Share, Shares, Unsaid, rule_name, verdict
from policy.envoy_text import PATH_ASCII, PATH_NOT_NORMAL, PATH_PLAIN, Test
from policy.envoy_tree import Cell, OnMatch, listed, otherwise, tree
from policy.envoy_wire import field as put_field
from policy.envoy_wire import type_of
from policy.model import Action, Attribute, Mesh, Policy, Target

__all__ = [
    "ASK",
    "CANNOT_ASK",
    "NOTHING",
    "Config",
    "Proxy",
    "Shares",
    "Unsaid",
    "deny_all",
    "deny_all_connections",
    "http_config",
    "http_filter",
    "network_config",
    "network_filter",
    "rule_name",
]

PREFIX = "burgee_"
"""Of counters, and of what the filter leaves in its metadata: other filters of its kind do not overwrite it."""
HTTP_METADATA, NETWORK_METADATA = "envoy.filters.http.rbac", "envoy.filters.network.rbac"
HTTP_MARK, NETWORK_MARK = f"{PREFIX}enforced_effective_policy_id", f"{PREFIX}shadow_effective_policy_id"
"""Where ASK is found. The filter for connections says of shadow verdicts only what it decided."""

SEVERAL_NAMES = "burgee/several-names"
NOT_NORMAL = "burgee/path-not-normal"
DEFAULT = "burgee/default"
OPEN = "burgee/open-namespace"
NOT_DELIVERED = "burgee/not-delivered"

_PREFIX = PREFIX.encode()
_CALLER: Input = (Attribute.SOURCE_PRINCIPAL, ())
_PATH: Input = (Attribute.PATH, ())
_SEVERAL = asks(_CALLER, Test("contains", ","))
"""Envoy joins the names of a certificate by commas, of which no SPIFFE ID has any."""
_ALWAYS = none_of(_SEVERAL)
"""Once that was asked."""


NOTHING = Proxy()


@dataclass(slots=True)
class _Verdicts:
    deny: list[Cell] = field(default_factory=list)
    might_deny: list[Cell] = field(default_factory=list)
    allow: list[Cell] = field(default_factory=list)
    might_allow: list[Cell] = field(default_factory=list)
    has_allow: bool = False
    paths: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A filter's configuration, and what of it the proxy has to ask for. While `shares` are kept, the next is made
    faster of the same `Shares`."""

    message: AnyMessage
    unsaid: tuple[Unsaid, ...]
    shares: tuple[Share, ...]


def http_config(
    target: Target, policies: Sequence[Policy], mesh: Mesh, proxy: Proxy, lent: Shares | None = None
) -> Config:
    """The filter for requests, of all policies that are for a target."""
    lent = lent or Shares()
    shares = [lent.of(policy, mesh, proxy, http=True) for policy in policies]
    fields = {"rules_stat_prefix": _PREFIX, "matcher": _matcher(_real(shares), target, mesh)}
    if len(_real(shares)) < len(shares):
        fields |= {"shadow_rules_stat_prefix": _PREFIX, "shadow_matcher": _matcher(shares, target, mesh)}
    return _config(HttpRbac, fields, shares)


def network_config(
    target: Target, policies: Sequence[Policy], mesh: Mesh, proxy: Proxy, lent: Shares | None = None
) -> Config:
    """The same for connections. Where it has to ask, the mark takes the place of shadow policies."""
    lent = lent or Shares()
    shares = [lent.of(policy, mesh, proxy, http=False) for policy in policies]
    real = _real(shares)
    matcher = _matcher(real, target, mesh, http=False)
    fields = {"stat_prefix": _PREFIX, "shadow_rules_stat_prefix": _PREFIX, "matcher": matcher}
    if any(share.might for share in _deciding(real)):
        fields["shadow_matcher"] = matcher
    elif len(real) < len(shares):
        fields["shadow_matcher"] = _matcher(shares, target, mesh, http=False)
    return _config(NetworkRbac, fields, shares)


def http_filter(
    target: Target, policies: Sequence[Policy], mesh: Mesh, proxy: Proxy
) -> tuple[HttpRbac, tuple[Unsaid, ...]]:
    """The filter for requests as a message, and what of it the proxy has to ask for."""
    made = http_config(target, policies, mesh, proxy)
    return HttpRbac.FromString(made.message.value), made.unsaid


def network_filter(
    target: Target, policies: Sequence[Policy], mesh: Mesh, proxy: Proxy
) -> tuple[NetworkRbac, tuple[Unsaid, ...]]:
    """The same for connections."""
    made = network_config(target, policies, mesh, proxy)
    return NetworkRbac.FromString(made.message.value), made.unsaid


def deny_all() -> HttpRbac:
    """What holds until the first delivery. An empty filter would allow everything."""
    return HttpRbac(matcher=_nothing_yet(), rules_stat_prefix=PREFIX)


def deny_all_connections() -> NetworkRbac:
    """The same for connections."""
    return NetworkRbac(matcher=_nothing_yet(), stat_prefix=PREFIX)


def _nothing_yet() -> Matcher:
    return Matcher.FromString(otherwise(b"", verdict(NOT_DELIVERED, allow=False)))


def _real(shares: Sequence[Share]) -> list[Share]:
    return [share for share in shares if not share.origin.shadow]


def _deciding(shares: Iterable[Share]) -> Iterator[Share]:
    return (share for share in shares if share.origin.action is not Action.AUDIT)


def _config(kind: type[Message], fields: dict[str, bytes], shares: Sequence[Share]) -> Config:
    numbers = kind.DESCRIPTOR.fields_by_name
    raw = b"".join(
        put_field(kind, name)(fields[name]) for name in sorted(fields, key=lambda name: numbers[name].number)
    )
    unsaid = tuple(one for share in _deciding(_real(shares)) for one in share.unsaid)
    return Config(message=AnyMessage(type_url=type_of(kind), value=raw), unsaid=unsaid, shares=tuple(shares))


def _verdicts(shares: Iterable[Share]) -> _Verdicts:
    found = _Verdicts()
    for share in _deciding(shares):
        allows = share.origin.action is Action.ALLOW
        found.has_allow |= allows
        found.paths |= share.paths
        (found.allow if allows else found.deny).extend(share.said)
        (found.might_allow if allows else found.might_deny).extend(share.might)
    return found


def _matcher(shares: Sequence[Share], target: Target, mesh: Mesh, *, http: bool = True) -> bytes:
    found = _verdicts(shares)
    is_open = not found.has_allow and target.namespace in mesh.open_namespaces
    last = verdict(OPEN, allow=True) if is_open else verdict(DEFAULT, allow=False)
    return otherwise(listed(_stages(found, guarded=http and found.paths and not target.normalized)), last)


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
