"""Envoy's ext_authz v3 as requests and decisions: what a proxy asks about its own workload, and what it is told.

The target is who asks, attested; nothing in a message names it. The proxy's word is taken for what it saw of the
connection and the request, since it enforces the answer: of itself it could let through what it likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from google.protobuf.json_format import Error, MessageToDict

from policy.authentication import JwtRule
from policy.callers import NotNamed, spiffe_id_of
from policy.decision import Decision
from policy.decision_record import MASK, DecisionRecord, Source, record_of, refused_record
from policy.envoy_predicates import JWT_FILTER
from policy.envoy_verified import verified_by
from policy.jwks import NotVerified
from policy.model import PATH_HEADER, Action, Attribute, Clause, Request, Target
from policy.paths import is_normal, without_query
from policy.snapshot import Snapshot
from policy.tokens import Vouchers, claims_of, left_claims

SPIFFE = "spiffe://"


class Refusal(StrEnum):
    """Why a check is refused although no rule says so; every one is a row in docs/policy/ext-authz.md."""

    CERTIFICATE_NOT_INCLUDED = "CERTIFICATE_NOT_INCLUDED"
    """The caller showed a certificate and the proxy does not send it: `include_peer_certificate` is not set."""
    CERTIFICATE_NAMES = "CERTIFICATE_NAMES"
    """The caller's certificate does not have exactly one URI name that is a SPIFFE ID, or cannot be read."""
    PRINCIPAL_MISMATCH = "PRINCIPAL_MISMATCH"
    """The proxy's own reading of the certificate is another one."""
    PATH_NOT_NORMAL = "PATH_NOT_NORMAL"
    """A rule looks at paths, the target is not declared normalized, and proxies read this path differently."""
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105 the name of a reason
    """The request has a token that no RequestAuthentication accepts."""
    ADDRESS_NOT_INCLUDED = "ADDRESS_NOT_INCLUDED"
    """A rule looks at `remote.ip`, which only the snippet's filter sends."""
    SESSION_NOT_INCLUDED = "SESSION_NOT_INCLUDED"
    """A rule looks at `connection.sni`, and `include_tls_session` is not set."""
    METADATA_NOT_INCLUDED = "METADATA_NOT_INCLUDED"
    """A rule looks at what another filter left, and the proxy's configuration does not say that it is sent."""
    TOKENS_OUTDATED = "TOKENS_OUTDATED"
    """The proxy verified tokens by other rules than those in force, or does not say by which."""
    PROVIDER_REFUSED = "PROVIDER_REFUSED"
    """The policies allow it, and a provider that a CUSTOM policy names does not."""
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    """The same, and the provider cannot be asked, or not in time, or is not configured where it was asked for."""


class Refused(Exception):
    """No rule was asked."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the proxy's configuration says of a check, beside the message: metadata of the call."""

    decision: str = ""
    """The id that the proxy gives to the request."""
    remote_ip: str | None = None
    jwt: bool = False
    """Our filter that verifies tokens stands before this one: the claims are what it left."""
    metadata: frozenset[str] = frozenset()
    """The filters of which the message has what they left, if they did."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The policies of a revision as they hold for one target, with what is needed to read a request to it."""

    revision: int
    snapshot: Snapshot
    target: Target
    rules: tuple[JwtRule, ...] = ()
    vouchers: Vouchers = field(default=Vouchers(), repr=False)
    tokens: str = ""
    """A name for what verifies tokens in the proxy; empty where it is not known, and the proxy's word is taken."""
    unknown: str = ""
    """Why it is not known what is for the target; then it is none of the snapshot's."""

    @cached_property
    def looks_at(self) -> frozenset[Attribute]:
        """What the enforced rules look at. A CEL condition looks at whatever it names."""
        return _looks_at(self.snapshot, self.target.spiffe_id)

    @cached_property
    def token_headers(self) -> frozenset[str]:
        """Headers in which tokens come, or what a proxy read in them goes on."""
        found = {name.lower() for rule in self.rules for name, _ in rule.from_headers}
        found |= {rule.output_payload_to_header.lower() for rule in self.rules if rule.output_payload_to_header}
        found.add(PATH_HEADER)  # with its query
        return frozenset(found | {"cookie"} if any(rule.from_cookies for rule in self.rules) else found)

    @cached_property
    def pseudo_headers(self) -> frozenset[str]:
        """Those that rules look at as headers, those of shadow policies as well."""
        clauses = _clauses(self.snapshot, self.target.spiffe_id, shadow=True)
        return frozenset(c.key[0] for c in clauses if c.attribute is Attribute.HEADER and c.key[0].startswith(":"))

    @cached_property
    def metadata_filters(self) -> frozenset[str]:
        """The filters whose leavings the enforced rules look at."""
        clauses = (c for c in _clauses(self.snapshot, self.target.spiffe_id) if c.attribute is Attribute.METADATA)
        return frozenset(clause.key[0] for clause in clauses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is answered and kept. `decision` is None where no rule was asked."""

    allowed: bool
    reason: str
    request: Request
    decision: Decision | None = None
    detail: str = ""
    masked: tuple[str, ...] = ()
    """What of the request is another in it than it was: it is for nobody to read."""

    def record(self, *, id: str, at: datetime, target: str, revision: int | None, **more: Any) -> DecisionRecord:
        """As it is kept; `more` are further fields of a DecisionRecord."""
        known = {"id": id, "at": at, "source": Source.EXT_AUTHZ, "target": target, "revision": revision, **more}
        if self.detail:
            known["detail"] = self.detail
        if self.masked:
            known["masked"] = self.masked
        if self.decision is None:
            return refused_record(self.reason, self.request, **known)
        return record_of(self.decision, self.request, allowed=self.allowed, reason=str(self.reason), **known)


def refused(verdict: Verdict, detail: str, reason: Refusal = Refusal.PROVIDER_UNAVAILABLE) -> Verdict:
    """What the policies allow, and a provider does not, or could not be asked."""
    return replace(verdict, allowed=False, reason=reason, detail=detail)


def decide(check: Any, bound: Bound, said: Said, *, now: datetime) -> Verdict:
    """The verdict on a CheckRequest."""
    request: Request | None = None
    try:
        request = read(check.attributes, said, _caller(check.attributes), bound.pseudo_headers)
        _check_complete(check.attributes, request, bound, said)
        if request.http:
            request = _with_claims(check.attributes, request, bound, said, now)
    except Refused as refusal:
        if request is None:
            request = _as_far_as_can_be_read(check.attributes, said)
        request, masked = _without_tokens(request, bound)
        return Verdict(allowed=False, reason=refusal.reason, request=request, detail=str(refusal), masked=masked)
    decision = bound.snapshot.decide(bound.target.spiffe_id, request)
    request, masked = _without_tokens(request, bound)
    return Verdict(
        allowed=decision.allowed,
        reason=decision.reason,
        request=request,
        decision=decision,
        detail=bound.unknown,
        masked=masked,
    )


def _without_tokens(request: Request, bound: Bound) -> tuple[Request, tuple[str, ...]]:
    """For the record: who reads a log must not be able to do what the caller may."""
    names = bound.token_headers & request.headers.keys()
    if not names:
        return request, ()
    headers = {name: MASK if name in names else value for name, value in request.headers.items()}
    return replace(request, headers=headers), tuple(f"headers.{name}" for name in sorted(names))


def _as_far_as_can_be_read(attributes: Any, said: Said) -> Request:
    """For the record of a refusal: without a caller."""
    try:
        return read(attributes, said, None)
    except Refused:
        return Request()


def read(attributes: Any, said: Said, principal: str | None, pseudo: frozenset[str] = frozenset()) -> Request:
    """Everything but with what token; `pseudo` are the headers with a colon that are wanted among the others."""
    source, destination = attributes.source.address, attributes.destination.address
    session = attributes.tls_session if attributes.HasField("tls_session") else None
    known: dict[str, Any] = {
        "principal": principal,
        "source_ip": source.socket_address.address or None,
        "destination_ip": destination.socket_address.address or None,
        "destination_port": destination.socket_address.port_value or None,
        "sni": (session.sni or None) if session is not None else None,
        "remote_ip": said.remote_ip,
        "metadata": _metadata(attributes),
    }
    if not attributes.HasField("request") or not attributes.request.HasField("http"):
        return Request(http=False, **known)
    http = attributes.request.http
    return Request(
        method=http.method or None,
        path=without_query(http.path) if http.path else None,
        host=http.host or None,
        headers=_headers(http) | _pseudo_headers(http, pseudo),
        **known,
    )


def _headers(http: Any) -> dict[str, str]:
    """Lower-case names, several values of one joined by commas, without what is no header."""
    given = [pair for pair in http.headers.items() if pair[0][:1] != ":"]
    found = {name.lower(): value for name, value in given}
    if len(found) < len(given):  # names that differ in case alone: no Envoy sends them
        found = {}
        for name, value in given:
            _join(found, name.lower(), value)
    for header in http.header_map.headers:  # a proxy with `encode_raw_headers` sends these instead
        if header.key[:1] != ":":
            _join(found, header.key.lower(), header.value or header.raw_value.decode("utf-8", "replace"))
    found.pop("host", None)  # it is what `host` says
    return found


def _pseudo_headers(http: Any, wanted: frozenset[str]) -> dict[str, str]:
    """`:method` and `:authority` are read as what they are."""
    told = {PATH_HEADER: http.path, ":scheme": http.scheme}
    return {name: told[name] for name in wanted if told.get(name)}


def _join(found: dict[str, str], name: str, value: str) -> None:
    known = found.get(name)
    found[name] = value if known is None else f"{known},{value}"


def _metadata(attributes: Any) -> Mapping[str, Mapping[str, Any]]:
    context = attributes.metadata_context.filter_metadata
    if not context:
        return {}
    try:
        return {name: MessageToDict(struct) for name, struct in context.items()}
    except (Error, ValueError, RecursionError):  # a number that is none, or too deep
        raise Refused(Refusal.METADATA_NOT_INCLUDED, "what other filters left is no JSON") from None


def _caller(attributes: Any) -> str | None:
    """X509-SVID §2: exactly one name. Without a certificate there is no caller's name, and the proxy says none."""
    certificate, said = attributes.source.certificate, attributes.source.principal
    if not certificate:
        if said:
            raise Refused(
                Refusal.CERTIFICATE_NOT_INCLUDED,
                "the proxy does not send the caller's certificate: set `include_peer_certificate: true`",
            )
        return None
    try:
        spiffe_id = spiffe_id_of(certificate)
    except NotNamed as error:
        raise Refused(Refusal.CERTIFICATE_NAMES, str(error)) from None
    if said and said != spiffe_id:
        raise Refused(Refusal.PRINCIPAL_MISMATCH, "the proxy read another name in the caller's certificate")
    return spiffe_id.removeprefix(SPIFFE)


def _check_complete(attributes: Any, request: Request, bound: Bound, said: Said) -> None:
    """What a rule looks at must be told: an attribute that a proxy leaves out would have no DENY rule match it."""
    looks_at = bound.looks_at
    # As the guard before the pushed tree: of a path that is normal already, normalizing changes nothing.
    guarded = Attribute.PATH in looks_at and request.http and not bound.target.normalized
    if guarded and not is_normal(request.path or ""):
        raise Refused(Refusal.PATH_NOT_NORMAL, "the path is one that proxies read differently")
    if Attribute.REMOTE_IP in looks_at and request.remote_ip is None:
        raise Refused(Refusal.ADDRESS_NOT_INCLUDED, "the proxy does not send the remote address: use the snippet")
    tls = attributes.source.certificate or attributes.destination.principal
    if Attribute.SNI in looks_at and tls and not attributes.HasField("tls_session"):
        raise Refused(Refusal.SESSION_NOT_INCLUDED, "the proxy does not send the name: set `include_tls_session: true`")
    if missing := bound.metadata_filters - said.metadata - request.metadata.keys():
        raise Refused(Refusal.METADATA_NOT_INCLUDED, f"the proxy does not send what `{min(missing)}` left")


def _with_claims(attributes: Any, request: Request, bound: Bound, said: Said, now: datetime) -> Request:
    if said.jwt:
        if bound.tokens and verified_by(attributes) != bound.tokens:
            raise Refused(Refusal.TOKENS_OUTDATED, "the proxy does not verify tokens by the rules in force")
        left = left_claims(request.metadata.get(JWT_FILTER, {}))
        return request if left is None else replace(request, claims=left)
    query = attributes.request.http.path.partition("#")[0].partition("?")[2]
    try:
        claims = claims_of(
            headers=request.headers,
            query=query,
            rules=bound.rules,
            vouchers=bound.vouchers,
            audience=bound.target.spiffe_id,
            now=now,
        )
    except NotVerified as error:
        raise Refused(Refusal.TOKEN_INVALID, str(error)) from None
    return request if claims is None else replace(request, claims=claims)


def _clauses(snapshot: Snapshot, target: str, *, shadow: bool = False) -> Iterable[Clause]:
    for judge in snapshot.judges(target):
        for policy in judge.policies:
            if (policy.shadow and not shadow) or policy.action is Action.AUDIT:
                continue
            for rule in policy.rules or ():
                for group in (*rule.sources, *rule.operations, rule.conditions):
                    yield from group


_IN_CEL = {Attribute.PATH: "path", Attribute.REMOTE_IP: "remote", Attribute.SNI: "sni"}


def _looks_at(snapshot: Snapshot, target: str) -> frozenset[Attribute]:
    found = {Attribute.PATH if clause.of_path else clause.attribute for clause in _clauses(snapshot, target)}
    for judge in snapshot.judges(target):
        for policy in judge.policies:
            if not policy.shadow and policy.action is not Action.AUDIT:
                for rule in policy.rules or ():
                    found.update(a for a, word in _IN_CEL.items() if word in rule.condition)
    return frozenset(found)
