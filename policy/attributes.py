"""What a request has of each attribute: nothing where it is absent, several values for a claim that is a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from policy.model import Attribute, Request

Key = tuple[str, ...]
Values = tuple[str, ...]

SEPARATOR = "\x1f"
"""Between issuer and subject of a request's principal: a slash may be part of both."""

SPACE_DELIMITED = frozenset({"scope", "permission"})
"""Claims whose text is a list of words (RFC 8693 §4.2), as Istio reads them; at the top level only."""

LISTS = "[]"
"""The third part of a METADATA key that means lists."""

_PSEUDO_HEADERS: dict[str, Callable[[Request], str | None]] = {
    ":method": lambda r: r.method,
    ":authority": lambda r: r.host,
    "host": lambda r: r.host,
}
"""Names by which Envoy finds what is no header of its own."""


def _text(value: str | None) -> Values:
    return () if value is None else (value,)


def _at(found: Any, key: Key) -> Any:
    for step in key:
        if not isinstance(found, Mapping):
            return None
        found = found.get(step)
    return found


def _claim(claims: Mapping[str, Any] | None, key: Key) -> Values:
    """The texts at a path into the claims; lists are looked into, everything else is absent."""
    found = _at(claims, key)
    if isinstance(found, str):
        if len(key) == 1 and key[0] in SPACE_DELIMITED:
            return tuple(word for word in found.split(" ") if word)
        return (found,)
    return _texts(found)


def _texts(found: Any) -> Values:
    if isinstance(found, list | tuple):
        return tuple(item for item in found if isinstance(item, str))
    return ()


def _metadata(request: Request, key: Key) -> Values:
    found = _at(request.metadata, key[:2])
    if key[2:] == (LISTS,):
        return _texts(found)
    return (found,) if isinstance(found, str) else ()


def _header(request: Request, key: Key) -> Values:
    found = request.headers.get(key[0])
    if found is None and (pseudo := _PSEUDO_HEADERS.get(key[0])) is not None:
        found = pseudo(request)
    return _text(found)


def request_principal(claims: Mapping[str, Any] | None) -> str | None:
    """Issuer and subject of a verified JWT, with SEPARATOR between them; None without both."""
    if claims is None:
        return None
    issuer, subject = claims.get("iss"), claims.get("sub")
    if not isinstance(issuer, str) or not isinstance(subject, str) or SEPARATOR in issuer:
        return None
    return f"{issuer}{SEPARATOR}{subject}"


def _port(request: Request) -> Values:
    return () if request.destination_port is None else (str(request.destination_port),)


READERS: dict[Attribute, Callable[[Request, Key], Values]] = {
    # The namespace, account and trust domain of a caller are read from its principal by the match itself.
    Attribute.SOURCE_PRINCIPAL: lambda r, _: _text(r.principal),
    Attribute.SOURCE_NAMESPACE: lambda r, _: _text(r.principal),
    Attribute.SOURCE_SERVICE_ACCOUNT: lambda r, _: _text(r.principal),
    Attribute.SOURCE_TRUST_DOMAIN: lambda r, _: _text(r.principal),
    Attribute.SOURCE_IP: lambda r, _: _text(r.source_ip),
    Attribute.REMOTE_IP: lambda r, _: _text(r.remote_ip),
    Attribute.DESTINATION_IP: lambda r, _: _text(r.destination_ip),
    Attribute.DESTINATION_PORT: lambda r, _: _port(r),
    Attribute.SNI: lambda r, _: _text(r.sni),
    Attribute.METADATA: _metadata,
    Attribute.HOST: lambda r, _: _text(r.host) if r.http else (),
    Attribute.METHOD: lambda r, _: _text(r.method) if r.http else (),
    Attribute.PATH: lambda r, _: _text(r.path) if r.http else (),
    Attribute.HEADER: lambda r, key: _header(r, key) if r.http else (),
    Attribute.REQUEST_PRINCIPAL: lambda r, _: _text(request_principal(r.claims)) if r.http else (),
    Attribute.REQUEST_AUDIENCES: lambda r, _: _claim(r.claims, ("aud",)) if r.http else (),
    Attribute.REQUEST_PRESENTER: lambda r, _: _claim(r.claims, ("azp",)) if r.http else (),
    Attribute.CLAIM: lambda r, key: _claim(r.claims, key) if r.http else (),
}
