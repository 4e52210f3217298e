"""Signature algorithms: which follow from a key type, how they are named in DER, and how one is checked."""

from __future__ import annotations

from typing import Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from ca.errors import InvalidArgument
from ca.issuing import der
from ca.issuing.spki import SubjectPublicKey
from ca.ports import KeyType


class SignatureAlgorithm(NamedTuple):
    """`identifier` is the AlgorithmIdentifier in DER; `kind` the kind of key it needs."""

    kind: Literal["ec", "rsa"]
    identifier: bytes
    digest: hashes.HashAlgorithm


def _ecdsa(oid: str, digest: hashes.HashAlgorithm) -> SignatureAlgorithm:
    """RFC 5758 §3.2: without parameters."""
    return SignatureAlgorithm("ec", der.tlv(der.SEQUENCE, der.object_identifier(oid)), digest)


def _rsa(oid: str, digest: hashes.HashAlgorithm) -> SignatureAlgorithm:
    """RFC 4055 §5: PKCS#1 v1.5, parameters NULL."""
    return SignatureAlgorithm("rsa", der.tlv(der.SEQUENCE, der.object_identifier(oid) + b"\x05\x00"), digest)


ECDSA_SHA256 = _ecdsa("1.2.840.10045.4.3.2", hashes.SHA256())
ECDSA_SHA384 = _ecdsa("1.2.840.10045.4.3.3", hashes.SHA384())
ECDSA_SHA512 = _ecdsa("1.2.840.10045.4.3.4", hashes.SHA512())
RSA_SHA256 = _rsa("1.2.840.113549.1.1.11", hashes.SHA256())
RSA_SHA384 = _rsa("1.2.840.113549.1.1.12", hashes.SHA384())
RSA_SHA512 = _rsa("1.2.840.113549.1.1.13", hashes.SHA512())

BY_IDENTIFIER = {
    algorithm.identifier: algorithm
    for algorithm in (ECDSA_SHA256, ECDSA_SHA384, ECDSA_SHA512, RSA_SHA256, RSA_SHA384, RSA_SHA512)
}
"""What we believe on a CSR. SHA-1, MD5 and PSS are not among them."""

BY_KEY_TYPE = {
    KeyType.EC_P256: ECDSA_SHA256,
    KeyType.EC_P384: ECDSA_SHA384,
    KeyType.RSA_2048: RSA_SHA256,
    KeyType.RSA_3072: RSA_SHA256,
    KeyType.RSA_4096: RSA_SHA256,
}
"""What we sign with, by the authority's key type (ca.ports.KeyType)."""

_EC_SCHEMES = {
    algorithm.identifier: ec.ECDSA(algorithm.digest) for algorithm in (ECDSA_SHA256, ECDSA_SHA384, ECDSA_SHA512)
}
_PKCS1 = padding.PKCS1v15()


def check_signature(key: SubjectPublicKey, algorithm: SignatureAlgorithm, signature: bytes, data: bytes) -> None:
    """Raises InvalidArgument (reason SIGNATURE) unless `signature` over `data` is the key's."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if algorithm.kind != "ec":
                raise InvalidArgument("signature algorithm does not fit an EC key", reason="SIGNATURE")
            key.verify(signature, data, _EC_SCHEMES[algorithm.identifier])
        else:
            if algorithm.kind != "rsa":
                raise InvalidArgument("signature algorithm does not fit an RSA key", reason="SIGNATURE")
            key.verify(signature, data, _PKCS1, algorithm.digest)
    except InvalidSignature as error:
        raise InvalidArgument("signature is not the key's", reason="SIGNATURE") from error
