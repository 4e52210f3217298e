"""A clause as a question to one attribute of a request, which the answer divides.

What is read from the same place is one variable: a caller's principal, namespace, account and trust domain are
functions of its SPIFFE ID; `:method` and `:authority` are no headers of their own. Issuer and subject are one text with
the request's principal where a token has both as texts (`Tokens.WHOLE`), and lists of their own where it has not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from policy.attributes import LISTS, SEPARATOR
from policy.classes.patterns import (
    NO_SLASH,
    Pattern,
    joined,
    literal,
    part_of_request_principal,
    patterns_of,
    plus,
    star,
)
from policy.matching import request_principal_parts, test_of
from policy.model import Action, Attribute, Clause, IpNetwork, Match, MatchKind, Rule

Test = Callable[[str], bool]


class Variable(NamedTuple):
    """Something a request has. `kind` is how its values are looked for: "text", "many" (a list), "network", "port" or
    "condition" (a CEL expression, of which only its truth is known)."""

    kind: str
    name: str
    key: tuple[str, ...] = ()


PRINCIPAL = Variable("text", "principal")
METHOD = Variable("text", "method")
HOST = Variable("text", "host")
PATH = Variable("text", "path")
REQUEST_PRINCIPAL = Variable("text", "request principal")
ISSUER, SUBJECT = Variable("many", "claim", ("iss",)), Variable("many", "claim", ("sub",))

_VARIABLES = {
    Attribute.SOURCE_PRINCIPAL: PRINCIPAL,
    Attribute.SOURCE_NAMESPACE: PRINCIPAL,
    Attribute.SOURCE_SERVICE_ACCOUNT: PRINCIPAL,
    Attribute.SOURCE_TRUST_DOMAIN: PRINCIPAL,
    Attribute.SOURCE_IP: Variable("network", "source_ip"),
    Attribute.REMOTE_IP: Variable("network", "remote_ip"),
    Attribute.DESTINATION_IP: Variable("network", "destination_ip"),
    Attribute.DESTINATION_PORT: Variable("port", "destination_port"),
    Attribute.SNI: Variable("text", "sni"),
    Attribute.METHOD: METHOD,
    Attribute.HOST: HOST,
    Attribute.PATH: PATH,
    Attribute.REQUEST_PRINCIPAL: REQUEST_PRINCIPAL,
    Attribute.REQUEST_AUDIENCES: Variable("many", "claim", ("aud",)),
    Attribute.REQUEST_PRESENTER: Variable("many", "claim", ("azp",)),
}
_PSEUDO = {":method": METHOD, ":authority": HOST, "host": HOST}


def variable_of(attribute: Attribute, key: tuple[str, ...]) -> Variable:
    """Where a clause looks."""
    if attribute is Attribute.HEADER:
        return _PSEUDO.get(key[0]) or Variable("text", "header", key)
    if attribute is Attribute.CLAIM:
        return Variable("many", "claim", key)
    if attribute is Attribute.METADATA:
        return Variable("many" if key[2:] == (LISTS,) else "text", "metadata", key)
    return _VARIABLES[attribute]


def at_odds(one: Variable, other: Variable) -> bool:
    """Whether no request has something at both: a claim is a text or a mapping, issuer and subject lists or texts."""
    if one.name == other.name == "claim":
        longer, shorter = sorted((one.key, other.key), key=len, reverse=True)
        return len(longer) > len(shorter) and longer[: len(shorter)] == shorter
    if one.name == other.name == "metadata":
        return one != other and one.key[:2] == other.key[:2]
    if one.name == "claim" and other.name == "request principal":
        return one.key[0] in ("iss", "sub")
    return one.name == "request principal" and other.name == "claim" and at_odds(other, one)


class Literal:
    """One question. `clause` is None where a CEL condition is asked."""

    __slots__ = ("_patterns", "clause", "negated", "part", "test", "texts", "variable", "words")

    def __init__(self, variable: Variable, test: Test, clause: Clause | None, words: str = "") -> None:
        self.variable, self.test, self.clause = variable, test, clause
        self.negated = clause is not None and clause.negated
        self.texts: frozenset[str] | None = None
        """All values that it is for, where they are written out."""
        self.part = ""
        """`iss` or `sub`, of a request's principal."""
        self.words = words
        self._patterns: tuple[Pattern, ...] | None = None

    def allow_only(self, patterns: tuple[Pattern, ...]) -> None:
        """Says what it is for where there is no clause that does."""
        self._patterns = patterns

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """All texts that it is for."""
        if self._patterns is None:
            self._patterns = tuple(self._made())
        return self._patterns

    def _made(self) -> list[Pattern]:
        if self.clause is None:
            return []
        if self.part:
            return [p for m in self.clause.matches for p in part_of_request_principal(m, self.part)]
        return [p for m in self.clause.matches for p in patterns_of(self.clause.attribute, m)]

    @property
    def networks(self) -> tuple[IpNetwork, ...]:
        """All addresses that it is for."""
        matches = self.clause.matches if self.clause is not None else ()
        return tuple(match.network for match in matches if match.network is not None)


class Tokens(Enum):
    """What is assumed of requests, so that issuer, subject and principal of their tokens are told apart exactly."""

    ANY = "any"
    """Nothing; of the principal and its parts only one may be asked."""
    WHOLE = "whole"
    """Issuer and subject are texts: the request has a principal."""
    IN_PARTS = "in parts"
    """They are not: it has none."""


class AskedBoth(Exception):
    """The principal of a request's token was asked for, and one of its parts."""


class Literals:
    """Makes them, each once."""

    def __init__(self, tokens: Tokens = Tokens.ANY) -> None:
        self.tokens = tokens
        self._asked: set[bool] = set()
        self._made: dict[int, tuple[Clause, Literal]] = {}
        self._conditions: dict[tuple[str, bool], Literal] = {}

    def of(self, clause: Clause) -> Literal:
        """The question that a clause asks."""
        known = self._made.get(id(clause))
        if known is None:
            known = self._made[id(clause)] = (clause, self._literal(clause))
        return known[1]

    def condition(self, rule: Rule, action: Action) -> Literal:
        """Whether a rule's CEL condition holds, which depends on the action where it fails."""
        key = (rule.condition, action is Action.ALLOW)
        if key not in self._conditions:
            variable = Variable("condition", rule.condition, ("allow" if key[1] else "deny",))
            self._conditions[key] = Literal(variable, lambda value: True, None, rule.condition)
        return self._conditions[key]

    def _literal(self, clause: Clause) -> Literal:
        variable = variable_of(clause.attribute, clause.key)
        if variable in (ISSUER, SUBJECT, REQUEST_PRINCIPAL):
            self._asked.add(variable == REQUEST_PRINCIPAL)
            if self.tokens is Tokens.ANY and len(self._asked) > 1:
                raise AskedBoth
            if self.tokens is Tokens.WHOLE and variable != REQUEST_PRINCIPAL:
                return _part(clause, variable.key[0])
        if clause.attribute is not Attribute.HOST and all(match.kind is MatchKind.EXACT for match in clause.matches):
            texts = frozenset(match.text for match in clause.matches)
            made = Literal(variable, texts.__contains__, clause)
            made.texts = texts
            return made
        made = Literal(variable, _any([test_of(clause.attribute, match) for match in clause.matches]), clause)
        if clause.attribute is Attribute.REQUEST_PRINCIPAL:
            made.texts = _pairs(clause.matches)
        return made


def any_request_principal() -> Literal:
    """Whether there is one at all."""
    made = Literal(REQUEST_PRINCIPAL, lambda value: True, None)
    made.allow_only(tuple(map(Pattern, joined([[star()]], [[star()]]))))
    return made


USUAL = Pattern([*plus(NO_SLASH), *literal("/ns/"), *plus(NO_SLASH), *literal("/sa/"), *plus(NO_SLASH)])
"""The form that SPIFFE IDs have in a mesh; others are possible, and may have several `/ns/` in them."""
_USUAL = re.compile("[^/]+/ns/[^/]+/sa/[^/]+")


def of_usual_form(principal: str) -> bool:
    """Whether a principal is `domain/ns/namespace/sa/account`."""
    return _USUAL.fullmatch(principal) is not None


def usual_form() -> Literal:
    """Whether there is a principal, and one of the usual form."""
    made = Literal(PRINCIPAL, of_usual_form, None)
    made.allow_only((USUAL,))
    return made


def _any(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda value: any(test(value) for test in tests)


def _pairs(matches: tuple[Match, ...]) -> frozenset[str] | None:
    parts = [request_principal_parts(match.text) for match in matches]
    if any(part.kind is not MatchKind.EXACT for pair in parts for part in pair):
        return None
    return frozenset(f"{issuer.text}{SEPARATOR}{subject.text}" for issuer, subject in parts)


def _part(clause: Clause, part: str) -> Literal:
    test = _any([test_of(clause.attribute, match) for match in clause.matches])
    at = 0 if part == "iss" else 2
    made = Literal(REQUEST_PRINCIPAL, lambda value: test(value.partition(SEPARATOR)[at]), clause)
    made.part = part
    return made
