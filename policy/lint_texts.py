"""What is strange in a rule's own words, whatever other rules there are: nothing is compared here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from policy import cel
from policy.classes.patterns import Chars, Pattern, literal, patterns_of, star
from policy.classes.texts import Undecided, Work, text_in
from policy.model import Action, Attribute, Clause, Group, Match, MatchKind, Policy, Request, Rule
from policy.paths import is_normal
from policy.problems import shown

Said = tuple[str, str, str]
"""(code, message, hint)."""

_SPOKEN = """22 SSH, 25 SMTP, 53 DNS, 389 LDAP, 636 LDAP, 1433 SQL Server, 1521 Oracle, 1883 MQTT, 3306 MySQL,
5432 PostgreSQL, 5672 AMQP, 6379 Redis, 9042 Cassandra, 9092 Kafka, 11211 memcached, 27017 MongoDB"""
NOT_HTTP = {int(port): name for port, _, name in (one.strip().partition(" ") for one in _SPOKEN.split(","))}
"""Ports on which hardly anybody speaks HTTP."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
_TEXTS = frozenset({MatchKind.EXACT, MatchKind.PREFIX, MatchKind.SUFFIX})
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def said_of(policy: Policy, rule: Rule) -> Iterator[Said]:
    """Everything strange in one rule."""
    for group in (*rule.sources, *rule.operations, rule.conditions):
        for clause in group:
            for look in _LOOKS:
                yield from look(policy, clause)
    yield from _sources(policy, rule)
    yield from _ports(policy, rule)
    yield from _condition(policy, rule)


def _trust_domains(policy: Policy, clause: Clause) -> Iterator[Said]:
    if clause.negated or policy.action is not Action.ALLOW:
        return
    for match in clause.matches:
        if _any_trust_domain(clause.attribute, match):
            hint = "write the trust domain out; `cluster.local` is the own one and its aliases"
            yield "L007", f"{shown(str(match))} in `{clause.origin}` has callers of foreign trust domains, too", hint


def _any_trust_domain(attribute: Attribute, match: Match) -> bool:
    if attribute is Attribute.SOURCE_TRUST_DOMAIN:
        return "*" in match.text
    if attribute is not Attribute.SOURCE_PRINCIPAL:
        return False
    return match.kind is MatchKind.SUFFIX or (match.kind is MatchKind.PREFIX and "/" not in match.text)


def _paths(_: Policy, clause: Clause) -> Iterator[Said]:
    if clause.attribute is not Attribute.PATH:
        return
    for match in clause.matches:
        if match.kind is not MatchKind.NON_EMPTY and not _reachable(match):
            hint = (
                "a path begins with `/` and is normal: no `//`, `.` or `..`, no query, nothing encoded that need not be"
            )
            yield "L008", f"no proxy ever has a path that {shown(str(match))} matches", hint


@lru_cache(maxsize=4096)
def _reachable(match: Match) -> bool:
    normal = match.text.startswith("/") and is_normal(match.text) and not {"?", "#"} & set(match.text)
    if match.kind is MatchKind.EXACT or (match.kind is MatchKind.PREFIX and normal):
        return normal
    try:
        return text_in([patterns_of(Attribute.PATH, match), (_PATH,)], _NOT_NORMAL, Work(20_000)) is not None
    except Undecided:
        return True


def _has(*parts: str) -> Pattern:
    """Texts with one character of each of the parts in a row; `\\Z` is the end."""
    chars = [((False, frozenset(part)), False) for part in parts if part != "\\Z"]
    return Pattern([star(), *chars, *([] if parts[-1] == "\\Z" else [star()])])


_HEX_LETTERS = "aAbBcCdDeEfF"
_VISIBLE: Chars = (False, frozenset(map(chr, range(0x21, 0x7F))) - {"\\", "?", "#"})
_PATH = Pattern([*literal("/"), star(_VISIBLE)])
_NOT_NORMAL = (
    _has("/", "/"),
    *(_has("/", *dots, end) for dots in (".", "..") for end in ("/;", "\\Z")),
    *(_has("%", first, second) for first, second in (("2", "dDeE"), ("3", "0123456789"), ("5", "0123456789aAfF"))),
    *(_has("%", first, f"123456789{_HEX_LETTERS}") for first in "46"),
    *(_has("%", first, second) for first, second in (("7", "0123456789aAeE"), ("2", "fF"), ("5", "cC"), ("0", "0"))),
)
"""As `paths` says it."""


def _literally(_: Policy, clause: Clause) -> Iterator[Said]:
    for match in clause.matches:
        if match.kind not in _TEXTS:
            continue
        if clause.attribute is Attribute.PATH and ".*" in str(match):
            hint = "`{*}` is one segment, `{**}` any number of them; nothing else is a pattern"
            yield "L009", f"{shown(str(match))} is no regular expression: `.*` is taken as it is", hint
        elif "*" in match.text:
            hint = "`*` means anything only by itself, or once at an end of the text"
            yield "L009", f"the asterisk within {shown(str(match))} is taken as it is", hint


def _methods(_: Policy, clause: Clause) -> Iterator[Said]:
    if clause.attribute is not Attribute.METHOD:
        return
    for match in clause.matches:
        if match.kind is MatchKind.EXACT and match.text not in _METHODS and match.text.upper() in _METHODS:
            yield "L016", f"no request has the method {shown(match.text)}", f"case counts: {match.text.upper()}"


_LOOKS: tuple[Callable[[Policy, Clause], Iterator[Said]], ...] = (_trust_domains, _paths, _literally, _methods)


def _sources(policy: Policy, rule: Rule) -> Iterator[Said]:
    """Whoever shows no certificate has no name that could be excluded."""
    if policy.action is not Action.ALLOW:
        return
    for group in rule.sources or ((),):
        clauses = (*group, *rule.conditions)
        about = [clause for clause in clauses if clause.attribute in _WHO]
        if about and all(clause.negated for clause in about) and not _requires_token(clauses):
            hint = 'add `principals: ["*"]`, which asks for a certificate'
            yield "L017", f"`{about[0].origin}` alone lets in callers without a certificate", hint
            return


_WHO = frozenset(
    {
        Attribute.SOURCE_PRINCIPAL,
        Attribute.SOURCE_NAMESPACE,
        Attribute.SOURCE_SERVICE_ACCOUNT,
        Attribute.SOURCE_TRUST_DOMAIN,
    }
)


def _requires_token(clauses: Group) -> bool:
    return any(clause.attribute.needs_jwt and not clause.negated for clause in clauses)


def _ports(policy: Policy, rule: Rule) -> Iterator[Said]:
    """HTTP is asked for where a protocol is spoken that is none."""
    named = [
        int(match.text)
        for group in (*rule.operations, rule.conditions)
        for clause in group
        if clause.attribute is Attribute.DESTINATION_PORT and not clause.negated
        for match in clause.matches
    ]
    http = [c for group in (*rule.sources, *rule.operations, rule.conditions) for c in group if c.attribute.http_only]
    spoken = next((f"{port} ({NOT_HTTP[port]})" for port in named if port in NOT_HTTP), "")
    if spoken and http:
        allows = policy.action is Action.ALLOW
        what = "the rule allows nothing there" if allows else "the rule denies every connection there"
        yield "L011", f"`{http[0].origin}` is of HTTP, and port {spoken} is not: {what}", "name who calls, and the port"


def _condition(policy: Policy, rule: Rule) -> Iterator[Said]:
    if not rule.condition or _looks_at_anything(rule.condition):
        return
    holds = cel.holds(rule.condition, policy.action, Request())
    message = f"the condition {shown(rule.condition)} always {'holds' if holds else 'fails'}"
    yield "L013", message, "leave it out" if holds else "leave the rule out"


def _looks_at_anything(condition: str) -> bool:
    """Whether a word of it is the name of an attribute; a text in quotes may seem so, too."""
    known = {name.partition(".")[0] for name in cel.VARIABLES}
    return bool(set(_WORD.findall(condition)) & known)
