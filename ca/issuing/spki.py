"""Public keys as SubjectPublicKeyInfo bytes: which kinds we certify, and how their parts are cut out."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca.errors import InvalidArgument
from ca.issuing import der

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
"""Verification grows with the square of the modulus; nobody needs more."""
MIN_RSA_EXPONENT = 65537  # FIPS 186-5 §5.1
MAX_RSA_EXPONENT = 2**31 - 1
"""Go's crypto refuses a key with a greater one, and verifying with one of thousands of bits takes a hundred times as
long: who has no certificate yet could keep us busy with it."""

# RFC 5480 §2.1.1: id-ecPublicKey with a named curve; then the BIT STRING of an uncompressed point (0x04).
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_P384 = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
_P256_BYTES = len(_P256) + 64
_P384_BYTES = len(_P384) + 96
# RFC 3279 §2.3.1: rsaEncryption with NULL parameters.
_RSA = bytes.fromhex("300d06092a864886f70d0101010500")

SubjectPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_KINDS = (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)


class PublicKeyInfo(NamedTuple):
    """A public key of a kind that we certify. `der` is the SubjectPublicKeyInfo exactly as it came.

    `bits_at` is the offset of the subjectPublicKey's bits in `der`, behind the octet that counts unused ones.
    """

    kind: Literal["ec", "rsa"]
    name: str
    der: bytes
    bits_at: int

    @property
    def identifier(self) -> bytes:
        """SHA-1 over the subjectPublicKey bits, 20 bytes (RFC 5280 §4.2.1.2, method 1)."""
        return hashlib.sha1(self.der[self.bits_at :], usedforsecurity=False).digest()

    @property
    def sha256(self) -> bytes:
        """Fingerprint of the whole SubjectPublicKeyInfo, 32 bytes."""
        return hashlib.sha256(self.der).digest()

    def load(self) -> SubjectPublicKey:
        """cryptography's object; checks that an EC point lies on its curve. Raises InvalidArgument (KEY_MALFORMED)."""
        return _load(self.der)


def read_public_key(spki: bytes) -> PublicKeyInfo:
    """Recognises a key by its bytes: P-256, P-384 (uncompressed points) or RSA of 2048 to 8192 bits.

    Ed25519 and other curves are refused: Envoy and SPIRE do not take them everywhere an SVID goes. Raises
    InvalidArgument with reason KEY_ALGORITHM, KEY_TOO_WEAK, KEY_TOO_BIG or KEY_MALFORMED.
    """
    if len(spki) == _P256_BYTES and spki.startswith(_P256):
        return PublicKeyInfo("ec", "ec-p256", spki, len(_P256) - 1)
    if len(spki) == _P384_BYTES and spki.startswith(_P384):
        return PublicKeyInfo("ec", "ec-p384", spki, len(_P384) - 1)
    return _read_rsa(spki)


def _read_rsa(spki: bytes) -> PublicKeyInfo:
    try:
        outer = der.Reader(spki)
        info = outer.enter(der.SEQUENCE)
        outer.close()
        if info.take_whole(der.SEQUENCE) != _RSA:
            raise InvalidArgument(
                "public key is of a kind that is not certified",
                reason="KEY_ALGORITHM",
                hint="use an EC key on P-256 or P-384 (uncompressed point), or RSA with at least 2048 bits",
            )
        bits = info.enter(der.BIT_STRING)
        info.close()
        if bits.peek() != 0:
            raise der.malformed("public key with unused bits")
        bits.at += 1
        bits_at = bits.at
        numbers = bits.enter(der.SEQUENCE)
        bits.close()
        modulus, exponent = numbers.take_integer(), numbers.take_integer()
        numbers.close()
    except InvalidArgument as error:
        if error.reason == "DER":
            raise InvalidArgument("malformed public key", reason="KEY_MALFORMED") from error
        raise
    _check_rsa(modulus, exponent)
    return PublicKeyInfo("rsa", f"rsa-{modulus.bit_length()}", spki, bits_at)


def _check_rsa(modulus: int, exponent: int) -> None:
    bits = modulus.bit_length()
    if bits < MIN_RSA_BITS:
        raise InvalidArgument(
            f"RSA key of {bits} bits is too weak", reason="KEY_TOO_WEAK", hint=f"use at least {MIN_RSA_BITS} bits"
        )
    if bits > MAX_RSA_BITS:
        raise InvalidArgument(
            f"RSA key of {bits} bits is too big", reason="KEY_TOO_BIG", hint=f"use at most {MAX_RSA_BITS} bits"
        )
    if exponent > MAX_RSA_EXPONENT:
        raise InvalidArgument(
            "RSA key has an exponent of more than 31 bits",
            reason="KEY_TOO_BIG",
            hint=f"the usual exponent is {MIN_RSA_EXPONENT}",
        )
    if exponent < MIN_RSA_EXPONENT or exponent % 2 == 0:
        raise InvalidArgument(
            "RSA key has a weak exponent", reason="KEY_TOO_WEAK", hint=f"the usual exponent is {MIN_RSA_EXPONENT}"
        )


def _load(spki: bytes) -> SubjectPublicKey:
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("malformed public key", reason="KEY_MALFORMED") from error
    if not isinstance(key, _KINDS):
        raise InvalidArgument("public key is of a kind that is not certified", reason="KEY_ALGORITHM")
    return key


@lru_cache(maxsize=64)
def load_authority_key(spki: bytes) -> SubjectPublicKey:
    """An authority's public key, remembered. Raises InvalidArgument (KEY_MALFORMED)."""
    return _load(spki)
