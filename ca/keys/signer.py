"""A private key in this process's memory, as a Signer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.errors import FailedPrecondition
from ca.ports import KeyType

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# hashlib's digests, since cryptography makes its own dearer: a thirtieth of what a signature costs.
_ECDSA = {
    KeyType.EC_P256: (hashlib.sha256, ec.ECDSA(Prehashed(hashes.SHA256()))),
    KeyType.EC_P384: (hashlib.sha384, ec.ECDSA(Prehashed(hashes.SHA384()))),
}
_RSA_BITS = {KeyType.RSA_2048: 2048, KeyType.RSA_3072: 3072, KeyType.RSA_4096: 4096}
_CURVES: dict[KeyType, ec.EllipticCurve] = {KeyType.EC_P256: ec.SECP256R1(), KeyType.EC_P384: ec.SECP384R1()}
_PKCS1 = padding.PKCS1v15()
_SHA256 = hashes.SHA256()


def generate_private_key(key_type: KeyType) -> PrivateKey:
    """A new key; an RSA key of 4096 bits takes seconds. Blocks."""
    curve = _CURVES.get(key_type)
    if curve is not None:
        return ec.generate_private_key(curve)
    return rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS[key_type])


def key_type_of(key: object) -> KeyType:
    """Of a private key or its public one. Raises FailedPrecondition (reason KEY_TYPE) for none that we sign with."""
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        for key_type, curve in _CURVES.items():
            if key.curve.name == curve.name:
                return key_type
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        for key_type, bits in _RSA_BITS.items():
            if key.key_size == bits:
                return key_type
    known = ", ".join(f"`{key_type}`" for key_type in KeyType)
    raise FailedPrecondition("key is of no type that is signed with", reason="KEY_TYPE", hint=f"known are {known}")


class LocalSigner:
    """Implements ca.ports.Signer. Safe to use from several threads; cryptography signs without the GIL."""

    __slots__ = ("_key", "_key_id", "_key_type", "_public_key_der", "_sign")

    def __init__(self, key_id: str, key: PrivateKey) -> None:
        """Raises FailedPrecondition (reason KEY_TYPE)."""
        self._key_id = key_id
        self._key = key
        self._key_type = key_type_of(key)
        self._sign = _signing(key, self._key_type)
        self._public_key_der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def key_id(self) -> str:
        return self._key_id

    @property
    def key_type(self) -> KeyType:
        return self._key_type

    @property
    def public_key_der(self) -> bytes:
        return self._public_key_der

    def sign(self, data: bytes) -> bytes:
        return self._sign(data)


def _signing(key: PrivateKey, key_type: KeyType) -> Callable[[bytes], bytes]:
    """The key's own signature with the digest and scheme of its type."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        (digest, scheme), sign_ecdsa = _ECDSA[key_type], key.sign
        return lambda data: sign_ecdsa(digest(data).digest(), scheme)
    sign_rsa = key.sign
    return lambda data: sign_rsa(data, _PKCS1, _SHA256)
