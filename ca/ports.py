"""Every Protocol a plugin or a test's fake can implement, on one page; at most four methods each.

An implementation's promise stands in the docstring; `tests/contracts/` holds it to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ca.errors import BurgeeError
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain

if TYPE_CHECKING:  # the command line imports this page at its start, and a bundle imports cryptography
    from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority


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


@runtime_checkable
class RemoteSigner(Signer, Protocol):
    """A signer that may know why it would not sign now. `problem` looks at memory only; None: it may be tried."""

    def problem(self) -> BurgeeError | None: ...


@runtime_checkable
class ThreadedSigner(Signer, Protocol):
    """A signer that signs in threads of its own, wherever it is called from. Who calls it in one of these spares a
    switch; nothing that speaks TLS may run there."""

    @property
    def executor(self) -> Executor: ...


@runtime_checkable
class BatchSigner(Signer, Protocol):
    """A signer for which many signatures cost one round trip.

    `sign_many` blocks and answers in the order of `batch`, with an error for an item that alone failed; what concerns
    all of them is raised, as by `sign`.
    """

    def sign_many(self, batch: Sequence[bytes]) -> Sequence[bytes | BurgeeError]: ...


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


@runtime_checkable
class Dated(Protocol):
    """What a key manager can be besides: one that knows when it made a key; None for an unknown id."""

    async def made_at(self, key_id: str) -> datetime | None: ...


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """A join token that has just been used. `agent_id` is the alias it was created for, if any; `name` is what its
    agent is called: the token itself, or, where it serves several agents and stays a secret, its ID and a number."""

    value: str
    expires_at: datetime
    agent_id: SpiffeId | None = None
    name: str


class NodeHost(Protocol):
    """What the server lends to a node attestor's verifier."""

    @property
    def trust_domain(self) -> TrustDomain: ...

    @property
    def clock(self) -> Clock: ...

    async def trust_bundle(self) -> TrustBundle:
        """The own trust domain's, as it is now."""
        ...

    async def use_once(self, kind: str, key: str, until: datetime) -> None:
        """Durable and in one transaction: of all servers of this store, one caller with this key comes through.

        Raises Denied EVIDENCE_USED for every other. `key` is remembered as a hash, until `until`: what it stands for
        must have ended by then.
        """
        ...

    async def consume_join_token(self, value: str) -> JoinToken:
        """Check and count a use in one transaction; raises Denied for an unknown, used up, revoked or expired token."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttestedNode:
    """A node attestor's finding. `path` is everything after `spiffe://<trust domain>`, e.g. /spire/agent/x/y.

    Where `reattestable` is False the first who comes is that node: the server lets no other attest as the same agent.
    """

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


@dataclass(frozen=True, kw_only=True)
class ProvenToken:
    """What a token of a foreign issuer proves. `issuer` is the name that the configuration gives its issuer, `subject`
    whom it is about, for records. `evidence` is what serves once, until `valid_until`."""

    issuer: str
    subject: str
    selectors: frozenset[Selector]
    evidence: str
    valid_until: datetime


@runtime_checkable
class TokenVerifier(Protocol):
    """What a node verifier can be besides: one whose tokens serve callers without an agent, too.

    `prove_token` uses nothing up; `issuer`, where it is given, is the only one whose token will do. `use_up_token`
    uses it up among all servers, for nodes and other callers together. Both raise as `verify` does.
    """

    async def prove_token(self, token: bytes, issuer: str | None) -> ProvenToken: ...

    async def use_up_token(self, proven: ProvenToken) -> None: ...


class NodeProver(Protocol):
    """Agent half of a node attestor.

    `payload` is asked anew at each attestation; raises FailedPrecondition when there is nothing (left) to prove with.
    `can_reattest` tells whether a second attestation can succeed without an operator.
    """

    @property
    def can_reattest(self) -> bool: ...

    async def payload(self) -> bytes: ...

    async def answer(self, challenge: bytes) -> bytes: ...


@runtime_checkable
class Lasting(Protocol):
    """What a prover can be besides: one whose evidence does not run out, although a server believes it once alone
    (trust on first use). Its `can_reattest` is False: an operator has to evict the agent, and need give it nothing new.
    """

    @property
    def evidence_lasts(self) -> bool: ...


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
    """Finds selectors of a process. Raises Unavailable when it cannot tell; never returns a guess.

    What may block runs by `ca.runtime.threads.to_thread`: a thread that hangs then counts against the workload for
    which it was begun, and against no other.
    """

    async def attest(self, process: Process) -> frozenset[Selector]: ...


@runtime_checkable
class Patient(Protocol):
    """What a workload attestor can be besides: one that, as it is configured, may take longer than others do."""

    @property
    def deadline_seconds(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class WorkloadAttestorPlugin:
    """What the entry point group `burgee.workload_attestors` names."""

    name: str
    config: type[Any]
    attestor: Callable[[Any], WorkloadAttestor]


@dataclass(frozen=True, kw_only=True)
class AuthorityHost:
    """What the server lends to key managers, upstream authorities and bundle publishers. `server` is its own stable
    name."""

    trust_domain: TrustDomain
    server: str
    data_directory: str
    clock: Clock


@runtime_checkable
class Connected(Protocol):
    """What a key manager or an upstream authority can be besides: one that depends on something outside.

    `start` tries the connection at once and raises ConfigError for what cannot work until somebody changes it,
    Unavailable for what may pass. `run` keeps it (log-ins renewed, what changes outside followed) until cancelled and
    never raises for a failure outside. `problem` looks at memory only; None means well.
    """

    async def start(self) -> None: ...

    async def run(self) -> None: ...

    async def close(self) -> None: ...

    def problem(self) -> BurgeeError | None: ...


@dataclass(frozen=True, kw_only=True)
class KeyManagerPlugin:
    """What the entry point group `burgee.key_managers` names."""

    name: str
    config: type[Any]
    manager: Callable[[Any, AuthorityHost], KeyManager]


@dataclass(frozen=True, kw_only=True)
class UpstreamCa:
    """An upstream's answer. `chain` is DER: the new authority, then what leads to a root, without the root. `roots` are
    all that the upstream wants trusted now, DER; the chain's own is among them."""

    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class UpstreamBundle:
    """What an upstream publishes: its roots, and the JWT authorities of the whole trust domain where it keeps them."""

    x509_authorities: tuple[X509Authority, ...]
    jwt_authorities: tuple[JwtAuthority, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a check: what was looked at, how it is, and what to do about it."""

    what: str
    level: FindingLevel
    detail: str
    hint: str = ""


class FindingLevel(StrEnum):
    """OK; WARNING: it works and will not for ever; FAILED."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@runtime_checkable
class Checked(Protocol):
    """What either half of a node attestor, or a workload attestor, can be besides: one that can look at what it needs
    (`caadmin doctor`): a permission, a token's audience, a socket.

    `check` asks outside as an attestation would, changes nothing, and takes seconds at most. What it finds wrong is a
    finding with its fix, and not raised; no secret is in it.
    """

    async def check(self) -> Sequence[Finding]: ...


class UpstreamAuthority(Protocol):
    """An authority above this server's. What it answers is believed by nobody before it was proved.

    `mint` signs a PKCS#10 request (DER) as an authority of this trust domain, for `ttl_seconds` at most. `bundle` is
    asked again and again: roots come and go. `publish_jwt_key` raises Unimplemented where the upstream keeps none. All
    raise Unavailable for what may pass, Denied for what the upstream refuses. `check` rehearses all of it and leaves
    nothing behind.
    """

    async def mint(self, csr: bytes, ttl_seconds: int) -> UpstreamCa: ...

    async def bundle(self) -> UpstreamBundle: ...

    async def publish_jwt_key(self, key: JwtAuthority) -> Sequence[JwtAuthority]: ...

    async def check(self) -> Sequence[Finding]: ...


@dataclass(frozen=True, kw_only=True)
class UpstreamAuthorityPlugin:
    """What the entry point group `burgee.upstream_authorities` names.

    `ends` tells when what the configuration names on this machine ends, without asking anybody; None where that cannot
    be told. Raises FailedPrecondition for what will not do.
    """

    name: str
    config: type[Any]
    upstream: Callable[[Any, AuthorityHost], UpstreamAuthority]
    ends: Callable[[Any], datetime | None] = lambda config: None


class BundlePublisher(Protocol):
    """Keeps a copy of the own trust bundle where others look for one; `where` names the place for people.

    `publish` makes the copy say what `bundle` says and tells whether it had to write: it looks there each time, for
    what others may have done. A copy that is missing is made. What is there without the mark of this trust domain is
    somebody else's: it stays as it is, and FailedPrecondition PUBLISH_FOREIGN is raised. Nothing is ever deleted.
    Raises Unavailable for what may pass, Denied for a permission that is missing. `close` lets connections go.
    """

    @property
    def where(self) -> str: ...

    async def publish(self, bundle: TrustBundle) -> bool: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class BundlePublisherPlugin:
    """What the entry point group `burgee.bundle_publishers` names."""

    name: str
    config: type[Any]
    publisher: Callable[[Any, AuthorityHost], BundlePublisher]
