"""Signatures of JWS (RFC 7518 §3): the nine algorithms a JWT-SVID may use, each bound to its kind of key."""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ca.errors import InvalidArgument
from ca.identity import base64url, strict_json

MIN_RSA_BITS = 2048  # RFC 7518 §3.3, §3.5

_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}  # RFC 7518 §3.4

# JWT-SVID §2.1 (C3, C4). HMAC and `none` are not in the table, so that a public key can never serve as a secret.
ALGORITHMS = frozenset(family + bits for family in ("RS", "ES", "PS") for bits in _HASHES)


def part(text: str, name: str) -> bytes:
    """One of the three parts of a compact serialization. Raises ValueError with what is wrong about it."""
    try:
        return base64url.decode(text)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error


def json_part(text: str, name: str, *, max_bytes: int) -> dict[str, Any]:
    """One that is a JSON object, each member once. Raises ValueError with what is wrong about it."""
    octets = part(text, name)
    try:
        value = strict_json.loads(octets, max_bytes=max_bytes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no JSON object")
    return value


def verify(algorithm: str, key: PublicKeyTypes, signing_input: bytes, signature: bytes) -> None:
    """Returns if `signature` is the key's over `signing_input`.

    `algorithm` is one of ALGORITHMS. Raises InvalidArgument: JWT_KEY_MISMATCH when the key is not of the kind (or,
    for ECDSA, not on the curve) that the algorithm is for, JWT_SIGNATURE when the signature is not the key's.
    """
    try:
        if algorithm.startswith("ES"):
            _verify_ecdsa(algorithm, key, signing_input, signature)
        else:
            _verify_rsa(algorithm, key, signing_input, signature)
    except InvalidSignature as error:
        raise _bad_signature() from error


def _verify_ecdsa(algorithm: str, key: PublicKeyTypes, signing_input: bytes, signature: bytes) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != _CURVES[algorithm]:
        raise _mismatch(algorithm)
    size = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * size:  # RFC 7518 §3.4: r and s, each of the full length; never DER
        raise _bad_signature()
    r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    key.verify(encode_dss_signature(r, s), signing_input, ec.ECDSA(_HASHES[algorithm[2:]]))


def _verify_rsa(algorithm: str, key: PublicKeyTypes, signing_input: bytes, signature: bytes) -> None:
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_RSA_BITS:
        raise _mismatch(algorithm)
    digest = _HASHES[algorithm[2:]]
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if algorithm.startswith("PS"):  # RFC 7518 §3.5: MGF1 and salt as long as the digest
        scheme = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
    key.verify(signature, signing_input, scheme, digest)


def _mismatch(algorithm: str) -> InvalidArgument:
    return InvalidArgument(f"the key is not one for algorithm `{algorithm}`", reason="JWT_KEY_MISMATCH")


def _bad_signature() -> InvalidArgument:
    return InvalidArgument("token signature is not valid", reason="JWT_SIGNATURE")
