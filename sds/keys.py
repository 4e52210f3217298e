"""Workload keys made ahead of need in a thread pool, and the certificate requests made with them."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.identity.spiffe_id import SpiffeId
from ca.ports import KeyType

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

RSA_BITS = {KeyType.RSA_2048: 2048, KeyType.RSA_3072: 3072, KeyType.RSA_4096: 4096}


@dataclass(frozen=True, slots=True)
class WorkloadKey:
    """A fresh private key and its two encodings: PKCS#8 DER (unencrypted) and SubjectPublicKeyInfo DER."""

    private: PrivateKey
    pkcs8: bytes
    public_der: bytes


def generate(key_type: KeyType) -> WorkloadKey:
    """One new key. Blocks: about 0.1 ms for an EC key, up to a second for a long RSA key."""
    private: PrivateKey
    if key_type in RSA_BITS:
        private = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS[key_type])
    else:
        private = ec.generate_private_key(ec.SECP384R1() if key_type is KeyType.EC_P384 else ec.SECP256R1())
    return _encoded(private)


def restored(pkcs8: bytes) -> WorkloadKey:
    """A key from its encoding. Raises ValueError."""
    private = serialization.load_der_private_key(pkcs8, None)
    assert isinstance(private, PrivateKey)
    return _encoded(private)


def _encoded(private: PrivateKey) -> WorkloadKey:
    # Workload API §5.1 (F15): the private key travels as unencrypted PKCS#8 DER.
    pkcs8 = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return WorkloadKey(private, pkcs8, public)


def certificate_request(key: WorkloadKey, spiffe_id: SpiffeId) -> bytes:
    """A PKCS#10 request, DER, naming the SPIFFE ID; the server takes only the public key from it. Blocks (0.1 ms)."""
    digest = hashes.SHA384() if isinstance(getattr(key.private, "curve", None), ec.SECP384R1) else hashes.SHA256()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    builder = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=True)
    return builder.sign(key.private, digest).public_bytes(serialization.Encoding.DER)


class KeyPool:
    """Holds up to `size` unused keys, refilled in the background after each `take`."""

    def __init__(self, key_type: KeyType, *, size: int, executor: Executor | None = None) -> None:
        self._key_type = key_type
        self._size = size
        self._executor = executor
        self._ready: deque[WorkloadKey] = deque()
        self._refill: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._ready)

    def start(self) -> None:
        """Begin to fill the pool; returns at once."""
        if len(self._ready) < self._size and (self._refill is None or self._refill.done()):
            self._refill = asyncio.create_task(self._fill(), name="workload keys")

    async def take(self, count: int) -> list[WorkloadKey]:
        """`count` keys that nobody else gets: from the pool first, the rest made now. No key is given out twice."""
        taken = [self._ready.popleft() for _ in range(min(count, len(self._ready)))]
        self.start()
        missing = count - len(taken)
        if missing:
            loop = asyncio.get_running_loop()
            taken += await loop.run_in_executor(self._executor, _generate_many, self._key_type, missing)
        return taken

    async def close(self) -> None:
        """Stop refilling and forget the keys."""
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.gather(self._refill, return_exceptions=True)
        self._ready.clear()

    async def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._ready) < self._size:
            batch = min(8, self._size - len(self._ready))
            self._ready += await loop.run_in_executor(self._executor, _generate_many, self._key_type, batch)


def _generate_many(key_type: KeyType, count: int) -> list[WorkloadKey]:
    return [generate(key_type) for _ in range(count)]
