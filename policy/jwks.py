"""Key sets of issuers, and signatures by their keys: asymmetric algorithms alone, each bound to its kind of key."""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

MAX_SET_BYTES = 1 << 20
MAX_KEYS = 256
MAX_DEPTH = 32
"""Of the JSON in a token: a proxy's filter does not read what is much deeper."""
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
"""RFC 7518 §3.3; a longer modulus makes a signature expensive to look at."""

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_CURVE_OF = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}  # RFC 7518 §3.4

ALGORITHMS = frozenset(family + bits for family in ("RS", "ES", "PS") for bits in _HASHES) | {"EdDSA"}
"""HMAC and `none` are not among them: a public key never serves as a secret."""


class NotVerified(ValueError):
    """Why a token is not believed; the text is for the decision log."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a set."""

    id: str
    algorithm: str
    """Empty where the set does not say."""
    key: PublicKey


def octets(text: str, what: str) -> bytes:
    """Base64url without padding (RFC 7515 §2), spelled as an encoder spells it. Raises NotVerified."""
    try:
        found = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (ValueError, binascii.Error, UnicodeEncodeError):
        raise NotVerified(f"{what} is not base64url") from None
    if _encoded(found) != text:
        raise NotVerified(f"{what} is not base64url")
    return found


def _encoded(raw: bytes) -> str:
    text = binascii.b2a_base64(raw, newline=False).rstrip(b"=").decode("ascii")
    return text.replace("+", "-").replace("/", "_")


def json_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object, each member once: which of two would be meant is the reader's guess. It has nothing that cannot be
    written down again: no number beyond bounds, no half of a character, no depth without end. Raises NotVerified."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise NotVerified(f"{what} has a member twice")
        return found

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except NotVerified:
        raise
    except (ValueError, RecursionError):
        raise NotVerified(f"{what} is not JSON") from None
    if not isinstance(found, dict):
        raise NotVerified(f"{what} is no JSON object")
    if not _can_be_kept(found):
        raise NotVerified(f"{what} is not JSON")
    return found


def _can_be_kept(found: dict[str, Any]) -> bool:
    left: list[tuple[int, Any]] = [(1, found)]
    while left:
        depth, value = left.pop()
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                return False
        elif isinstance(value, float):
            if not isfinite(value):
                return False
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                return False
            if isinstance(value, dict):
                left += ((depth, name) for name in value)
                value = value.values()
            left += ((depth + 1, inner) for inner in value)
    return True


@lru_cache(maxsize=256)
def keys_of(jwks: str) -> tuple[Key, ...]:
    """The keys of a set that can vouch for a token; what cannot be used is passed over (RFC 7517 §5)."""
    if len(jwks) > MAX_SET_BYTES:
        return ()
    try:
        found = json_object(jwks.encode("utf-8", "surrogatepass"), "the key set").get("keys")
    except NotVerified:
        return ()
    keys = (_key(item) for item in (found if isinstance(found, list) else [])[:MAX_KEYS])
    return tuple(key for key in keys if key is not None)


def _key(item: Any) -> Key | None:
    if not isinstance(item, Mapping) or item.get("use", "sig") not in ("sig", "jwt-svid"):
        return None
    key_id, algorithm = item.get("kid", ""), item.get("alg", "")
    if not isinstance(key_id, str) or (algorithm != "" and algorithm not in ALGORITHMS):
        return None
    try:
        key = _public(item)
    except (ValueError, KeyError, TypeError):
        return None
    return Key(key_id, algorithm, key)


def _public(item: Mapping[str, Any]) -> PublicKey:
    def number(name: str) -> int:
        return int.from_bytes(octets(item[name] if isinstance(item.get(name), str) else "", name), "big")

    match item.get("kty"):
        case "EC":
            return ec.EllipticCurvePublicNumbers(number("x"), number("y"), _CURVES[str(item.get("crv"))]).public_key()
        case "RSA":
            key = rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
            if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
                raise NotVerified("an RSA key of that size is not used")
            return key
        case "OKP" if item.get("crv") == "Ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(octets(str(item.get("x")), "x"))
    raise NotVerified("a key of that kind is not used")


def check_signature(algorithm: str, key: PublicKey, signed: bytes, signature: bytes) -> None:
    """Returns if the signature is the key's. Raises NotVerified, also where the key is not one for the algorithm."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            _ecdsa(algorithm, key, signed, signature)
        elif isinstance(key, rsa.RSAPublicKey):
            _rsa(algorithm, key, signed, signature)
        elif algorithm == "EdDSA":
            key.verify(signature, signed)
        else:
            raise NotVerified("the key is not one for the token's algorithm")
    except InvalidSignature:
        raise NotVerified("the signature is not the issuer's") from None


def _ecdsa(algorithm: str, key: ec.EllipticCurvePublicKey, signed: bytes, signature: bytes) -> None:
    if _CURVE_OF.get(algorithm) != key.curve.name:
        raise NotVerified("the key is not one for the token's algorithm")
    size = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * size:  # RFC 7518 §3.4: r and s, each of the full length; never DER
        raise NotVerified("the signature is not the issuer's")
    r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(_HASHES[algorithm[2:]]))


def _rsa(algorithm: str, key: rsa.RSAPublicKey, signed: bytes, signature: bytes) -> None:
    if algorithm[:2] not in ("RS", "PS"):
        raise NotVerified("the key is not one for the token's algorithm")
    digest = _HASHES[algorithm[2:]]
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if algorithm.startswith("PS"):  # RFC 7518 §3.5: MGF1 and salt as long as the digest
        scheme = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
    key.verify(signature, signed, scheme, digest)
