"""The public area of a TPM's key (TPMT_PUBLIC): its name, attributes and the key itself (TPM 2.0 Part 2 §12.2.4)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestor.node.tpm.structures import (
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_ECDAA,
    ALG_NULL,
    ALG_RSA,
    ALG_RSAES,
    ALG_SHA256,
    ALG_SHA384,
    ALG_SHA512,
    CURVE_P256,
    CURVE_P384,
    CURVE_P521,
    NO_SCHEME,
    Malformed,
    Reader,
    Scheme,
    sized,
    whole,
)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

DIGESTS = {ALG_SHA256: "sha256", ALG_SHA384: "sha384", ALG_SHA512: "sha512"}
"""Digests that a name or a signature may be made with."""

CURVES: dict[int, ec.EllipticCurve] = {
    CURVE_P256: ec.SECP256R1(),
    CURVE_P384: ec.SECP384R1(),
    CURVE_P521: ec.SECP521R1(),
}
_RSA_BITS = (2048, 3072, 4096)
MAX_RSA_BITS = _RSA_BITS[-1]
_RSA_EXPONENT = 65537


@dataclass(frozen=True, slots=True)
class PublicArea:
    """A key as its TPM describes it; `encoded` are the bytes that this was read from, and that its name is made of.

    `symmetric_bits` is the AES-CFB key size of a key that protects others, 0 for one that does not.
    """

    encoded: bytes
    name_algorithm: int
    attributes: int
    symmetric_bits: int
    scheme: Scheme
    key: PublicKey

    @property
    def name(self) -> bytes:
        """Part 1 §16: the digest's number and the digest of all of it, so no field can differ under one name."""
        return struct.pack(">H", self.name_algorithm) + hashlib.new(DIGESTS[self.name_algorithm], self.encoded).digest()

    @property
    def is_ec(self) -> bool:
        return isinstance(self.key, ec.EllipticCurvePublicKey)

    def has(self, *attributes: int) -> bool:
        return all(self.attributes & attribute for attribute in attributes)


def parse_public(data: bytes) -> PublicArea:
    """Raises Malformed, also for a kind of key that nothing here is done with."""
    return whole(data, lambda reader: _public(reader, data))


def _public(reader: Reader, data: bytes) -> PublicArea:
    kind, name_algorithm, attributes = reader.u16(), reader.u16(), reader.u32()
    if name_algorithm not in DIGESTS:
        raise Malformed("its name is made by an unknown or weak digest")
    reader.sized()  # authorization policy
    if kind not in (ALG_RSA, ALG_ECC):
        raise Malformed(f"neither an RSA nor an elliptic curve key (0x{kind:04x})")
    symmetric_bits = _symmetric(reader)
    scheme = _scheme(reader)
    key = _rsa_key(reader) if kind == ALG_RSA else _ec_key(reader)
    return PublicArea(data, name_algorithm, attributes, symmetric_bits, scheme, key)


def _symmetric(reader: Reader) -> int:
    algorithm = reader.u16()
    if algorithm == ALG_NULL:
        return 0
    bits, mode = reader.u16(), reader.u16()
    if algorithm != ALG_AES or mode != ALG_CFB or bits not in (128, 192, 256):
        raise Malformed("its symmetric algorithm is not AES in CFB mode")
    return bits


def _scheme(reader: Reader) -> Scheme:
    algorithm = reader.u16()
    if algorithm == ALG_NULL:
        return NO_SCHEME
    if algorithm == ALG_RSAES:
        return Scheme(algorithm, ALG_NULL)
    scheme = Scheme(algorithm, reader.u16())
    if algorithm == ALG_ECDAA:
        reader.u16()
    return scheme


def _rsa_key(reader: Reader) -> rsa.RSAPublicKey:
    bits, exponent, modulus = reader.u16(), reader.u32() or _RSA_EXPONENT, reader.sized()
    number = int.from_bytes(modulus, "big")
    if bits not in _RSA_BITS or len(modulus) * 8 != bits or number.bit_length() != bits or exponent != _RSA_EXPONENT:
        raise Malformed("an RSA key of unusual size or exponent")
    try:
        return rsa.RSAPublicNumbers(exponent, number).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Malformed("an impossible RSA key") from error


def _ec_key(reader: Reader) -> ec.EllipticCurvePublicKey:
    curve = CURVES.get(reader.u16())
    if reader.u16() != ALG_NULL:  # key derivation scheme
        reader.u16()
    x, y = reader.sized(), reader.sized()
    if curve is None:
        raise Malformed("a key on an unknown curve")
    try:
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Malformed("a point that is not on its curve") from error


def _template(*, kind: int, attributes: int, policy: bytes, parameters: bytes, unique: bytes) -> bytes:
    return struct.pack(">HHI", kind, ALG_SHA256, attributes) + sized(policy) + parameters + unique


def rsa_template(*, attributes: int, scheme: bytes, protects: bool, policy: bytes = b"", unique: bytes = b"") -> bytes:
    """What a TPM is asked for when an RSA-2048 key shall be made; `scheme` is a TPMT_RSA_SCHEME."""
    parameters = _protection(protects) + scheme + struct.pack(">HI", 2048, 0)
    return _template(kind=ALG_RSA, attributes=attributes, policy=policy, parameters=parameters, unique=sized(unique))


def ec_template(*, attributes: int, policy: bytes = b"", coordinate: bytes = b"") -> bytes:
    """The same for a P-256 key that protects others."""
    parameters = _protection(True) + struct.pack(">HHH", ALG_NULL, CURVE_P256, ALG_NULL)
    return _template(
        kind=ALG_ECC, attributes=attributes, policy=policy, parameters=parameters, unique=sized(coordinate) * 2
    )


def _protection(protects: bool) -> bytes:
    return struct.pack(">HHH", ALG_AES, 128, ALG_CFB) if protects else struct.pack(">H", ALG_NULL)
