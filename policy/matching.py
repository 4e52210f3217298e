"""How a text is compared: one function for each kind of match, as Istio compiles them for Envoy."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache

from policy.attributes import READERS, SEPARATOR
from policy.globs import namespace_test, service_account_test, trust_domain_test
from policy.model import Attribute, Clause, IpAddress, Match, MatchKind, Request
from policy.templates import template_test

Test = Callable[[str], bool]


def holds(clause: Clause, request: Request) -> bool:
    """Whether a clause holds. What is absent equals nothing: a negated clause then holds."""
    values = READERS[clause.attribute](request, clause.key)
    return clause.negated != any(test(value) for test in tests_of(clause) for value in values)


@lru_cache(maxsize=65536)
def tests_of(clause: Clause) -> tuple[Test, ...]:
    """One test for each alternative of a clause."""
    return tuple(test_of(clause.attribute, match) for match in clause.matches)


def test_of(attribute: Attribute, match: Match) -> Test:
    """What a value must pass. Hosts are compared without regard to case (RFC 3986 §3.2.2), of ASCII alone."""
    if attribute is Attribute.HOST:
        test = text_test(folded(match))
        return lambda value: test(fold(value))
    return text_test(match)


def fold(text: str) -> str:
    """ASCII letters in lower case; other letters stay as they are."""
    if text.isascii():
        return text.lower()
    return "".join(c.lower() if c.isascii() else c for c in text)


def folded(match: Match) -> Match:
    """The same with its text folded."""
    return Match(match.kind, fold(match.text))


def text_test(match: Match) -> Test:
    """What a text must pass, whatever attribute it is of."""
    text = match.text
    match match.kind:
        case MatchKind.EXACT:
            return lambda value: value == text
        case MatchKind.PREFIX:
            return lambda value: value.startswith(text)
        case MatchKind.SUFFIX:
            return lambda value: value.endswith(text)
        case MatchKind.PRESENT:
            return lambda value: True
        case MatchKind.NON_EMPTY:
            return non_empty
        case MatchKind.TEMPLATE:
            return template_test(text)
        case MatchKind.NAMESPACE:
            return namespace_test(text)
        case MatchKind.SERVICE_ACCOUNT:
            return service_account_test(text)
        case MatchKind.TRUST_DOMAIN:
            return trust_domain_test(text)
        case MatchKind.REQUEST_PRINCIPAL:
            return _request_principal_test(text)
        case MatchKind.NETWORK:
            return _network_test(match)


def non_empty(value: str) -> bool:
    """The regular expression `.+` over the whole text: a line feed is no `.`."""
    return bool(value) and "\n" not in value


def request_principal_parts(text: str) -> tuple[Match, Match]:
    """How issuer and subject are compared, as Istio cuts what was written."""
    issuer, slash, subject = text.rpartition("/") if "/" in text else (text, "", "")
    anything = Match(MatchKind.NON_EMPTY)
    if text == "*":
        return anything, anything
    if text.startswith("*"):
        if not slash:
            return anything, Match(MatchKind.SUFFIX, text[1:])
        of_issuer = anything if issuer == "*" else Match(MatchKind.SUFFIX, issuer[1:])
        return of_issuer, Match(MatchKind.EXACT, subject)
    if text.endswith("*"):
        if not slash:
            return Match(MatchKind.PREFIX, text[:-1]), anything
        of_subject = anything if subject == "*" else Match(MatchKind.PREFIX, subject[:-1])
        return Match(MatchKind.EXACT, issuer), of_subject
    return Match(MatchKind.EXACT, issuer), Match(MatchKind.EXACT, subject)


def _request_principal_test(text: str) -> Test:
    of_issuer, of_subject = (text_test(part) for part in request_principal_parts(text))

    def test(value: str) -> bool:
        issuer, _, subject = value.partition(SEPARATOR)
        return of_issuer(issuer) and of_subject(subject)

    return test


def _network_test(match: Match) -> Test:
    network = match.network
    if network is None:
        raise ValueError("a network match needs its network")

    def test(value: str) -> bool:
        found = address(value)
        return found is not None and found.version == network.version and found in network

    return test


@lru_cache(maxsize=4096)
def address(text: str) -> IpAddress | None:
    """The address that a text is; None for one that is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
