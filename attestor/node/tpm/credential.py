"""Credential activation, the maker's side: a secret that only one TPM gives out, and only while it holds one key.

TPM 2.0 Part 1 §24 (credential protection), §11.4.10 (KDFa, KDFe), annex B.10 and C.6 (secret sharing).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB  # it is TPM 2.0's mode; the HMAC beside it is what protects
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from attestor.node.tpm.public import DIGESTS, PublicArea
from attestor.node.tpm.signatures import HASHES
from attestor.node.tpm.structures import DIGEST_BYTES, sized

_LABEL = b"IDENTITY\x00"


@dataclass(frozen=True, slots=True)
class Credential:
    """What goes to the TPM: TPMS_ID_OBJECT and the encrypted seed, each without its outer length."""

    credential: bytes
    secret: bytes


def make_credential(ek: PublicArea, name: bytes, secret: bytes, random: Callable[[int], bytes]) -> Credential:
    """Readable only by the TPM of the endorsement key, and only while an object of that name is loaded there.

    `secret` must not be longer than the digest of the key's name; `ek` must protect (`symmetric_bits`).
    """
    seed, encrypted_seed = _share_seed(ek, random)
    digest = DIGESTS[ek.name_algorithm]
    key = kdfa(digest, seed, b"STORAGE", name, b"", ek.symmetric_bits)
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(sized(secret)) + encryptor.finalize()
    mac_key = kdfa(digest, seed, b"INTEGRITY", b"", b"", DIGEST_BYTES[ek.name_algorithm] * 8)
    integrity = hmac.digest(mac_key, identity + name, digest)
    return Credential(sized(integrity) + identity, encrypted_seed)


def _share_seed(ek: PublicArea, random: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """(a seed as long as the key's digest, how the TPM learns it)"""
    digest = HASHES[ek.name_algorithm]
    if isinstance(ek.key, rsa.RSAPublicKey):
        seed = random(DIGEST_BYTES[ek.name_algorithm])
        oaep = padding.OAEP(padding.MGF1(digest), digest, _LABEL)
        return seed, ek.key.encrypt(seed, oaep)
    ours = ec.generate_private_key(ek.key.curve)
    our_point, their_point = _point(ours.public_key()), _point(ek.key)
    shared = ours.exchange(ec.ECDH(), ek.key)
    seed = kdfe(DIGESTS[ek.name_algorithm], shared, _LABEL, our_point[0], their_point[0])
    return seed, sized(our_point[0]) + sized(our_point[1])


def _point(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    numbers, size = key.public_numbers(), (key.curve.key_size + 7) // 8
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")


def kdfa(digest: str, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """SP 800-108 in counter mode with HMAC, as Part 1 §11.4.10.2 has it; whole bytes only."""
    tail = label + b"\x00" + context_u + context_v + struct.pack(">I", bits)
    out = b""
    counter = 0
    while len(out) * 8 < bits:
        counter += 1
        out += hmac.digest(key, struct.pack(">I", counter) + tail, digest)
    return out[: bits // 8]


def kdfe(digest: str, shared: bytes, label: bytes, party_u: bytes, party_v: bytes) -> bytes:
    """SP 800-56A's one-step derivation (Part 1 §11.4.10.3) for as many bits as the digest has: one round."""
    return hashlib.new(digest, struct.pack(">I", 1) + shared + label + party_u + party_v).digest()
