"""JWTs of foreign issuers: cloud documents, CI jobs. Strict, and silent towards the caller about which claim failed.

The caller learns TOKEN_REFUSED alone; the exact fault is noted for administrators and is the error's cause. A token is
judged by what costs nothing before anybody is asked for a key, so that junk makes no server fetch anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from ca.errors import Denied, InvalidArgument
from ca.identity import jws
from ca.identity.text import quote
from ca.runtime.notes import note

MAX_TOKEN_BYTES = 16 * 1024
MAX_KEY_ID_CHARACTERS = 256
SKEW_SECONDS = 60
MAX_SIGNATURE_CHECKS = 3
"""Keys of one key id that are tried: there should be one."""

_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say. `issuer` and `audience` are compared as they are spelled; `algorithms` are of
    `ca.identity.jws`, none of which takes a shared secret. A token that is made for longer than
    `max_lifetime_seconds` (from `iat` to `exp`) is refused."""

    issuer: str
    audience: str
    algorithms: frozenset[str]
    max_lifetime_seconds: int
    skew_seconds: int = SKEW_SECONDS

    def __post_init__(self) -> None:
        if not self.issuer or not self.audience or not self.algorithms or not self.algorithms <= jws.ALGORITHMS:
            raise ValueError("a token is verified for one issuer, one audience and known asymmetric algorithms")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerKey:
    """A public key of an issuer; `algorithm` where the issuer binds the key to one."""

    key_id: str
    key: PublicKeyTypes
    algorithm: str | None = None


class KeySource(Protocol):
    """Where an issuer's keys are. Empty: there is none of that id. Raises Unavailable when that cannot be told."""

    async def keys(self, key_id: str) -> Sequence[IssuerKey]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedToken:
    """A token taken apart; nothing in it is to be believed."""

    algorithm: str
    key_id: str
    claims: Mapping[str, Any] = field(hash=False)
    signing_input: bytes
    signature: bytes

    @property
    def issuer(self) -> str:
        """Says which rules to try, and proves nothing."""
        value = self.claims.get("iss")
        return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignToken:
    """A verified token. `valid_until` is the last moment at which it would be accepted, clock skew included."""

    claims: Mapping[str, Any] = field(hash=False)
    expires_at: datetime
    valid_until: datetime


class TokenFault(Denied):
    """What exactly is wrong with a token: for administrators. Never leaves this side but as a cause."""


def take_apart(payload: bytes | str) -> UnverifiedToken:
    """The compact serialization (RFC 7515 §7.1) and nothing else. Raises InvalidArgument TOKEN_MALFORMED."""
    if len(payload) > MAX_TOKEN_BYTES:
        raise _malformed(f"longer than {MAX_TOKEN_BYTES} bytes")
    try:
        text = payload.decode("ascii") if isinstance(payload, bytes) else payload
    except UnicodeDecodeError as error:
        raise _malformed("not ASCII text") from error
    parts = text.split(".")
    if len(parts) != 3:
        raise _malformed("a JWT has three parts")
    try:
        header = jws.json_part(parts[0], "header", max_bytes=MAX_TOKEN_BYTES)
        claims = jws.json_part(parts[1], "claims", max_bytes=MAX_TOKEN_BYTES)
        signature = jws.part(parts[2], "signature")
    except ValueError as error:
        raise _malformed(str(error)) from error
    _check_header(header)
    return UnverifiedToken(
        algorithm=_text(header, "alg", 16),
        key_id=_text(header, "kid", MAX_KEY_ID_CHARACTERS),
        claims=MappingProxyType(claims),
        signing_input=text[: text.rindex(".")].encode("ascii"),
        signature=signature,
    )


async def verify_token(token: UnverifiedToken, *, rules: TokenRules, keys: KeySource, now: datetime) -> ForeignToken:
    """The token's claims, if it was made by the issuer, for the audience, and is valid now.

    Raises Denied TOKEN_REFUSED, whose cause is the TokenFault, and what `keys` raises.
    """
    try:
        _check_algorithm(token, rules)
        _check_issuer(token, rules)
        _check_audience(token, rules)
        expires = _check_times(token, rules, now.timestamp())
        _check_signature(token, await keys.keys(token.key_id))
    except TokenFault as fault:
        raise refused(fault) from fault
    return ForeignToken(
        claims=token.claims,
        expires_at=datetime.fromtimestamp(expires, UTC),
        valid_until=datetime.fromtimestamp(expires + rules.skew_seconds, UTC),
    )


def refused(fault: TokenFault) -> Denied:
    """What the caller is told; the fault itself is noted."""
    note("token refused", f"{fault.reason}: {fault.detail}")
    return Denied(
        "the token proves nothing here",
        reason="TOKEN_REFUSED",
        hint="have the token made as the server wants it; its administrators are told which claim failed",
    )


def _check_header(header: Mapping[str, Any]) -> None:
    if "crit" in header:  # RFC 7515 §4.1.11: extensions that must be understood, and none is known here
        raise _malformed("it has critical header extensions")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.upper() not in ("JWT", "JOSE"):  # RFC 8725 §3.11: no other kind of token
        raise _malformed("its `typ` is not `JWT`")


def _check_algorithm(token: UnverifiedToken, rules: TokenRules) -> None:
    """RFC 8725 §3.1: from an explicit list, before all else. HMAC and `none` can be on no list."""
    if token.algorithm not in rules.algorithms or token.algorithm not in jws.ALGORITHMS:
        wanted = ", ".join(sorted(rules.algorithms))
        raise TokenFault(f"algorithm is {quote(token.algorithm)}, wanted one of {wanted}", reason="TOKEN_ALGORITHM")


def _check_issuer(token: UnverifiedToken, rules: TokenRules) -> None:
    if token.claims.get("iss") != rules.issuer:  # OpenID Connect Core §3.1.3.7 (2): exactly
        raise TokenFault(
            f"`iss` is {quote(str(token.claims.get('iss')))}, wanted {quote(rules.issuer)}", reason="TOKEN_ISSUER"
        )


def _check_audience(token: UnverifiedToken, rules: TokenRules) -> None:
    value = token.claims.get("aud")
    values = [value] if isinstance(value, str) else value  # RFC 7519 §4.1.3: one string or an array of them
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values) or rules.audience not in values:
        raise TokenFault(
            f"`aud` is {quote(str(value))}, wanted {quote(rules.audience)}, as it is spelled", reason="TOKEN_AUDIENCE"
        )


def _check_times(token: UnverifiedToken, rules: TokenRules, clock: float) -> float:
    """`exp` and `iat` are mandatory (OpenID Connect Core §2), `nbf` is not. Returns `exp`."""
    expires, issued, skew = _time(token, "exp"), _time(token, "iat"), rules.skew_seconds
    if expires is None or issued is None:
        raise TokenFault("`exp` or `iat` is missing", reason="TOKEN_LIFETIME")
    if clock >= expires + skew:
        raise TokenFault(f"`exp` is {_at(expires)}, the clock here says {_at(clock)}", reason="TOKEN_EXPIRED")
    not_before = _time(token, "nbf")
    begins = max(issued, issued if not_before is None else not_before)
    if clock < begins - skew:
        raise TokenFault(
            f"valid from {_at(begins)} (`iat` or `nbf`), the clock here says {_at(clock)}", reason="TOKEN_NOT_YET_VALID"
        )
    if not 0 < expires - issued <= rules.max_lifetime_seconds:
        raise TokenFault(
            f"made for {expires - issued:.0f} s, allowed are {rules.max_lifetime_seconds} s", reason="TOKEN_LIFETIME"
        )
    return expires


def _time(token: UnverifiedToken, name: str) -> float | None:
    """A NumericDate (RFC 7519 §2) in seconds, or None when the claim is absent."""
    if name not in token.claims:
        return None
    value = token.claims[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _LATEST:
        raise TokenFault(f"`{name}` is no point in time", reason="TOKEN_LIFETIME")
    return float(value)


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _check_signature(token: UnverifiedToken, keys: Sequence[IssuerKey]) -> None:
    """`jws.verify` binds the algorithm to the kind of key; keys that their issuer bound to another are passed over."""
    if not keys:
        raise TokenFault(f"the issuer has no key {quote(token.key_id)}", reason="TOKEN_KEY_UNKNOWN")
    fitting = [key for key in keys if key.algorithm in (None, token.algorithm)][:MAX_SIGNATURE_CHECKS]
    wrong = f"no key {quote(token.key_id)} of the issuer is for algorithm {quote(token.algorithm)}"
    for key in fitting:
        try:
            return jws.verify(token.algorithm, key.key, token.signing_input, token.signature)
        except InvalidArgument as error:
            wrong = error.detail
    raise TokenFault(wrong, reason="TOKEN_SIGNATURE")


def _text(header: Mapping[str, Any], name: str, longest: int) -> str:
    value = header.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise _malformed(f"its header needs `{name}`, a string of at most {longest} characters")
    return value


def _malformed(detail: str) -> InvalidArgument:
    return InvalidArgument(f"malformed token: {detail}", reason="TOKEN_MALFORMED")
