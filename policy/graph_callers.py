"""Whom the sources of a rule name: one identity, a namespace, an ending, a network, a token, or anybody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from policy.matching import text_test
from policy.model import Attribute, Clause, Group, Match, MatchKind, Rule
from policy.words import clean

SCHEME = "spiffe://"


class Kind(StrEnum):
    """What a caller is."""

    IDENTITY = "identity"
    PATTERN = "pattern"
    NAMESPACE = "namespace"
    ACCOUNT = "service account"
    TRUST_DOMAIN = "trust domain"
    NETWORK = "network"
    TOKEN = "token"  # noqa: S105
    ANY_IDENTITY = "any identity"
    NO_IDENTITY = "no identity"
    ANYONE = "anyone"


_KINDS = {
    Attribute.SOURCE_PRINCIPAL: Kind.PATTERN,
    Attribute.SOURCE_NAMESPACE: Kind.NAMESPACE,
    Attribute.SOURCE_SERVICE_ACCOUNT: Kind.ACCOUNT,
    Attribute.SOURCE_TRUST_DOMAIN: Kind.TRUST_DOMAIN,
    Attribute.SOURCE_IP: Kind.NETWORK,
    Attribute.REMOTE_IP: Kind.NETWORK,
    Attribute.REQUEST_PRINCIPAL: Kind.TOKEN,
}
"""What names callers, the most telling first."""
_EVERYONE = frozenset({Kind.ANYONE, Kind.ANY_IDENTITY, Kind.NETWORK, Kind.TOKEN})
_UNCERTAIN = frozenset({Kind.NETWORK, Kind.TOKEN})
"""Of a network or a token nobody can be told that it is not theirs, nor that it is."""
_ANYTHING = (MatchKind.PRESENT, MatchKind.NON_EMPTY)


@dataclass(frozen=True, slots=True)
class Caller:
    """A node that calls. `match` tells who is among it."""

    id: str
    kind: Kind
    label: str
    match: Match | None = None

    @property
    def exact(self) -> bool:
        """Whether it is one identity."""
        return self.kind is Kind.IDENTITY

    @property
    def everyone(self) -> bool:
        """Whether any identity may be among it."""
        return self.kind in _EVERYONE

    @property
    def certain(self) -> bool:
        """Whether those who may be among it are so with every request."""
        return self.kind not in _UNCERTAIN

    def includes(self, principal: str) -> bool:
        """Whether an identity, without `spiffe://`, is among it."""
        if self.everyone:
            return True
        return self.match is not None and text_test(self.match)(principal)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"id": self.id, "kind": self.kind.value, "label": self.label, "everyone": self.everyone}


ANYONE = Caller("anyone", Kind.ANYONE, "anyone")
ANY_IDENTITY = Caller("any identity", Kind.ANY_IDENTITY, "any identity")
NO_IDENTITY = Caller("no identity", Kind.NO_IDENTITY, "no identity")


def callers_of(rule: Rule) -> Iterator[tuple[tuple[Caller, ...], Group]]:
    """For each source the callers that it names, and what else must hold of a request, operations aside."""
    for group in rule.sources or ((),):
        clauses = (*group, *rule.conditions)
        naming = _naming(clauses)
        others = tuple(clause for clause in clauses if clause is not naming)
        if naming is None:
            yield (ANYONE,), others
        elif naming.negated:
            yield (NO_IDENTITY,), others
        else:
            yield tuple(dict.fromkeys(_caller(naming.attribute, match) for match in naming.matches)), others


def _naming(clauses: Group) -> Clause | None:
    """The clause by which callers are named; a negated one only where it leaves those without identity alone."""
    for attribute in _KINDS:
        for clause in clauses:
            if clause.attribute is attribute and not clause.negated:
                return clause
    of_principals = (clause for clause in clauses if clause.attribute is Attribute.SOURCE_PRINCIPAL)
    return next((clause for clause in of_principals if any(m.kind in _ANYTHING for m in clause.matches)), None)


def _caller(attribute: Attribute, match: Match) -> Caller:
    kind, text = _KINDS[attribute], str(match)
    if attribute is Attribute.SOURCE_PRINCIPAL:
        if match.kind is MatchKind.EXACT:
            return Caller(f"{SCHEME}{match.text}", Kind.IDENTITY, clean(match.text), match)
        if match.kind in _ANYTHING:
            return ANY_IDENTITY
    remote = " as proxies say it" if attribute is Attribute.REMOTE_IP else ""
    return Caller(f"{kind} {text}{remote}", kind, f"{clean(text)}{remote}", match)
