"""Keys that anybody can derive, so that a saved input means the same in every run. They guard nothing."""

from __future__ import annotations

import hashlib
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.identity import base64url
from ca.issuing import der
from ca.issuing.signature import BY_KEY_TYPE
from ca.keys.signer import LocalSigner
from ca.ports import KeyType

ES256 = BY_KEY_TYPE[KeyType.EC_P256].identifier


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of this name."""
    number = int.from_bytes(hashlib.sha256(b"fuzz " + name.encode()).digest(), "big") >> 1
    return ec.derive_private_key(number, ec.SECP256R1())


@cache
def signer(name: str) -> LocalSigner:
    return LocalSigner(name, key(name))


def public_der(name: str) -> bytes:
    return key(name).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(name: str, data: bytes) -> bytes:
    """ECDSA with SHA-256, DER, the same each time."""
    return key(name).sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def signed(name: str, body: bytes) -> bytes:
    """`body` in the frame that certificates and requests share: SEQUENCE { body, algorithm, signature }."""
    return der.tlv(der.SEQUENCE, body + ES256 + der.tlv(der.BIT_STRING, b"\x00" + sign(name, body)))


def token(name: str, header: bytes, payload: bytes) -> bytes:
    """A compact JWS of these very bytes."""
    text = f"{base64url.encode(header)}.{base64url.encode(payload)}".encode()
    r, s = decode_dss_signature(sign(name, text))
    return text + b"." + base64url.encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).encode()
