"""An agent's delivering half in this process, against a server that is a certificate authority in memory."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.errors import BurgeeError, Denied, Unavailable
from ca.identity import base64url
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import Clock, KeyType, Process
from ca.runtime.clock import SystemClock
from ca.runtime.rpc import grpc_server
from sds.cache import Cache, Subscription
from sds.envoy import EnvoySds
from sds.envoy_status import SdsClients
from sds.feed import Change, ResumeToken, Snapshot
from sds.jwt_cache import JwtCache, JwtIssued
from sds.keys import KeyPool
from sds.limits import LimitsConfig
from sds.policy_ecds import EnvoyPolicies
from sds.policy_held import HeldPolicies
from sds.request_pace import RequestPace
from sds.rotation import Issued, Rotator
from sds.secrets import Form, SecretNames
from sds.workload_api import WorkloadApi
from sds.workloads import Workloads
from tests.support.workload_client import WorkloadClient

TD = TrustDomain("example.org")
FED = TrustDomain("fed.org")
PARENT = SpiffeId(TD, "/spire/agent/join_token/t")
WEB = Selector("unix", "user:web")
API = Selector("unix", "user:api")
Wait = Callable[[], bool]


class Authority:
    """A trust domain's root, self-signed, and its JWT key."""

    def __init__(self, trust_domain: TrustDomain = TD, *, now: datetime | None = None) -> None:
        self.trust_domain = trust_domain
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.kid = os.urandom(8).hex()
        start = now or datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain.name)])
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain.name}")])
        self.certificate = (
            x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(start - timedelta(days=1))
            .not_valid_after(start + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(*[i in (5, 6) for i in range(9)]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(uri, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.der = self.certificate.public_bytes(serialization.Encoding.DER)

    def bundle(self, *others: Authority, tainted: Sequence[Authority] = ()) -> TrustBundle:
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        every = (self, *others)
        return TrustBundle(
            trust_domain=self.trust_domain,
            x509_authorities=tuple(X509Authority(certificate=a.der, tainted=a in tainted) for a in every),
            jwt_authorities=tuple(
                JwtAuthority(key_id=a.kid, public_key=a.key.public_key().public_bytes(serialization.Encoding.DER, spki))
                for a in every
            ),
        )

    def certify(self, csr_der: bytes, spiffe_id: SpiffeId, *, not_after: datetime, now: datetime) -> bytes:
        csr = x509.load_der_x509_csr(csr_der)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
        key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            x509.CertificateBuilder(
                self.certificate.subject, x509.Name([]), csr.public_key(), x509.random_serial_number()
            )
            .not_valid_before(now - timedelta(seconds=10))
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(*[i == 0 for i in range(9)]), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(key_id, critical=False)
            .add_extension(uri, critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.DER)

    def token(self, claims: dict[str, Any], **header: Any) -> str:
        head = {"alg": "ES256", "kid": self.kid, "typ": "JWT", **header}
        text = ".".join(base64url.encode(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{base64url.encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@dataclass
class FakeServer:
    """Implements Issuer and JwtIssuer. `down`: nobody answers. `refuse`: entry ids that get PermissionDenied."""

    authority: Authority
    clock: Clock
    ids: Callable[[str], RegistrationEntry | None] = lambda _: None
    ttl_seconds: float = 3600
    jwt_ttl_seconds: float = 300
    down: bool = False
    silent: bool = False
    refuse: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    jwts_asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    async def new_x509_svids(self, requests: Sequence[tuple[str, bytes]]) -> Sequence[Issued]:
        await self._answer()
        return [self._one(entry_id, csr) for entry_id, csr in requests]

    async def new_jwt_svid(self, entry_id: str, audience: Sequence[str]) -> JwtIssued:
        await self._answer()
        self.jwts_asked.append((entry_id, tuple(audience)))
        entry, now = self.ids(entry_id), self.clock.now()
        if entry is None or entry_id in self.refuse:
            raise Denied("not authorized", reason="ENTRY_NOT_AUTHORIZED")
        expires = now + timedelta(seconds=entry.jwt_svid_ttl_seconds or self.jwt_ttl_seconds)
        claims = {"sub": str(entry.spiffe_id), "aud": list(audience), "jti": os.urandom(4).hex()}
        claims |= {"iat": int(now.timestamp()), "exp": int(expires.timestamp())}
        return JwtIssued(token=self.authority.token(claims), issued_at=now, expires_at=expires)

    async def _answer(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.down:
            raise Unavailable("no server answers", reason="SERVER_UNREACHABLE")

    def _one(self, entry_id: str, csr: bytes) -> Issued:
        self.asked.append(entry_id)
        entry, now = self.ids(entry_id), self.clock.now()
        if entry is None or entry_id in self.refuse:
            return Issued(error=Denied("not authorized", reason="ENTRY_NOT_AUTHORIZED"))
        ttl = entry.x509_svid_ttl_seconds or self.ttl_seconds
        der = self.authority.certify(csr, entry.spiffe_id, not_after=now + timedelta(seconds=ttl), now=now)
        return Issued(chain=(der,))


@dataclass(frozen=True)
class Me:
    """What the gate would say about the caller."""

    pid: int | None = field(default_factory=os.getpid)
    uid: int | None = field(default_factory=os.getuid)
    gid: int | None = field(default_factory=os.getgid)
    pidfd: int | None = None
    program: tuple[int, int] | None = None
    closed: list[str] = field(default_factory=list, compare=False)

    def close(self, reason: str) -> None:
        self.closed.append(reason)


def entry(entry_id: str, path: str = "", *selectors: Selector, **fields: Any) -> RegistrationEntry:
    """An entry for callers with these selectors, WEB by default."""
    return RegistrationEntry(
        id=entry_id,
        spiffe_id=SpiffeId(TD, path or f"/{entry_id}"),
        parent_id=PARENT,
        selectors=frozenset(selectors or (WEB,)),
        **fields,
    )


class Lab:
    """Everything between a fake server and a real socket. `selectors` is what the attestor finds, until changed."""

    def __init__(self, *, clock: Clock | None = None, patience_seconds: float = 5.0, interval: float = 3600) -> None:
        self.clock: Clock = clock or SystemClock()
        self.directory = tempfile.mkdtemp(prefix="bg-")
        self.socket = f"{self.directory}/w.sock"
        self.authority = Authority(now=self.clock.now())
        self.foreign = Authority(FED, now=self.clock.now())
        self.cache = Cache(TD, clock=self.clock, patience_seconds=patience_seconds)
        self.server = FakeServer(self.authority, self.clock, self.cache.entry)
        self.jwts = JwtCache(issuer=self.server, clock=self.clock)
        self.keys = KeyPool(KeyType.EC_P256, size=4)
        self.rotator = Rotator(cache=self.cache, issuer=self.server, keys=self.keys, clock=self.clock)
        self.selectors: frozenset[Selector] | BurgeeError = frozenset({WEB})
        self.by_pid: dict[int, frozenset[Selector]] = {}
        self.attested = 0
        self.workloads = Workloads(attest=self._attest, cache=self.cache, clock=self.clock, interval_seconds=interval)
        self.clients = SdsClients()
        self.policies = HeldPolicies()
        self.lasting_seconds = 0.0
        self.caller = Me()
        self.names = SecretNames()
        self.pace = RequestPace(LimitsConfig().max_sds_requests_per_second_per_workload, self.clock)
        self.validator = Form.SPIFFE
        self.cache.on_demand.append(self.rotator.poke)
        self._tasks: list[asyncio.Task[Any]] = []
        self._revision = 0

    async def _attest(self, process: Process) -> frozenset[Selector]:
        self.attested += 1
        if isinstance(self.selectors, BurgeeError):
            raise self.selectors
        return self.by_pid.get(process.pid, self.selectors)

    async def __aenter__(self) -> Self:
        self._grpc = grpc_server(self.socket)
        api = WorkloadApi(
            peer_of=lambda context: self.caller,
            workloads=self.workloads,
            cache=self.cache,
            jwts=self.jwts,
            clock=self.clock,
        )
        sds = EnvoySds(
            peer_of=lambda context: self.caller,
            workloads=self.workloads,
            cache=self.cache,
            clients=self.clients,
            clock=self.clock,
            pace=self.pace,
            names=self.names,
            validator=self.validator,
        )
        policies = EnvoyPolicies(
            peer_of=lambda context: self.caller,
            workloads=self.workloads,
            cache=self.cache,
            held=self.policies,
            clients=self.clients,
            clock=self.clock,
            pace=self.pace,
            lasting_seconds=self.lasting_seconds,
        )
        self._grpc.add_generic_rpc_handlers((api.handler(), sds.handler(), policies.handler()))
        await self._grpc.start()
        loops = (self.rotator.run, self.cache.run, self.workloads.run, self.policies.run)
        self._tasks = [asyncio.create_task(loop()) for loop in loops]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.workloads.close()
        self.jwts.close()
        await self.keys.close()
        await self._grpc.stop(None)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _token(self) -> ResumeToken:
        self._revision += 1
        return ResumeToken("epoch", self._revision)

    def snapshot(self, *entries: RegistrationEntry, federated: bool = False) -> None:
        bundles = (self.authority.bundle(), self.foreign.bundle()) if federated else (self.authority.bundle(),)
        self.cache.apply(Snapshot(token=self._token(), entries=entries, bundles=bundles))
        self.rotator.poke()

    async def issued(self, *entries: RegistrationEntry) -> None:
        """A snapshot of these entries, and their SVIDs are here."""
        self.snapshot(*entries)
        await eventually(lambda: all(self.cache.svid(e.id) for e in entries))

    def put(self, *entries: RegistrationEntry, bundles: tuple[TrustBundle, ...] = ()) -> None:
        self.cache.apply(Change(token=self._token(), entries=entries, bundles=bundles))
        self.rotator.retry_untrusted()

    def remove(self, *entry_ids: str) -> None:
        self.cache.apply(Change(token=self._token(), removed_entries=entry_ids))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[WorkloadClient]:
        async with WorkloadClient(self.socket) as client:
            yield client


async def eventually(condition: Wait, *, seconds: float = 5.0) -> None:
    """Poll until the condition holds; fails after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


async def ended(subscription: Subscription) -> BurgeeError:
    """The error with which a subscription ends within two seconds."""
    try:
        async with asyncio.timeout(2):
            while True:
                await subscription.changed()
    except BurgeeError as error:
        return error


async def refused(awaitable: Any) -> tuple[str, str]:
    """(status name, detail) of a call or read that must fail."""
    try:
        got = await asyncio.wait_for(awaitable, 10)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError(f"was answered with {got!r}")


async def status_of(call: Any) -> tuple[str, str]:
    """(status name, detail) with which a stream ends."""
    code = await asyncio.wait_for(call.code(), 10)
    return code.name, await call.details()


async def quiet(call: Any, *, seconds: float = 0.3) -> None:
    """Asserts that nothing more comes on a stream for a while. The read goes on: use the stream no more."""
    read = asyncio.ensure_future(call.read())
    done, _ = await asyncio.wait({read}, timeout=seconds)
    assert not done, f"got {read.result()!r}"
    read.cancel()
