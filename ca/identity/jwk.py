"""Public keys as JWKs (RFC 7517, RFC 7518 §6): EC on the NIST curves, RSA, and Ed25519 for certificates."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from ca.errors import InvalidArgument
from ca.identity import base64url

KNOWN_KEY_TYPES = frozenset({"EC", "RSA", "OKP"})
MAX_RSA_BITS = 16384

_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_CURVE_NAMES = {curve.name: name for name, curve in _CURVES.items()}


@lru_cache(maxsize=1024)
def load_public_key(spki_der: bytes) -> PublicKeyTypes:
    """SubjectPublicKeyInfo DER to a key object, remembered. Raises InvalidArgument (reason PUBLIC_KEY_MALFORMED)."""
    try:
        return load_der_public_key(spki_der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("malformed or unsupported public key", reason="PUBLIC_KEY_MALFORMED") from error


def key_parameters(key: PublicKeyTypes) -> tuple[dict[str, str], dict[str, str]]:
    """The members `kty` and the key's own ones (EC: crv, x, y; RSA: n, e), apart so that others fit in between.

    Raises InvalidArgument (reason PUBLIC_KEY_UNSUPPORTED) for a key that JWK cannot say.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_NAMES:
        size = (key.curve.key_size + 7) // 8  # RFC 7518 §6.2.1.2: full octet length of the field
        numbers = key.public_numbers()
        x, y = (base64url.encode(n.to_bytes(size, "big")) for n in (numbers.x, numbers.y))
        return {"kty": "EC"}, {"crv": _CURVE_NAMES[key.curve.name], "x": x, "y": y}
    if isinstance(key, rsa.RSAPublicKey):
        public = key.public_numbers()
        return {"kty": "RSA"}, {"n": _encode_uint(public.n), "e": _encode_uint(public.e)}
    if isinstance(key, ed25519.Ed25519PublicKey):  # RFC 8037 §2
        return {"kty": "OKP"}, {"crv": "Ed25519", "x": base64url.encode(key.public_bytes_raw())}
    raise InvalidArgument("this type of public key has no JWK form", reason="PUBLIC_KEY_UNSUPPORTED")


def parse_signing_key(jwk: Mapping[str, Any]) -> bytes:
    """An EC or RSA JWK to SubjectPublicKeyInfo DER. Raises ValueError for anything else or malformed members."""
    key = _parse_ec(jwk) if jwk.get("kty") == "EC" else _parse_rsa(jwk)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _parse_ec(jwk: Mapping[str, Any]) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(_text(jwk, "crv"))
    if curve is None:
        raise ValueError("unknown curve")
    size = (curve.key_size + 7) // 8
    x, y = base64url.decode(_text(jwk, "x")), base64url.decode(_text(jwk, "y"))
    if len(x) != size or len(y) != size:  # RFC 7518 §6.2.1.2
        raise ValueError("a coordinate has the wrong length")
    # Raises ValueError for a point that is not on the curve.
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + x + y)


def _parse_rsa(jwk: Mapping[str, Any]) -> rsa.RSAPublicKey:
    if jwk.get("kty") != "RSA":
        raise ValueError("unknown key type")
    modulus, exponent = base64url.decode(_text(jwk, "n")), base64url.decode(_text(jwk, "e"))
    if len(modulus) * 8 > MAX_RSA_BITS or len(exponent) > 8:
        raise ValueError("key too large")
    return rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")).public_key()


def _encode_uint(value: int) -> str:
    """Base64urlUInt (RFC 7518 §2): no leading zero octets."""
    return base64url.encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _text(jwk: Mapping[str, Any], name: str) -> str:
    value = jwk.get(name)
    if not isinstance(value, str):
        raise ValueError(f"`{name}` is missing or no string")
    return value
