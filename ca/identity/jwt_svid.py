"""JWT-SVIDs: validation of a token for one audience against the bundle of its subject's trust domain (JWT-SVID).

Left out on purpose: how a token travels (JWT-SVID §5.2, §5.3: C15, C16), for no client of ours sends one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from ca.errors import InvalidArgument
from ca.identity import jws
from ca.identity.bundle import JwtAuthority, TrustBundle
from ca.identity.jwk import load_public_key
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.text import quote

MAX_TOKEN_BYTES = 64 * 1024
LEEWAY_SECONDS = 60
_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvid:
    """A validated token: subject, audiences in the token's order, expiry, and all claims (read-only)."""

    id: SpiffeId
    audience: tuple[str, ...]
    expires_at: datetime
    claims: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """A token taken apart; nothing in it is believed before the signature is checked."""

    algorithm: str
    key_id: str
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes


def verify_jwt_svid(
    token: str,
    *,
    audience: str,
    bundles: Mapping[TrustDomain, TrustBundle],
    now: datetime,
    leeway_seconds: int = LEEWAY_SECONDS,
) -> JwtSvid:
    """Validates a JWT-SVID (JWT-SVID §4) that was meant for `audience`.

    Only the bundle of the subject's own trust domain is asked. `now` is aware; the leeway goes to exp, nbf and iat
    alike. A tainted authority still vouches, an expired one does not.
    Raises InvalidArgument: AUDIENCE_MISSING, a JWT_* reason, or PUBLIC_KEY_MALFORMED for a broken key in the bundle.
    """
    if not audience:
        raise InvalidArgument("audience must be specified", reason="AUDIENCE_MISSING")
    parts = _take_apart(token)
    subject = _subject(parts.claims)
    _check_signature(parts, _authorities(parts, subject, bundles, now, leeway_seconds))
    expires_at = _check_times(parts.claims, now, leeway_seconds)
    audiences = _check_audience(parts.claims, audience)
    return JwtSvid(id=subject, audience=audiences, expires_at=expires_at, claims=MappingProxyType(parts.claims))


def _take_apart(token: str) -> _Token:
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidArgument(f"token is longer than {MAX_TOKEN_BYTES} bytes", reason="JWT_TOO_LARGE")
    # The compact serialization and nothing else: no JWS JSON, no certificate, no other kind of token.
    # JWT-SVID §1 (C1), §5.1 (C14); SPIFFE-ID §3.3 (A24)
    parts = token.split(".")
    if len(parts) != 3:
        raise _malformed("compact JWS format must have three parts")
    try:
        algorithm, key_id = _check_header(jws.json_part(parts[0], "header", max_bytes=MAX_TOKEN_BYTES))
        claims = jws.json_part(parts[1], "payload", max_bytes=MAX_TOKEN_BYTES)
        signature = jws.part(parts[2], "signature")
    except ValueError as error:
        raise _malformed(str(error)) from error
    signing_input = token[: token.rindex(".")].encode("ascii")
    return _Token(algorithm=algorithm, key_id=key_id, claims=claims, signing_input=signing_input, signature=signature)


def _check_header(header: dict[str, Any]) -> tuple[str, str]:
    """Algorithm and key id. Other members are passed over, above all those that bring a key of their own (jwk, x5c)."""
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in jws.ALGORITHMS:  # before all else, JWT-SVID §2.1, §4 (C4)
        raise InvalidArgument(
            f"unexpected signature algorithm {quote(str(algorithm))}",
            reason="JWT_ALGORITHM",
            hint="a JWT-SVID is signed with RS, ES or PS and 256, 384 or 512",
        )
    if "typ" in header and header["typ"] not in ("JWT", "JOSE"):  # JWT-SVID §2.3 (C5)
        raise InvalidArgument(f"token type {quote(str(header['typ']))} is not `JWT` or `JOSE`", reason="JWT_TYPE")
    if "crit" in header:  # RFC 7515 §4.1.11: extensions that must be understood, and none is known here
        raise InvalidArgument("token has critical header extensions", reason="JWT_CRITICAL")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not key_id:  # a key of the bundle is found by nothing else
        raise InvalidArgument("token header missing key id", reason="JWT_KEY_ID_MISSING")
    return algorithm, key_id


def _subject(claims: dict[str, Any]) -> SpiffeId:
    """The SPIFFE ID in `sub`, JWT-SVID §3.1 (C6). It must be spelled as we spell it: others compare the text."""
    text = claims.get("sub")
    if not isinstance(text, str) or not text:
        raise InvalidArgument("token missing subject claim", reason="JWT_SUBJECT_MISSING")
    try:
        subject = SpiffeId.parse(text)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"token has an invalid subject claim: {error.detail}", reason="JWT_SUBJECT_INVALID"
        ) from error
    if str(subject) != text:
        raise InvalidArgument(
            f"token has an invalid subject claim: {quote(text)} is not in lower case", reason="JWT_SUBJECT_INVALID"
        )
    return subject


def _authorities(
    token: _Token,
    subject: SpiffeId,
    bundles: Mapping[TrustDomain, TrustBundle],
    now: datetime,
    leeway_seconds: int,
) -> Sequence[JwtAuthority]:
    bundle = bundles.get(subject.trust_domain)
    # The lists hold `jwt-svid` keys alone, JWT-SVID §6.2 (C19); a bundle without any vouches for nothing,
    # SPIFFE Bundle §4.1.3 (G9).
    if bundle is None or not bundle.jwt_authorities:
        raise InvalidArgument(
            f"no keys found for trust domain `{subject.trust_domain}`",
            reason="JWT_UNTRUSTED_DOMAIN",
            hint="is the trust domain federated with this one?",
        )
    named = [a for a in bundle.jwt_authorities if a.key_id == token.key_id]
    if not named:
        raise InvalidArgument(
            f"public key {quote(token.key_id)} not found in trust domain `{subject.trust_domain}`",
            reason="JWT_KEY_UNKNOWN",
            hint=f"its bundle holds {', '.join(quote(a.key_id) for a in bundle.jwt_authorities[:5])}",
        )
    latest = now.timestamp() - leeway_seconds
    live = [a for a in named if a.expires_at is None or a.expires_at.timestamp() > latest]
    if not live:
        raise InvalidArgument(f"public key {quote(token.key_id)} has expired", reason="JWT_KEY_EXPIRED")
    return live


def _check_signature(token: _Token, authorities: Sequence[JwtAuthority]) -> None:
    """Ends at the first key that fits; key ids are unique in practice."""
    for position, authority in enumerate(authorities, 1):
        try:
            # `sub` lies inside what is signed, and the claims were parsed from those very bytes: SPIFFE-ID §3.2 (A23)
            return jws.verify(
                token.algorithm, load_public_key(authority.public_key), token.signing_input, token.signature
            )
        except InvalidArgument:
            if position == len(authorities):
                raise
    return None


def _check_times(claims: dict[str, Any], now: datetime, leeway_seconds: int) -> datetime:
    clock = now.timestamp()
    expiry = _time(claims, "exp")
    if expiry is None:  # JWT-SVID §3.3, §4 (C11, C12)
        raise InvalidArgument("token missing exp claim", reason="JWT_EXPIRY_MISSING")
    if clock >= expiry + leeway_seconds:  # RFC 7519 §4.1.4; JWT-SVID §4 (C12)
        raise InvalidArgument(f"token has expired: {_clocks('exp', expiry, now)}", reason="JWT_EXPIRED")
    not_before = _time(claims, "nbf")
    if not_before is not None and clock < not_before - leeway_seconds:  # RFC 7519 §4.1.5
        raise InvalidArgument(f"token not valid yet: {_clocks('nbf', not_before, now)}", reason="JWT_NOT_YET_VALID")
    issued = _time(claims, "iat")
    if issued is not None and clock < issued - leeway_seconds:  # as SPIRE: a clock is wrong somewhere
        raise InvalidArgument(
            f"token issued in the future: {_clocks('iat', issued, now)}", reason="JWT_ISSUED_IN_FUTURE"
        )
    return datetime.fromtimestamp(expiry, UTC)


def _time(claims: dict[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 §2) in seconds, or None when the claim is absent."""
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _LATEST:
        raise _malformed(f"claim `{name}` is no point in time")
    return float(value)


def _clocks(name: str, seconds: float, now: datetime) -> str:
    return f"{name} is {datetime.fromtimestamp(seconds, UTC).isoformat()}, the clock here says {now.isoformat()}"


def _check_audience(claims: dict[str, Any], audience: str) -> tuple[str, ...]:
    value = claims.get("aud")
    values = [value] if isinstance(value, str) else value  # one string or an array: RFC 7519 §4.1.3; JWT-SVID §4 (C13)
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        values = []
    if not any(values):  # JWT-SVID §3.2, §4 (C7, C8)
        raise InvalidArgument("token missing aud claim", reason="JWT_AUDIENCE_MISSING")
    if audience not in values:  # JWT-SVID §3.2 (C9): whole and in the same case
        shown = ", ".join(quote(v) for v in values[:5])
        raise InvalidArgument(f"expected audience {quote(audience)}, the token has {shown}", reason="JWT_AUDIENCE")
    return tuple(values)


def _malformed(detail: str) -> InvalidArgument:
    return InvalidArgument(f"unable to parse JWT token: {detail}", reason="JWT_MALFORMED")
