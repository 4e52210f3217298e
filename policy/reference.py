"""The evaluator that other back ends are compared with: every rule in its order, one regular expression for each value.

Written from Istio's description, shares nothing with the index but the model, and is never asked in production.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from policy import cel
from policy.decision import Decision, Reason
from policy.model import Action, Attribute, Clause, Group, Match, MatchKind, Mesh, Policy, Request, Rule, Target
from policy.protocol import for_connections
from policy.trust_domains import expanded
from policy.workload import is_for

_PCHAR = r"[a-zA-Z0-9\-._~%!$&'()*+,;=:@]"


def decide(policies: Iterable[Policy], mesh: Mesh, target: Target, request: Request) -> Decision:
    """What is decided for a target."""
    mine = [expanded(p, mesh) for p in policies if is_for(p, target, root_namespace=mesh.root_namespace)]
    if not request.http:
        mine = [for_connections(p) for p in mine]
    enforced = _decide([p for p in mine if not p.shadow], mesh, target, request)
    if not any(p.shadow and p.action is not Action.AUDIT for p in mine):
        return enforced
    shadow = _decide(mine, mesh, target, request)
    return Decision(
        allowed=enforced.allowed,
        reason=enforced.reason,
        policy=enforced.policy,
        rule=enforced.rule,
        providers=enforced.providers,
        shadow=shadow,
    )


def _decide(policies: list[Policy], mesh: Mesh, target: Target, request: Request) -> Decision:
    providers: list[str] = []
    for policy, number in _matching(policies, Action.CUSTOM, request):
        if policy.provider not in mesh.providers:
            return Decision(allowed=False, reason=Reason.NO_PROVIDER, policy=policy.id, rule=number)
        if policy.provider not in providers:
            providers.append(policy.provider)
    for policy, number in _matching(policies, Action.DENY, request):
        return Decision(allowed=False, reason=Reason.DENIED_BY_RULE, policy=policy.id, rule=number)
    asked = tuple(sorted(providers))
    if target.namespace in mesh.open_namespaces and not any(p.action is Action.ALLOW for p in policies):
        return Decision(allowed=True, reason=Reason.NAMESPACE_IS_OPEN, providers=asked)
    for policy, number in _matching(policies, Action.ALLOW, request):
        return Decision(allowed=True, reason=Reason.ALLOWED_BY_RULE, policy=policy.id, rule=number, providers=asked)
    return Decision(allowed=False, reason=Reason.NOTHING_ALLOWS)


def _matching(policies: list[Policy], action: Action, request: Request) -> Iterable[tuple[Policy, int]]:
    for policy in policies:
        if policy.action is action:
            for number, rule in enumerate(policy.rules or ()):
                if rule_matches(rule, action, request):
                    yield policy, number


def rule_matches(rule: Rule, action: Action, request: Request) -> bool:
    """One source, one operation, all conditions."""
    return (
        (not rule.sources or any(_all(group, request) for group in rule.sources))
        and (not rule.operations or any(_all(group, request) for group in rule.operations))
        and _all(rule.conditions, request)
        and (not rule.condition or cel.holds(rule.condition, action, request))
    )


def _all(group: Group, request: Request) -> bool:
    return all(clause_holds(clause, request) for clause in group)


def clause_holds(clause: Clause, request: Request) -> bool:
    """One of the alternatives matches one of the values; where negated, none does."""
    values = _values(clause, request)
    return clause.negated != any(_matches(match, clause.attribute, v) for match in clause.matches for v in values)


def _values(clause: Clause, request: Request) -> list[Any]:
    if clause.attribute.http_only and not request.http:
        return []
    claims = request.claims or {}
    headers = {":method": request.method, ":authority": request.host, "host": request.host, **request.headers}
    found: Any = None
    match clause.attribute:
        case (
            Attribute.SOURCE_PRINCIPAL
            | Attribute.SOURCE_NAMESPACE
            | Attribute.SOURCE_SERVICE_ACCOUNT
            | Attribute.SOURCE_TRUST_DOMAIN
        ):
            found = request.principal
        case Attribute.SOURCE_IP:
            found = request.source_ip
        case Attribute.REMOTE_IP:
            found = request.remote_ip
        case Attribute.DESTINATION_IP:
            found = request.destination_ip
        case Attribute.DESTINATION_PORT:
            found = None if request.destination_port is None else str(request.destination_port)
        case Attribute.SNI:
            found = request.sni
        case Attribute.HOST:
            found = request.host
        case Attribute.METHOD:
            found = request.method
        case Attribute.PATH:
            found = request.path
        case Attribute.HEADER:
            found = headers.get(clause.key[0])
        case Attribute.REQUEST_PRINCIPAL:
            pair = (claims.get("iss"), claims.get("sub"))
            return [pair] if all(isinstance(part, str) for part in pair) else []
        case Attribute.REQUEST_AUDIENCES:
            found = claims.get("aud")
        case Attribute.REQUEST_PRESENTER:
            found = claims.get("azp")
        case Attribute.CLAIM:
            found = _walk(claims, clause.key)
            if clause.key in (("scope",), ("permission",)) and isinstance(found, str):
                found = re.findall("[^ ]+", found)
        case Attribute.METADATA:
            found = _walk(request.metadata, clause.key[:2])
            if isinstance(found, str) != (len(clause.key) == 2):
                return []
    return [v for v in (found if isinstance(found, list | tuple) else [found]) if isinstance(v, str)]


def _walk(value: Any, key: tuple[str, ...]) -> Any:
    for step in key:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _matches(match: Match, attribute: Attribute, value: Any) -> bool:
    if match.kind is MatchKind.NETWORK:
        try:
            return ipaddress.ip_address(value) in (match.network or ())
        except ValueError:
            return False
    if match.kind is MatchKind.REQUEST_PRINCIPAL:
        return all(re.fullmatch(p, v) for p, v in zip(_of_request_principal(match.text), value, strict=True))
    flags = re.ASCII | re.DOTALL | (re.IGNORECASE if attribute is Attribute.HOST else 0)
    if attribute is Attribute.HOST:  # `re` folds more than ASCII even so
        value = value.encode("utf-8", "surrogateescape")
        return re.fullmatch(_expression(match).encode("utf-8", "surrogateescape"), value, flags) is not None
    return re.fullmatch(_expression(match), value, flags) is not None


def _expression(match: Match) -> str:
    text = re.escape(match.text)
    match match.kind:
        case MatchKind.PREFIX:
            return f"{text}.*"
        case MatchKind.SUFFIX:
            return f".*{text}"
        case MatchKind.PRESENT:
            return ".*"
        case MatchKind.NON_EMPTY:
            return r"[^\n]+"
        case MatchKind.NAMESPACE:
            return ".*/ns/" + text.replace(r"\*", ".*") + "/.*"
        case MatchKind.TRUST_DOMAIN:
            return text.replace(r"\*", "[^/]*") + "/.*"
        case MatchKind.SERVICE_ACCOUNT:
            namespace, _, account = match.text.partition("/")
            return f".+/ns/{re.escape(namespace)}/(.+/|)sa/{re.escape(account)}(/.+)?"
        case MatchKind.TEMPLATE:
            parts = re.split(r"(\{\*\*?\})", match.text)
            classes = {"{*}": f"{_PCHAR}+", "{**}": f"{_PCHAR[:-1]}/]*"}
            return "".join(classes.get(part) or re.escape(part) for part in parts)
    return text


def _of_request_principal(text: str) -> tuple[str, str]:
    issuer, subject = text.rsplit("/", 1) if "/" in text else (text, "")
    anything = ".+"
    if text == "*":
        return anything, anything
    if text.startswith("*"):
        if "/" not in text:
            return anything, f"(?s:.*){re.escape(text[1:])}"
        return (anything if issuer == "*" else f"(?s:.*){re.escape(issuer[1:])}"), re.escape(subject)
    if text.endswith("*"):
        if "/" not in text:
            return f"{re.escape(text[:-1])}(?s:.*)", anything
        return re.escape(issuer), (anything if subject == "*" else f"{re.escape(subject[:-1])}(?s:.*)")
    return re.escape(issuer), re.escape(subject)
