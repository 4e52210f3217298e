"""JWT-SVIDs: prepare (compose, lint), then sign and check what came out. No clock, no randomness.

Compact serialization alone (JWT-SVID §5.1, C14; §1, C1); members as SPIRE writes them: alphabetical, no spaces.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ca.errors import Internal, InvalidArgument
from ca.identity.spiffe_id import SpiffeId
from ca.issuing import der
from ca.issuing.jwt_token import ALGORITHMS, JwtKey, JwtToken
from ca.issuing.lifetime import Lifetime
from ca.issuing.signature import BY_KEY_TYPE, check_signature
from ca.issuing.spki import load_authority_key
from ca.ports import KeyType, Signer

MAX_AUDIENCES = 64
MAX_AUDIENCE_BYTES = 8192
"""All audiences together; a token travels in an HTTP header."""

_compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_COORDINATE_BYTES = {KeyType.EC_P256: 32, KeyType.EC_P384: 48}


def prepare_jwt(
    *,
    spiffe_id: SpiffeId,
    audience: Sequence[str],
    lifetime: Lifetime,
    key: JwtKey,
    issuer: str = "",
    jti: str = "",
) -> JwtToken:
    """A JWT-SVID, ready to be recorded and signed.

    `lifetime` comes from `plan_lifetime` with the key's end as the issuer's; iat is its `issued_at`, which is never
    backdated. Empty audiences are dropped, order and duplicates kept. Raises InvalidArgument with reason
    AUDIENCE_EMPTY (JWT-SVID §3.2, C7), AUDIENCE_TOO_LONG or AUDIENCE_MALFORMED, or SPIFFE_ID_NO_PATH.
    """
    kept = check_audience(audience)
    if not spiffe_id.path:
        raise InvalidArgument(f"`{spiffe_id}` names no workload: its path is empty", reason="SPIFFE_ID_NO_PATH")
    issued_at, expires_at = int(lifetime.issued_at.timestamp()), int(lifetime.not_after.timestamp())
    claims: dict[str, Any] = {
        "aud": kept,  # JWT-SVID §3.2 (C7): always an array
        "exp": expires_at,  # JWT-SVID §3.3 (C11)
        "iat": issued_at,
    }
    if issuer:
        claims["iss"] = issuer
    if jti:
        claims["jti"] = jti
    claims["sub"] = str(spiffe_id)  # JWT-SVID §3.1 (C6), SPIFFE-ID §3.2 (A23): inside the signed part
    signing_input = _header(ALGORITHMS[key.key_type], key.kid) + b"." + _part(claims)
    return JwtToken(
        signing_input=signing_input,
        key=key,
        spiffe_id=spiffe_id,
        audience=kept,
        lifetime=lifetime,
        issuer=issuer,
        jti=jti,
        issued_at=issued_at,
        expires_at=expires_at,
    )


def check_audience(audience: Sequence[str]) -> tuple[str, ...]:
    """What of it is kept, empty ones dropped. Raises InvalidArgument AUDIENCE_*."""
    kept = tuple(one for one in audience if one)
    if not kept:
        raise InvalidArgument("audience is empty", reason="AUDIENCE_EMPTY", hint="name at least one audience")
    try:
        size = sum(len(one.encode()) for one in kept)
    except UnicodeEncodeError as error:
        raise InvalidArgument("audience is not valid text", reason="AUDIENCE_MALFORMED") from error
    if len(kept) > MAX_AUDIENCES or size > MAX_AUDIENCE_BYTES:
        raise InvalidArgument(
            f"audience has more than {MAX_AUDIENCES} members or {MAX_AUDIENCE_BYTES} bytes", reason="AUDIENCE_TOO_LONG"
        )
    return kept


@lru_cache(maxsize=64)
def _header(algorithm: str, kid: str) -> bytes:
    """Exactly alg, kid, typ: JWT-SVID §2 (C2), §2.3 (C5)."""
    return _part({"alg": algorithm, "kid": kid, "typ": "JWT"})


def _part(members: dict[str, Any]) -> bytes:
    return _base64url(_compact.encode(members).encode())


def _base64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def sign_jwt(token: JwtToken, signer: Signer, *, remote: bool) -> str:
    """Signs, re-checks and returns the compact serialization. Blocks; `remote` is the key manager's.

    Uses the token up, also when it fails. Raises Internal with reason TOKEN_USED, SIGNER_MISMATCH or RECHECK, and
    whatever the signer raises.
    """
    token.use()
    if signer.public_key_der != token.key.public_key_der:
        raise Internal("the signing key is not the one that the header names", reason="SIGNER_MISMATCH")
    signature = signer.sign(token.signing_input)
    try:
        if remote or token.sampled:
            algorithm = BY_KEY_TYPE[token.key.key_type]
            public_key = load_authority_key(token.key.public_key_der)
            check_signature(public_key, algorithm, signature, token.signing_input)
        raw = _raw_signature(signature, token.key.key_type)
    except InvalidArgument as error:
        raise Internal("what came out of the signer is no signature of ours", reason="RECHECK") from error
    return (token.signing_input + b"." + _base64url(raw)).decode()


def _raw_signature(signature: bytes, key_type: KeyType) -> bytes:
    """JWS form: r and s of fixed size one after the other for ECDSA (RFC 7518 §3.4), as it is for RSA (§3.3)."""
    size = _COORDINATE_BYTES.get(key_type)
    if size is None:
        return signature
    try:
        r, s = decode_dss_signature(signature)
    except ValueError as error:
        raise der.malformed("ECDSA signature that is no pair of integers") from error
    if not 0 < r < 1 << (8 * size) or not 0 < s < 1 << (8 * size):
        raise der.malformed("ECDSA signature of a wrong size")
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")
