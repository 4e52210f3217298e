"""Every Protocol a plugin or a test's fake can implement, on one page; at most four methods each.

An implementation's promise stands in the docstring; `tests/contracts/` holds it to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain


class Clock(Protocol):
    """The time. `now` is aware and in UTC; `monotonic` is in seconds and never goes back."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class KeyType(StrEnum):
    """Key types we issue with. The digest and scheme follow from the type: ES256, ES384, RS256 (PKCS#1 v1.5)."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"


class Signer(Protocol):
    """One private key that can sign.

    `sign` blocks (callers use a thread pool), hashes `data` with the digest of its key type, and returns a DER
    ECDSA-Sig-Value or a PKCS#1 v1.5 signature. It raises `Unavailable` when a remote key cannot be reached.
    """

    @property
    def key_id(self) -> str: ...

    @property
    def key_type(self) -> KeyType: ...

    @property
    def public_key_der(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        ...

    def sign(self, data: bytes) -> bytes: ...


class KeyManager(Protocol):
    """Keeps private keys by id.

    `generate` is durable when it returns and replaces no key silently: an id in use raises AlreadyExists.
    `get` returns None for an unknown id. `remote` tells whether `sign` leaves the process (then every signature is
    re-verified). All methods may block on I/O and are awaited.
    """

    remote: bool

    async def generate(self, key_id: str, key_type: KeyType) -> Signer: ...

    async def get(self, key_id: str) -> Signer | None: ...

    async def list(self) -> Sequence[str]: ...

    async def delete(self, key_id: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """A join token that has just been used up. `agent_id` is the alias it was created for, if any."""

    value: str
    expires_at: datetime
    agent_id: SpiffeId | None = None


class NodeHost(Protocol):
    """What the server lends to a node attestor's verifier."""

    @property
    def trust_domain(self) -> TrustDomain: ...

    async def consume_join_token(self, value: str) -> JoinToken:
        """Check and use up in one transaction; raises Denied for an unknown, used or expired token."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttestedNode:
    """A node attestor's finding. `path` is everything after `spiffe://<trust domain>`, e.g. /spire/agent/x/y."""

    path: str
    selectors: frozenset[Selector] = frozenset()
    reattestable: bool = False


Challenge = Callable[[bytes], Awaitable[bytes]]
"""Sends a challenge to the agent and returns its answer."""


class NodeVerifier(Protocol):
    """Server half of a node attestor. Raises Denied or InvalidArgument; believes nothing it has not verified.

    `verify` is called after the CSR's proof of possession was checked.
    """

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode: ...


class NodeProver(Protocol):
    """Agent half of a node attestor.

    `payload` is asked anew at each attestation; raises FailedPrecondition when there is nothing (left) to prove with.
    `can_reattest` tells whether a second attestation can succeed without an operator.
    """

    @property
    def can_reattest(self) -> bool: ...

    async def payload(self) -> bytes: ...

    async def answer(self, challenge: bytes) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class NodeAttestorPlugin:
    """What the entry point group `burgee.node_attestors` names. Configs are strict pydantic models."""

    name: str
    server_config: type[Any]
    agent_config: type[Any]
    verifier: Callable[[Any, NodeHost], NodeVerifier]
    prover: Callable[[Any], NodeProver]


class Process(Protocol):
    """A calling process, pinned: `proc` is a directory file descriptor of its /proc entry.

    `ensure_alive` raises Unauthenticated when the process that called is gone (or its pid is somebody else's now).
    """

    pid: int
    uid: int
    gid: int
    proc: int

    def ensure_alive(self) -> None: ...


class WorkloadAttestor(Protocol):
    """Finds selectors of a process. Raises Unavailable when it cannot tell; never returns a guess."""

    async def attest(self, process: Process) -> frozenset[Selector]: ...


@dataclass(frozen=True, kw_only=True)
class WorkloadAttestorPlugin:
    """What the entry point group `burgee.workload_attestors` names."""

    name: str
    config: type[Any]
    attestor: Callable[[Any], WorkloadAttestor]


@dataclass(frozen=True, kw_only=True)
class KeyManagerPlugin:
    """What the entry point group `burgee.key_managers` names. The second argument is the server's data directory."""

    name: str
    config: type[Any]
    manager: Callable[[Any, str], KeyManager]
