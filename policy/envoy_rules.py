"""A target's policies as Envoy's RBAC `rules`, which is how Istio writes them: to measure beside, and to be judged by.

What is pushed is the tree of `policy.envoy`: Envoy goes through `rules` one by one. Two filters are meant to stand one
after the other, that of DENY first; several names in one certificate are joined here, too, and nobody asks about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from envoy.config.core.v3.address_pb2 import CidrRange
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.rbac.v3 import rbac_pb2 as rbac
from envoy.config.route.v3.route_components_pb2 import HeaderMatcher
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.path.match.uri_template.v3.uri_template_match_pb2 import UriTemplateMatchConfig
from envoy.type.matcher.v3.metadata_pb2 import MetadataMatcher
from envoy.type.matcher.v3.path_pb2 import PathMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from policy.attributes import LISTS
from policy.envoy_predicates import JWT_FILTER, JWT_KEY
from policy.envoy_text import PRINCIPAL, Inexpressible, tests_of
from policy.matching import request_principal_parts
from policy.model import Action, Attribute, Clause, IpNetwork, Match, MatchKind, Mesh, Policy, Rule, Target
from policy.trust_domains import expanded

Message: TypeAlias = Any
"""Envoy's messages have no types."""

_OF_REQUEST = frozenset(
    {
        *(Attribute.HOST, Attribute.METHOD, Attribute.PATH, Attribute.DESTINATION_IP),
        *(Attribute.DESTINATION_PORT, Attribute.SNI, Attribute.METADATA),
    }
)
"""Permissions; everything else is of a principal, as Istio divides them."""


def rules_filters(target: Target, policies: Sequence[Policy], mesh: Mesh) -> tuple[RBAC, RBAC | None]:
    """The filter of DENY and that of ALLOW, which an open namespace has none of. Raises Inexpressible."""
    mine = [expanded(p, mesh) for p in policies if not p.shadow and p.action is not Action.AUDIT]
    allows = [p for p in mine if p.action is Action.ALLOW]
    denies = [p for p in mine if p.action is not Action.ALLOW]
    for policy in denies:
        if policy.action is Action.CUSTOM and policy.provider in mesh.providers:
            raise Inexpressible(f"the provider {policy.provider} decides")
    deny = _filter(rbac.RBAC.DENY, denies)
    open_to_all = not allows and target.namespace in mesh.open_namespaces
    return deny, None if open_to_all else _filter(rbac.RBAC.ALLOW, allows)


def _filter(action: int, policies: Iterable[Policy]) -> RBAC:
    made = RBAC(rules=rbac.RBAC(action=action))
    for policy in policies:
        for number, rule in enumerate(policy.rules or ()):
            name = f"ns[{policy.namespace}]-policy[{policy.name}]-rule[{number}]"
            made.rules.policies[name].CopyFrom(_policy(rule))
    return made


def _policy(rule: Rule) -> Message:
    if rule.condition:
        raise Inexpressible("a CEL condition")
    of_request = [_permission(c) for c in rule.conditions if c.attribute in _OF_REQUEST]
    of_caller = [_principal(c) for c in rule.conditions if c.attribute not in _OF_REQUEST]
    made = rbac.Policy()
    for group in rule.operations or ((),):
        made.permissions.append(_all(rbac.Permission, "rules", [*map(_permission, group), *of_request]))
    for group in rule.sources or ((),):
        made.principals.append(_all(rbac.Principal, "ids", [*map(_principal, group), *of_caller]))
    return made


def _set(kind: Any, field: str, items: list[Message]) -> Message:
    return kind.Set(**{field: items})


def _all(kind: Any, field: str, items: list[Message]) -> Message:
    if not items:
        return kind(any=True)
    return items[0] if len(items) == 1 else kind(**{f"and_{field}": _set(kind, field, items)})


def _any(kind: Any, field: str, items: list[Message], *, negated: bool) -> Message:
    if not items:  # no value can be what was written
        return kind(any=True) if negated else kind(**{f"not_{field[:-1]}": kind(any=True)})
    found = items[0] if len(items) == 1 else kind(**{f"or_{field}": _set(kind, field, items)})
    return kind(**{f"not_{field[:-1]}": found}) if negated else found


def _permission(clause: Clause) -> Message:
    items = [item for match in clause.matches for item in _permissions(clause, match)]
    return _any(rbac.Permission, "rules", items, negated=clause.negated)


def _permissions(clause: Clause, match: Match) -> list[Message]:
    kind = rbac.Permission
    match clause.attribute:
        case Attribute.DESTINATION_PORT:
            return [kind(destination_port=int(match.text))]
        case Attribute.DESTINATION_IP:
            return [kind(destination_ip=_cidr(match.network))]
        case Attribute.SNI:
            return [kind(requested_server_name=text) for text in _texts(clause.attribute, match)]
        case Attribute.METADATA:
            return [kind(metadata=_metadata(clause.key[0], clause.key[1:2], match, lists=clause.key[2:] == (LISTS,)))]
        case Attribute.PATH if match.kind is MatchKind.TEMPLATE:
            template = UriTemplateMatchConfig(path_template=match.text.replace("{**}", "**").replace("{*}", "*"))
            extension = TypedExtensionConfig(name="envoy.path.match.uri_template.uri_template_matcher")
            extension.typed_config.Pack(template)
            return [kind(uri_template=extension)]
        case Attribute.PATH:
            plain = _texts(Attribute.HEADER, match)  # without the query, which Envoy takes away itself
            return [kind(url_path=PathMatcher(path=text)) for text in plain]
    name = ":authority" if clause.attribute is Attribute.HOST else ":method"
    return [kind(header=_header(name, clause.attribute, match))]


def _principal(clause: Clause) -> Message:
    items = [item for match in clause.matches for item in _principals(clause, match)]
    return _any(rbac.Principal, "ids", items, negated=clause.negated)


def _principals(clause: Clause, match: Match) -> list[Message]:
    kind = rbac.Principal
    if clause.attribute in PRINCIPAL:
        names = _texts(clause.attribute, match)
        return [kind(authenticated=rbac.Principal.Authenticated(principal_name=name)) for name in names]
    match clause.attribute:
        case Attribute.SOURCE_IP:
            return [kind(direct_remote_ip=_cidr(match.network))]
        case Attribute.REMOTE_IP:
            return [kind(remote_ip=_cidr(match.network))]
        case Attribute.HEADER:
            return [kind(header=_header(clause.key[0], clause.attribute, match))]
        case Attribute.REQUEST_PRINCIPAL:
            issuer, subject = request_principal_parts(match.text)
            both = [
                kind(metadata=_metadata(JWT_FILTER, (JWT_KEY, claim), part, lists=False))
                for claim, part in (("iss", issuer), ("sub", subject))
            ]
            return [_all(kind, "ids", both)]
    named = {Attribute.REQUEST_AUDIENCES: ("aud",), Attribute.REQUEST_PRESENTER: ("azp",)}
    path = (JWT_KEY, *named.get(clause.attribute, clause.key))
    return [kind(metadata=_metadata(JWT_FILTER, path, match, lists=lists)) for lists in (False, True)]


def _texts(attribute: Attribute, match: Match) -> list[StringMatcher]:
    found = []
    for test in tests_of(attribute, match):
        if test.how == "regex":
            text = StringMatcher()
            text.safe_regex.regex = test.text
        else:
            text = StringMatcher(**{test.how: test.text, "ignore_case": test.fold})
        found.append(text)
    return found


def _header(name: str, attribute: Attribute, match: Match) -> HeaderMatcher:
    if match.kind is MatchKind.PRESENT:
        return HeaderMatcher(name=name, present_match=True)
    return HeaderMatcher(name=name, string_match=_texts(attribute, match)[0])


def _cidr(network: IpNetwork | None) -> CidrRange:
    if network is None:
        raise Inexpressible("an address is compared with networks only")
    made = CidrRange(address_prefix=str(network.network_address))
    made.prefix_len.value = network.prefixlen
    return made


def _metadata(filter_name: str, path: Iterable[str], match: Match, *, lists: bool) -> MetadataMatcher:
    made = MetadataMatcher(filter=filter_name)
    for step in path:
        made.path.add(key=step)
    value = made.value.list_match.one_of if lists else made.value
    value.string_match.CopyFrom(_texts(Attribute.HEADER, match)[0])
    return made
