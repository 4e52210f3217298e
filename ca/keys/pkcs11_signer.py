"""Signatures by a key that stays in its token: the digest is made here, what is sent is never more."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ca.errors import BurgeeError
from ca.keys.pkcs11_token import Pkcs11Token
from ca.ports import KeyType

_SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""RFC 8017 §9.2, note 1: what stands before a SHA-256 digest in a PKCS#1 v1.5 signature."""


class Pkcs11Signer:
    """Implements ca.ports.BatchSigner, ca.ports.RemoteSigner and ca.ports.ThreadedSigner.

    A batch is signed in one session, one after the other: tokens that sign in parallel do so for batches that come
    at the same time. The key is looked for anew whenever a session is.
    """

    def __init__(self, key_id: str, *, name: str, key_type: KeyType, public_key_der: bytes, token: Pkcs11Token) -> None:
        """`name` is the key's label in the token."""
        self._key_id = key_id
        self._name = name
        self._key_type = key_type
        self._public_key_der = public_key_der
        self._token = token
        self._digest: hashes.HashAlgorithm = hashes.SHA384() if key_type == KeyType.EC_P384 else hashes.SHA256()

    @property
    def key_id(self) -> str:
        return self._key_id

    @property
    def key_type(self) -> KeyType:
        return self._key_type

    @property
    def public_key_der(self) -> bytes:
        return self._public_key_der

    @property
    def executor(self) -> Executor:
        return self._token.threads.executor

    def problem(self) -> BurgeeError | None:
        return self._token.problem()

    def sign(self, data: bytes) -> bytes:
        (signature,) = self.sign_many([data])
        return signature

    def sign_many(self, batch: Sequence[bytes]) -> Sequence[bytes]:
        return self._token.threads.call(self._sign_many, batch) if batch else []

    def _sign_many(self, batch: Sequence[bytes]) -> list[bytes]:
        with self._token.session() as session:
            key = self._token.private_key(session, self._name)
            return [self._sign(key, data) for data in batch]

    def _sign(self, key: Any, data: bytes) -> bytes:
        import pkcs11

        hashed = hashes.Hash(self._digest)
        hashed.update(data)
        digest = hashed.finalize()
        if self._key_type.startswith("rsa"):
            signature: bytes = key.sign(_SHA256_DIGEST_INFO + digest, mechanism=pkcs11.Mechanism.RSA_PKCS)
            return signature
        raw = key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA)  # r and s, of equal length (PKCS#11 v2.40 §2.3.1)
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
