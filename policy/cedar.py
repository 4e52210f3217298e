"""A target's policies as Cedar text, and a request as the context that it looks at.

Cedar has no regular expressions and no quantifiers: templates, service accounts and parts of claims cannot be said, nor
can CEL conditions and other people's verdicts. An attribute has the name that conditions use, `request.headers[x-a]`;
one that is absent is no part of the context. A target's namespace that is open has one policy more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from policy.attributes import READERS, SEPARATOR
from policy.envoy_predicates import ADDRESSES
from policy.envoy_text import PRINCIPAL
from policy.matching import fold, request_principal_parts
from policy.model import Action, Attribute, Clause, Group, Match, MatchKind, Mesh, Policy, Request, Rule, Target
from policy.protocol import NEVER, for_connections
from policy.trust_domains import expanded


class Inexpressible(Exception):
    """Cedar cannot say this; the text says why."""


ANY = None
_PERMIT_ALL = '@id("open namespace")\npermit (principal, action, resource);'


def cedar_text(target: Target, policies: Sequence[Policy], mesh: Mesh, *, http: bool = True) -> str:
    """All policies that are for a target and enforced. Raises Inexpressible."""
    mine = [expanded(p, mesh) for p in policies if not p.shadow and p.action is not Action.AUDIT]
    if not http:
        mine = [for_connections(p) for p in mine]
    written = [text for policy in mine for text in _policy(policy, mesh)]
    if target.namespace in mesh.open_namespaces and not any(p.action is Action.ALLOW for p in mine):
        written.append(_PERMIT_ALL)
    return "\n\n".join(written) + "\n"


def _policy(policy: Policy, mesh: Mesh) -> Iterator[str]:
    if policy.action is Action.CUSTOM and policy.provider in mesh.providers:
        raise Inexpressible(f"the provider {policy.provider} decides")
    effect = "permit" if policy.action is Action.ALLOW else "forbid"
    for number, rule in enumerate(policy.rules or ()):
        if rule is NEVER:
            continue
        name = _literal(f"{policy.id}#{number}")
        yield f"@id({name})\n{effect} (principal, action, resource)\nwhen {{ {_rule(rule)} }};"


def _rule(rule: Rule) -> str:
    if rule.condition:
        raise Inexpressible("a CEL condition")
    return _and(
        [_or([_group(g) for g in rule.sources]), _or([_group(g) for g in rule.operations]), _group(rule.conditions)]
    )


def _and(parts: list[str]) -> str:
    return " && ".join(f"({part})" for part in parts if part != "true") or "true"


def _or(parts: list[str]) -> str:
    return " || ".join(f"({part})" for part in parts) or "true"


def _group(group: Group) -> str:
    return _and([_clause(clause) for clause in group])


def _clause(clause: Clause) -> str:
    name = _literal(_name(clause))
    any_of = _or([_match(clause.attribute, f"context[{name}]", match) for match in clause.matches])
    present = f"context has {name} && ({any_of})"
    return f"!({present})" if clause.negated else present


def _name(clause: Clause) -> str:
    attribute = Attribute.SOURCE_PRINCIPAL if clause.attribute in PRINCIPAL else clause.attribute
    return f"{attribute}{''.join(f'[{step}]' for step in clause.key)}"


def _is_list(attribute: Attribute) -> bool:
    return attribute is Attribute.METADATA or (attribute.needs_jwt and attribute is not Attribute.REQUEST_PRINCIPAL)


def _match(attribute: Attribute, value: str, match: Match) -> str:
    if match.kind is MatchKind.NETWORK:
        return f"{value}.isInRange(ip({_literal(str(match.network))}))"
    if _is_list(attribute):
        if match.kind is not MatchKind.EXACT:
            raise Inexpressible(f"a {match.kind} of a list's items")
        return f"{value}.contains({_literal(match.text)})"
    text = fold(match.text) if attribute is Attribute.HOST else match.text
    match match.kind:
        case MatchKind.EXACT:
            return f"{value} == {_literal(text)}"
        case MatchKind.PREFIX:
            return f"{value} like {_pattern(text, ANY)}"
        case MatchKind.SUFFIX:
            return f"{value} like {_pattern(ANY, text)}"
        case MatchKind.PRESENT:
            return "true"
        case MatchKind.NON_EMPTY:
            return f'{value} != ""'
        case MatchKind.NAMESPACE:
            return f"{value} like {_pattern(ANY, '/ns/', *_asterisks(text), '/', ANY)}"
        case MatchKind.TRUST_DOMAIN if "*" not in text:
            return f"{value} like {_pattern(f'{text}/', ANY)}"
        case MatchKind.REQUEST_PRINCIPAL:
            parts = request_principal_parts(text)
            if all(part.kind is MatchKind.EXACT for part in parts):
                return f"{value} == {_literal(SEPARATOR.join(part.text for part in parts))}"
    raise Inexpressible(f"a {match.kind}")


def _asterisks(text: str) -> Iterator[str | None]:
    """A text cut so that each asterisk stands alone."""
    for number, part in enumerate(text.split("*")):
        if number:
            yield ANY
        yield part


def _literal(text: str) -> str:
    """A string of Cedar's. Its escapes of what is not printable are Rust's."""
    body = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in _without_json_escapes(body))


def _without_json_escapes(body: str) -> str:
    for short, character in (("\\b", "\b"), ("\\f", "\f")):
        body = body.replace(short, character)
    return _unicode(body)


def _unicode(body: str) -> str:
    head, *rest = body.split("\\u")
    return head + "".join(chr(int(part[:4], 16)) + part[4:] for part in rest)


def _pattern(*parts: str | None) -> str:
    """Parts of a pattern: ANY is any text, everything else itself, an asterisk too."""
    return '"' + "".join("*" if part is None else _literal(part)[1:-1].replace("*", "\\*") for part in parts) + '"'


def cedar_context(policies: Sequence[Policy], request: Request) -> dict[str, Any]:
    """What of a request these policies look at."""
    found: dict[str, Any] = {}
    for policy in policies:
        for rule in policy.rules or ():
            for group in (*rule.sources, *rule.operations, rule.conditions):
                for clause in group:
                    _add(found, clause, READERS[clause.attribute](request, clause.key))
    return found


def _add(found: dict[str, Any], clause: Clause, values: tuple[str, ...]) -> None:
    name = _name(clause)
    if _is_list(clause.attribute):
        found[name] = list(values)
    elif values and clause.attribute in ADDRESSES:
        found[name] = {"__extn": {"fn": "ip", "arg": values[0]}}
    elif values:
        found[name] = fold(values[0]) if clause.attribute is Attribute.HOST else values[0]
