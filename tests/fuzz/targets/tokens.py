"""JWT-SVIDs: tokens of a stranger, and tokens that our own key has signed over anything at all."""

from __future__ import annotations

import hashlib
import json
import random
from base64 import urlsafe_b64decode
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ca.errors import InvalidArgument
from ca.identity.bundle import JwtAuthority, TrustBundle
from ca.identity.jwt_svid import JwtSvid, verify_jwt_svid
from ca.identity.spiffe_id import TrustDomain
from tests.fuzz import keys
from tests.fuzz.harness import Mutate, Target, outcome, text_of

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
TD = TrustDomain("example.org")
AUDIENCE = "db"


@cache
def bundles() -> dict[TrustDomain, TrustBundle]:
    """Two keys share an id; a third is broken."""
    return {
        TD: TrustBundle(
            trust_domain=TD,
            jwt_authorities=(
                JwtAuthority(key_id="k1", public_key=keys.public_der("other")),
                JwtAuthority(key_id="k1", public_key=keys.public_der("jwt")),
                JwtAuthority(key_id="broken", public_key=b"0\x00"),
            ),
        )
    }


def run_jwt(data: bytes) -> None:
    token = text_of(data)
    svid = outcome(verify_jwt_svid, token, audience=AUDIENCE, bundles=bundles(), now=NOW, refusal=InvalidArgument)
    if svid is not None:
        _check_apart(token, svid)


def _check_apart(token: str, svid: JwtSvid) -> None:
    """Signature and claims once more, with nothing of ours."""
    head, body, tail = token.split(".")
    signature = _bytes(tail)
    header, claims = json.loads(_bytes(head)), json.loads(_bytes(body))
    assert header["alg"] == "ES256"
    assert header["kid"] == "k1"
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    assert any(_signed_by(name, der, f"{head}.{body}".encode()) for name in ("jwt", "other"))
    assert str(svid.id) == claims["sub"]
    assert svid.id.trust_domain == TD
    assert AUDIENCE in claims["aud"]
    assert claims["exp"] > NOW.timestamp() - 60
    assert dict(svid.claims) == claims


def _signed_by(name: str, signature: bytes, data: bytes) -> bool:
    try:
        keys.key(name).public_key().verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**30, 1e300, 253402214400, "", "db", "ES256", "none", "HS256", "k1", "broken"),
    *(
        [],
        [""],
        ["db"],
        [["db"]],
        {},
        {"a": 1},
        "spiffe://example.org/web",
        "SPIFFE://example.org/web",
        "\ud800",
        "JWT",
    ),
)
_MEMBERS = ("alg", "kid", "typ", "crit", "jwk", "x5c", "sub", "aud", "exp", "nbf", "iat", "iss", "jti")


def mutate(data: bytes, max_bytes: int, seed: int, default: Mutate) -> bytes:
    """Changes header or claims, as values or as bytes, and mostly signs them anew."""
    rng = random.Random(seed)
    parts = data.split(b".")
    if len(parts) != 3 or rng.random() < 0.1:
        return default(data, max_bytes)
    try:
        header, payload = (urlsafe_b64decode(part + b"=" * (-len(part) % 4)) for part in parts[:2])
    except ValueError:
        return default(data, max_bytes)
    if rng.random() < 0.3:
        header = _change(header, rng, default)
    else:
        payload = _change(payload, rng, default)
    signed = keys.token(rng.choice(("jwt", "jwt", "jwt", "other", "stranger")), header, payload)
    if rng.random() < 0.05:
        signed = signed[:-86] + hashlib.sha512(signed).hexdigest()[:86].encode()
    return signed if len(signed) <= max_bytes else data


def _change(part: bytes, rng: random.Random, default: Mutate) -> bytes:
    try:
        members = json.loads(part)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict) or rng.random() < 0.4:
        return default(part or b"{}", len(part) + 128)
    name = rng.choice((*_MEMBERS, *members))
    if rng.random() < 0.2:
        members.pop(name, None)
    else:
        members[name] = rng.choice(_VALUES)
    return json.dumps(members, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")


TARGETS = (Target(name="jwt", run=run_jwt, mutate=mutate, words=(b'"sub"', b'"exp"', b"ES256", b"RS256", b"\\ud800")),)
