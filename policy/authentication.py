"""RequestAuthentication and PeerAuthentication: how callers prove who they are, as far as policies depend on it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from policy.fields import Place
from policy.model import Origin, Scope
from policy.problems import shown
from policy.scopes import SCOPE_FIELDS, read_scope

_HEADER_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRule:
    """Whose tokens are believed, and where they are looked for; empty places are Istio's default ones."""

    issuer: str = ""
    audiences: tuple[str, ...] = ()
    jwks_uri: str = ""
    jwks: str = ""
    from_headers: tuple[tuple[str, str], ...] = ()
    """(name, prefix)."""
    from_params: tuple[str, ...] = ()
    from_cookies: tuple[str, ...] = ()
    output_payload_to_header: str = ""
    output_claim_to_headers: tuple[tuple[str, str], ...] = ()
    """(header, claim)."""
    forward_original_token: bool = False
    timeout_seconds: float = 5.0
    space_delimited_claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAuthentication:
    """An invalid token is refused; one that is missing is not, which is for policies to do."""

    namespace: str
    name: str
    scope: Scope = field(default=Scope())
    rules: tuple[JwtRule, ...] = ()
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def id(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


class Mode(StrEnum):
    """STRICT: who shows no certificate is refused. UNSET: as the wider scope says."""

    UNSET = "UNSET"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthentication:
    """Whether callers must show a certificate."""

    namespace: str
    name: str
    scope: Scope = field(default=Scope())
    mode: Mode = Mode.UNSET
    ports: tuple[tuple[int, Mode], ...] = ()
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def id(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


def read_request_authentication(
    spec: Place, namespace: str, name: str, jwks_hosts: frozenset[str]
) -> RequestAuthentication:
    """One RequestAuthentication of which the metadata was read."""
    fields = spec.fields((*SCOPE_FIELDS, "jwtRules"))
    items = fields["jwtRules"].items() if "jwtRules" in fields else []
    return RequestAuthentication(
        namespace=namespace,
        name=name,
        scope=read_scope(fields),
        rules=tuple(_jwt_rule(item, jwks_hosts) for item in items),
        origin=spec.origin,
    )


_JWT_FIELDS = (
    *("issuer", "audiences", "jwksUri", "jwks", "fromHeaders", "fromParams", "fromCookies", "timeout"),
    *("outputPayloadToHeader", "outputClaimToHeaders", "forwardOriginalToken", "spaceDelimitedClaims"),
)


def _jwt_rule(place: Place, jwks_hosts: frozenset[str]) -> JwtRule:
    fields = place.fields(_JWT_FIELDS)
    issuer, uri, jwks = (_text(fields, name) for name in ("issuer", "jwksUri", "jwks"))
    if not issuer and not uri:
        place.refuse("P201", "either `issuer` or `jwksUri` must be set")
    if any(not character.isprintable() for character in issuer):
        fields["issuer"].refuse("P201", "an issuer has no control characters")
    if uri:
        _check_uri(fields["jwksUri"], uri, jwks_hosts)
    if jwks:
        _check_jwks(fields["jwks"], jwks)
    return JwtRule(
        issuer=issuer,
        audiences=_texts(fields, "audiences", "P202"),
        jwks_uri=uri,
        jwks=jwks,
        from_headers=tuple(_header(item) for item in _items(fields, "fromHeaders")),
        from_params=_texts(fields, "fromParams", "P206"),
        from_cookies=_texts(fields, "fromCookies", "P206"),
        output_payload_to_header=_text(fields, "outputPayloadToHeader"),
        output_claim_to_headers=tuple(_copied(item) for item in _items(fields, "outputClaimToHeaders")),
        forward_original_token="forwardOriginalToken" in fields and fields["forwardOriginalToken"].boolean(),
        timeout_seconds=_timeout(fields["timeout"]) if "timeout" in fields else 5.0,
        space_delimited_claims=_texts(fields, "spaceDelimitedClaims", "P113"),
    )


def _text(fields: Mapping[str, Place], name: str) -> str:
    return (fields[name].text() or "") if name in fields else ""


def _items(fields: Mapping[str, Place], name: str) -> list[Place]:
    return fields[name].items() if name in fields else []


def _texts(fields: Mapping[str, Place], name: str, code: str) -> tuple[str, ...]:
    found = []
    for item in _items(fields, name):
        text = item.text()
        if text == "":
            item.refuse(code, f"an empty value in `{name}`")
        found.append(text or "")
    return tuple(found)


def _check_uri(place: Place, uri: str, hosts: frozenset[str]) -> None:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        place.refuse("P203", f"{shown(uri)} is no HTTP URL")
    elif host not in hosts:
        hint = "`policy.jwks_hosts` of the server lists the hosts that key sets may be fetched from"
        place.refuse("P204", f"key sets may not be fetched from {shown(host)}", hint)


def _check_jwks(place: Place, jwks: str) -> None:
    try:
        keys = json.loads(jwks)["keys"]
        good = isinstance(keys, list) and all(isinstance(key, dict) and "kty" in key for key in keys)
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        place.refuse("P205", "`jwks` is no JSON Web Key Set", 'it starts with `{"keys": [`')


def _header(place: Place) -> tuple[str, str]:
    fields = place.fields(("name", "prefix"))
    name, prefix = _text(fields, "name"), _text(fields, "prefix")
    if not name:
        place.refuse("P206", "a place for tokens needs the name of a header")
    return name, prefix


def _copied(place: Place) -> tuple[str, str]:
    fields = place.fields(("header", "claim"))
    header, claim = _text(fields, "header"), _text(fields, "claim")
    if not header or not claim:
        place.refuse("P207", "both `header` and `claim` must be set")
    elif not _HEADER_NAME.fullmatch(header):
        place.refuse("P207", f"{shown(header)} is no name of a header", "letters, digits, `-` and `_`")
    return header, claim


def _timeout(place: Place) -> float:
    text = place.text() or ""
    seconds = 0.0
    if _DURATION.fullmatch(text) and len(text) < 40:
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds < 0.001:
        place.refuse("P208", f"{shown(text)} is no timeout", "for example `5s`")
    return seconds


def read_peer_authentication(spec: Place, namespace: str, name: str) -> PeerAuthentication:
    """One PeerAuthentication of which the metadata was read."""
    fields = spec.fields(("selector", "mtls", "portLevelMtls"))
    scope = read_scope(fields)
    ports: list[tuple[int, Mode]] = []
    if "portLevelMtls" in fields:
        place = fields["portLevelMtls"]
        if not scope.labels:
            place.refuse("P302", "modes of ports need a selector with labels")
        ports = list(_ports(place))
    return PeerAuthentication(
        namespace=namespace,
        name=name,
        scope=scope,
        mode=_mode(fields["mtls"]) if "mtls" in fields else Mode.UNSET,
        ports=tuple(sorted(ports)),
        origin=spec.origin,
    )


def _ports(place: Place) -> list[tuple[int, Mode]]:
    value, found = place.node.value, []
    for name, node in (value if isinstance(value, dict) else {}).items():
        inner = place.inside(name, node)
        if not re.fullmatch("[0-9]{1,5}", name) or not 0 < int(name) < 65536:
            inner.refuse("P303", f"{shown(name)} is no port of a workload")
            continue
        found.append((int(name), _mode(inner)))
    return found


def _mode(place: Place) -> Mode:
    inner = place.fields(("mode",)).get("mode")
    text = (inner.text() or "") if inner is not None else "UNSET"
    if text == "DISABLE":
        (inner or place).refuse("P304", "mutual TLS is not turned off here", "PERMISSIVE lets plain text in besides")
    elif text not in Mode.__members__:
        (inner or place).refuse("P301", f"there is no mode {shown(text)}", "STRICT, PERMISSIVE or UNSET")
    return Mode.__members__.get(text, Mode.STRICT)
