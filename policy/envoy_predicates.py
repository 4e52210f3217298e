"""Clauses as predicates of Envoy's matching tree (xds.type.matcher.v3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2 as network
from envoy.extensions.matching.common_inputs.ssl.v3.ssl_inputs_pb2 import UriSanInput
from envoy.extensions.matching.input_matchers.ip.v3.ip_pb2 import Ip
from envoy.extensions.matching.input_matchers.metadata.v3.metadata_pb2 import Metadata
from envoy.type.matcher.v3 import string_pb2 as envoy_string
from envoy.type.matcher.v3 import value_pb2 as value
from envoy.type.matcher.v3.http_inputs_pb2 import HttpRequestHeaderMatchInput
from google.protobuf.message import Message
from xds.core.v3.cidr_pb2 import CidrRange
from xds.type.matcher.v3.matcher_pb2 import Matcher
from xds.type.matcher.v3.regex_pb2 import RegexMatcher
from xds.type.matcher.v3.string_pb2 import StringMatcher

from policy.attributes import LISTS, SPACE_DELIMITED
from policy.envoy_text import PRINCIPAL, Inexpressible, Test, quoted, tests_of
from policy.envoy_wire import extension, field, raw_of
from policy.matching import request_principal_parts
from policy.model import Attribute, Clause, IpNetwork, Match, MatchKind

Predicate: TypeAlias = bytes
"""A Matcher.MatcherList.Predicate."""
_Predicate = Matcher.MatcherList.Predicate
_single, _or, _and, _not = (
    field(_Predicate, what) for what in ("single_predicate", "or_matcher", "and_matcher", "not_matcher")
)
_listed = field(_Predicate.PredicateList, "predicate")
_input, _text, _custom = (field(_Predicate.SinglePredicate, what) for what in ("input", "value_match", "custom_match"))
_HOW = {
    **{how: field(StringMatcher, how) for how in ("exact", "prefix", "suffix", "contains")},
    "regex": field(StringMatcher, "safe_regex"),
}
_ENGINE, _regex = raw_of(RegexMatcher(google_re2=RegexMatcher.GoogleRE2())), field(RegexMatcher, "regex")
_FOLDED = raw_of(StringMatcher(ignore_case=True))
Input = tuple[Attribute, tuple[str, ...]]

JWT_FILTER, JWT_KEY, SVID_KEY = "envoy.filters.http.jwt_authn", "payload", "svid"
"""Where the filter that verifies tokens leaves the claims of one; of a JWT-SVID that no rule names under a key of its
own, since nobody holds it to the issuer that it says."""

_NETWORK: dict[Attribute, type[Message]] = {
    Attribute.SOURCE_IP: network.DirectSourceIPInput,
    Attribute.REMOTE_IP: network.SourceIPInput,
    Attribute.DESTINATION_IP: network.DestinationIPInput,
    Attribute.DESTINATION_PORT: network.DestinationPortInput,
    Attribute.SNI: network.ServerNameInput,
}
_PSEUDO = {Attribute.PATH: ":path", Attribute.METHOD: ":method", Attribute.HOST: ":authority"}
ADDRESSES = frozenset({Attribute.SOURCE_IP, Attribute.REMOTE_IP, Attribute.DESTINATION_IP})
_NO_TEXTS = ADDRESSES | {Attribute.METADATA} | {attribute for attribute in Attribute if attribute.needs_jwt}


def input_of(clause: Clause) -> Input:
    """What a clause looks at in Envoy: all attributes of a caller are read from its certificate."""
    if clause.attribute in PRINCIPAL:
        return Attribute.SOURCE_PRINCIPAL, ()
    if clause.attribute is Attribute.HEADER:
        return Attribute.HEADER, (clause.key[0],)
    return clause.attribute, ()


@lru_cache(maxsize=1024)
def data_input(wanted: Input) -> bytes:
    """The input by which Envoy reads it."""
    attribute, key = wanted
    if attribute is Attribute.SOURCE_PRINCIPAL:
        return extension("uri-san", UriSanInput)
    if (found := _NETWORK.get(attribute)) is not None:
        return extension(str(attribute), found)
    name = _PSEUDO.get(attribute) or key[0]
    return extension(name, HttpRequestHeaderMatchInput, raw_of(HttpRequestHeaderMatchInput(header_name=name)))


def string_matcher(test: Test) -> bytes:
    """One test as Envoy writes it."""
    text = test.text.encode()
    if test.how == "regex":  # Envoy refuses to fold it
        return _HOW["regex"](_ENGINE + _regex(text))
    found = _HOW[test.how](text)
    return found + _FOLDED if test.fold else found


def asks(wanted: Input, test: Test) -> Predicate:
    """Whether an input passes a test; one that is absent passes none."""
    return _compared(_read(wanted), test)


@lru_cache(maxsize=1024)
def _read(wanted: Input) -> bytes:
    return _input(data_input(wanted))


def _compared(read: bytes, test: Test) -> Predicate:
    return _single(read + _text(string_matcher(test)))


def any_of(predicates: Sequence[Predicate]) -> Predicate:
    """Envoy wants two alternatives at least."""
    return predicates[0] if len(predicates) == 1 else _or(b"".join(map(_listed, predicates)))


def all_of(predicates: Sequence[Predicate]) -> Predicate:
    """Envoy wants two conditions at least."""
    return predicates[0] if len(predicates) == 1 else _and(b"".join(map(_listed, predicates)))


def none_of(predicate: Predicate) -> Predicate:
    """The opposite."""
    return _not(predicate)


def plain_tests(clause: Clause) -> list[tuple[Test, ...]] | None:
    """For each alternative of a clause how the input is compared as a text; None where it is not. Raises
    Inexpressible."""
    attribute = clause.attribute
    if attribute in _NO_TEXTS:
        return None
    return [tests_of(attribute, match) for match in clause.matches]


def predicate_of(clause: Clause, tests: list[tuple[Test, ...]] | None, *, jwt: bool) -> Predicate | bool:
    """A clause as a predicate, or True or False where it is always so; `tests` are its own. Raises Inexpressible.
    `jwt`: tokens are verified by a filter before."""
    found = _positive(clause, tests, jwt=jwt)
    if not clause.negated:
        return any_of(found) if found else False
    return none_of(any_of(found)) if found else True


def _positive(clause: Clause, tests: list[tuple[Test, ...]] | None, *, jwt: bool) -> list[Predicate]:
    if tests is not None:
        wanted = _read(input_of(clause))
        return [_compared(wanted, test) for alternatives in tests for test in alternatives]
    if clause.attribute.needs_jwt and not jwt:
        raise Inexpressible("the proxy has no filter that verifies tokens")
    if clause.attribute in ADDRESSES:
        return [_addresses(input_of(clause), [match.network for match in clause.matches])]
    if clause.attribute is Attribute.METADATA:
        path, lists = clause.key[:2], clause.key[2:] == (LISTS,)
        return [_metadata(path[0], path[1:], [_value(m, lists=lists) for m in clause.matches])]
    if clause.attribute is Attribute.REQUEST_PRINCIPAL:
        return [found for match in clause.matches for found in (_request_principal(match), *_svid_principal(match))]
    path = _claim_path(clause)
    if path == ("iss",):
        return [_claim(JWT_KEY, path, clause.matches), *(found for m in clause.matches for found in _svid_of(m))]
    return [_claim(key, path, clause.matches) for key in (JWT_KEY, SVID_KEY)]


def _addresses(wanted: Input, networks: Iterable[IpNetwork | None]) -> Predicate:
    ip = Ip(stat_prefix="policy")
    for found in networks:
        if found is None:
            raise Inexpressible("an address is compared with networks only")
        ip.cidr_ranges.add(address_prefix=str(found.network_address)).prefix_len.value = found.prefixlen
    return _single(_read(wanted) + _custom(extension("ip", Ip, raw_of(ip))))


def cidr(network: IpNetwork) -> bytes:
    """A network as a tree of addresses has it."""
    found = CidrRange(address_prefix=str(network.network_address))
    found.prefix_len.value = network.prefixlen
    return raw_of(found)


def _claim_path(clause: Clause) -> tuple[str, ...]:
    match clause.attribute:
        case Attribute.REQUEST_AUDIENCES:
            return ("aud",)
        case Attribute.REQUEST_PRESENTER:
            return ("azp",)
    return clause.key


def _claim(key: str, path: tuple[str, ...], matches: Sequence[Match]) -> Predicate:
    """A claim is a text or a list of them; a list of words was split by the filter, which is told which those are."""
    alternatives = [_value(m, lists=True) for m in matches]
    if not (len(path) == 1 and path[0] in SPACE_DELIMITED):
        alternatives = [_value(m, lists=False) for m in matches] + alternatives
    return _metadata(JWT_FILTER, (key, *path), alternatives)


def _request_principal(match: Match) -> Predicate:
    issuer, subject = request_principal_parts(match.text)
    of_issuer = _metadata(JWT_FILTER, (JWT_KEY, "iss"), [_value(issuer, lists=False)])
    return all_of([of_issuer, _metadata(JWT_FILTER, (JWT_KEY, "sub"), [_value(subject, lists=False)])])


def _svid_principal(match: Match) -> list[Predicate]:
    """The same of a JWT-SVID, whose issuer is its trust domain."""
    issuer, subject = request_principal_parts(match.text)
    of_subject = _metadata(JWT_FILTER, (SVID_KEY, "sub"), [_value(subject, lists=False)])
    return [all_of([of_issuer, of_subject]) for of_issuer in _svid_of(issuer)]


def _svid_of(match: Match) -> list[Predicate]:
    """Whether `spiffe://<trust domain>` of a JWT-SVID, read from its subject, is what a match wants; none where it
    cannot be."""
    text, scheme = match.text, "spiffe://"
    within: dict[str, Any] | None = None
    match match.kind:
        case MatchKind.PRESENT | MatchKind.NON_EMPTY:
            within = {"prefix": scheme}
        case MatchKind.EXACT if text.startswith(scheme) and "/" not in text[len(scheme) :]:
            within = {"prefix": f"{text}/"}
        case MatchKind.PREFIX if scheme.startswith(text):
            within = {"prefix": scheme}
        case MatchKind.PREFIX if text.startswith(scheme) and "/" not in text[len(scheme) :]:
            within = {"prefix": text}
        case MatchKind.SUFFIX if "/" not in text:
            within = {"safe_regex": {"regex": rf"{scheme}[^/]*{quoted(text)}/\C*"}}
        case MatchKind.SUFFIX if f"{scheme}{text.rpartition('/')[2]}".endswith(text):
            within = {"prefix": f"{scheme}{text.rpartition('/')[2]}/"}
    if within is None:
        return []
    wanted = value.ValueMatcher(string_match=envoy_string.StringMatcher(**within))
    return [_metadata(JWT_FILTER, (SVID_KEY, "sub"), [wanted])]


def _metadata(filter_name: str, path: Sequence[str], alternatives: list[value.ValueMatcher]) -> Predicate:
    steps = [network.DynamicMetadataInput.PathSegment(key=step) for step in path]
    read = network.DynamicMetadataInput(filter=filter_name, path=steps)
    wanted = alternatives[0]
    if len(alternatives) > 1:
        wanted = value.ValueMatcher(or_match=value.OrMatcher(value_matchers=alternatives))
    where = extension("metadata", network.DynamicMetadataInput, raw_of(read))
    return _single(_input(where) + _custom(extension("value", Metadata, raw_of(Metadata(value=wanted)))))


def _value(match: Match, *, lists: bool) -> value.ValueMatcher:
    text: dict[str, Any]
    match match.kind:
        case MatchKind.EXACT:
            text = {"exact": match.text}
        case MatchKind.PREFIX if match.text:
            text = {"prefix": match.text}
        case MatchKind.SUFFIX if match.text:
            text = {"suffix": match.text}
        case MatchKind.PRESENT | MatchKind.PREFIX | MatchKind.SUFFIX:
            text = {"safe_regex": {"regex": r"\C*"}}
        case MatchKind.NON_EMPTY:
            text = {"safe_regex": {"regex": r"[^\n]+"}}
        case _:
            raise Inexpressible(f"a {match.kind} is not compared with metadata")
    found = value.ValueMatcher(string_match=envoy_string.StringMatcher(**text))
    return value.ValueMatcher(list_match=value.ListMatcher(one_of=found)) if lists else found
