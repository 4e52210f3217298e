"""The lint of JWT-SVIDs: decodes the bytes to be signed and compares them with what was decided on."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from ca.errors import Internal
from ca.issuing.lifetime import Lifetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KNOWN_ALGORITHMS = frozenset({"ES256", "ES384", "RS256"})


class ExpectedJwt(NamedTuple):
    """What the token is meant to say. `issuer` and `jti` are empty when the claim is to be absent."""

    algorithm: str
    kid: str
    subject: str
    audience: tuple[str, ...]
    lifetime: Lifetime
    issuer: str
    jti: str


def lint_jwt(signing_input: bytes, want: ExpectedJwt) -> None:
    """Raises Internal (reason LINT) with the rule's section unless `signing_input` is what it ought to be."""
    header, dot, claims = signing_input.partition(b".")
    if not dot or b"." in claims:
        raise _failed("JWT-SVID §5.1 (C14)", "not two parts of a compact serialization")
    try:
        _check_header(header, want.algorithm, want.kid)
        _check_claims(_decode(claims), want)
    except ValueError as error:
        raise _failed("RFC 7519 §7.1", "a part is not JSON in base64url") from error


@lru_cache(maxsize=64)
def _check_header(part: bytes, algorithm: str, kid: str) -> None:
    """Remembered by its bytes: a key has one header."""
    header = _decode(part)
    if list(header) != ["alg", "kid", "typ"]:
        raise _failed("JWT-SVID §2 (C2)", "header is not exactly alg, kid and typ")
    if header["alg"] != algorithm or algorithm not in _KNOWN_ALGORITHMS:
        raise _failed("JWT-SVID §2.1 (C3)", "alg is not the key's")
    if header["kid"] != kid or not kid:
        raise _failed("JWT-SVID §2.2", "kid is not the key's")
    if header["typ"] != "JWT":
        raise _failed("JWT-SVID §2.3 (C5)", "typ is not JWT")


def _check_claims(claims: dict[str, Any], want: ExpectedJwt) -> None:
    if claims.get("sub") != want.subject:
        raise _failed("JWT-SVID §3.1 (C6)", "sub is not the SPIFFE ID")
    if not want.audience or claims.get("aud") != list(want.audience):
        raise _failed("JWT-SVID §3.2 (C7)", "aud is not the array of the audiences")
    issued, expires = claims.get("iat"), claims.get("exp")
    if type(expires) is not int or expires != (want.lifetime.not_after - _EPOCH).total_seconds():
        raise _failed("JWT-SVID §3.3 (C11)", "exp is not the planned end")
    if type(issued) is not int or not issued < expires or issued != (want.lifetime.issued_at - _EPOCH).total_seconds():
        raise _failed("RFC 7519 §4.1.6", "iat is not the time of issue")
    optional = [name for name, value in (("iss", want.issuer), ("jti", want.jti)) if value]
    if list(claims) != ["aud", "exp", "iat", *optional, "sub"]:
        raise _failed("RFC 7519 §4", "claims are not exactly those decided on")
    if claims.get("iss", "") != want.issuer or claims.get("jti", "") != want.jti:
        raise _failed("RFC 7519 §4.1", "iss or jti is not what was decided on")


def _decode(part: bytes) -> dict[str, Any]:
    """Raises ValueError unless `part` is a JSON object in base64url without padding."""
    if b"=" in part:
        raise ValueError("padding")
    value = json.loads(urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _failed(citation: str, problem: str) -> Internal:
    return Internal(f"token fails the lint ({citation}): {problem}", reason="LINT")
