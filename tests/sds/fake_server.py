"""A server's node side in this process: TLS in front, gRPC behind, and whatever the test wants it to answer."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.errors import BurgeeError, FailedPrecondition, InvalidArgument, NotFound
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.bundle_pem import certificate_pem
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from ca.proto.burgee import node_pb2, node_pb2_grpc
from ca.proto.spire import (
    server_agent_pb2,
    server_agent_pb2_grpc,
    server_bundle_pb2,
    server_bundle_pb2_grpc,
    server_entry_pb2_grpc,
    server_svid_pb2,
    server_svid_pb2_grpc,
    types_pb2,
)
from ca.runtime.rpc import grpc_server
from ca.runtime.tls import load_chain
from sds.wire import bundle_to_wire, entry_to_wire, id_to_wire
from tests.ca.identity.forge import TD, Authority, Cert, key, root, uri
from tests.sds.fake_entries import FakeEntries

SERVER_ID = "spiffe://example.org/spire/server"
AGENT_LIFE = timedelta(hours=1)


def fresh_root(name: str, **changes: Any) -> Authority:
    """A root that is valid now."""
    now = datetime.now(UTC)
    return root(name, not_before=now - timedelta(days=1), not_after=now + timedelta(days=30), **changes)


def leaf_of(authority: Authority, spiffe_id: str, **changes: Any) -> bytes:
    now = datetime.now(UTC)
    defaults: dict[str, Any] = {"not_before": now - timedelta(seconds=10), "not_after": now + timedelta(days=7)}
    return authority.sign(Cert(san=[uri(spiffe_id)], **(defaults | changes)))


def entry(entry_id: str, path: str = "/web", **changes: Any) -> RegistrationEntry:
    return RegistrationEntry(
        id=entry_id,
        spiffe_id=SpiffeId(TD, path),
        parent_id=SpiffeId(TD, "/spire/agent/join_token/t1"),
        selectors=frozenset({Selector("unix", "uid:0")}),
        **changes,
    )


@dataclass
class FakeServer:
    """`start` and `stop` are an outage; the address stays. `denials` answers a method by name with an error.

    Without `pushes` it is a server that must be polled.
    """

    root: Authority = field(default_factory=lambda: fresh_root("root"))
    tokens: set[str] = field(default_factory=lambda: {"t1"})
    reattestable: bool = False
    challenges: list[bytes] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    denials: dict[str, BurgeeError] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    client_chains: list[bytes | None] = field(default_factory=list)
    subscriptions: list[node_pb2.Subscribe] = field(default_factory=list)
    acks: list[node_pb2.Ack] = field(default_factory=list)
    entries: dict[str, RegistrationEntry] = field(default_factory=dict)
    epoch: str = "epoch-1"
    server_id: str = SERVER_ID
    server_life: timedelta = timedelta(days=7)
    agent_life: timedelta = AGENT_LIFE
    bundle: TrustBundle | None = None
    now: Any = lambda: datetime.now(UTC)
    agent_path: str = ""
    alpn: str = "h2"
    pushes: bool = True
    ahead_seconds: float = 0.0
    federated: dict[str, TrustBundle] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    policies: bytes | None = None
    unknown_kinds: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.polled = FakeEntries(entries=lambda: [entry_to_wire(e) for e in self.entries.values()], called=self.called)
        self._log: list[node_pb2.SyncResponse] = []
        self._changed = asyncio.Condition()
        self._directory = tempfile.mkdtemp(prefix="bg-")
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._grpc: grpc.aio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def trust_bundle(self) -> TrustBundle:
        return self.bundle or TrustBundle(
            trust_domain=TD, x509_authorities=(X509Authority(certificate=self.root.der),), sequence_number=1
        )

    async def start(self) -> None:
        self._grpc = grpc_server(f"{self._directory}/s.sock")
        server_agent_pb2_grpc.add_AgentServicer_to_server(_Agent(self), self._grpc)
        server_bundle_pb2_grpc.add_BundleServicer_to_server(_Bundle(self), self._grpc)
        server_svid_pb2_grpc.add_SVIDServicer_to_server(_Svid(self), self._grpc)
        server_entry_pb2_grpc.add_EntryServicer_to_server(self.polled, self._grpc)
        if self.pushes:
            node_pb2_grpc.add_NodeServicer_to_server(_Node(self), self._grpc)
        await self._grpc.start()
        self._listener = await asyncio.start_server(self._relay, "127.0.0.1", self._port, ssl=self._context())
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._grpc is not None:
            await self._grpc.stop(0)

    async def close(self) -> None:
        await self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def push(
        self, *, upsert: tuple[RegistrationEntry, ...] = (), removed: tuple[str, ...] = (), raw: Any = ()
    ) -> None:
        """A change of entries; `raw` are resources as they are."""
        for item in upsert:
            self.entries[item.id] = item
        for name in removed:
            self.entries.pop(name)
        message = node_pb2.SyncResponse(store_epoch=self.epoch, revision=len(self._log) + 2)
        message.resources.extend([*(_entry_resource(e) for e in upsert), *raw])
        message.removed.extend(node_pb2.ResourceName(kind="entry", name=name) for name in removed)
        async with self._changed:
            self._log.append(message)
            self._changed.notify_all()

    async def push_bundle(self) -> None:
        await self.push(raw=[_bundle_resource(self.trust_bundle)])

    async def push_policies(self, payload: bytes | None) -> None:
        """The set of policies; None takes it away."""
        self.policies = payload
        if payload is not None:
            await self.push(raw=[_policy_resource(payload)])
            return
        message = node_pb2.SyncResponse(store_epoch=self.epoch, revision=len(self._log) + 2)
        message.removed.add(kind="policy", name="set")
        async with self._changed:
            self._log.append(message)
            self._changed.notify_all()

    def issue(self, csr_der: bytes, spiffe_id: str, life: timedelta | None = None) -> bytes:
        request = x509.load_der_x509_csr(csr_der)
        assert request.is_signature_valid
        now = self.now()
        public = _PublicOnly(request.public_key())
        return self.root.sign(
            Cert(
                key=public,  # type: ignore[arg-type]
                san=[uri(spiffe_id)],
                not_before=now - timedelta(seconds=10),
                not_after=now + (life or self.agent_life),
            )
        )

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf = leaf_of(self.root, self.server_id, not_after=datetime.now(UTC) + self.server_life)
        pem = key("P-256", "leaf").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        load_chain(context, certificate_pem(leaf).encode(), pem)
        context.set_alpn_protocols([self.alpn])
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(
            cadata="".join(certificate_pem(a.certificate) for a in self.trust_bundle.x509_authorities)
        )
        return context

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.client_chains.append(writer.get_extra_info("ssl_object").getpeercert(True))
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(f"{self._directory}/s.sock")
            pumps = [asyncio.create_task(_pump(reader, inner_writer)), asyncio.create_task(_pump(inner_reader, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                inner_writer.transport.abort()
        except asyncio.CancelledError:
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    def called(self, method: str) -> None:
        self.calls.append(method)
        if method in self.denials:
            raise self.denials[method]


class _PublicOnly:
    """Lets forge certify somebody else's key."""

    def __init__(self, public: Any) -> None:
        self._public = public

    def public_key(self) -> Any:
        return self._public


class _Agent(server_agent_pb2_grpc.AgentServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    async def AttestAgent(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self._fake.called("AttestAgent")
        params = (await anext(requests)).params
        for challenge in self._fake.challenges:
            yield server_agent_pb2.AttestAgentResponse(challenge=challenge)
            self._fake.answers.append((await anext(requests)).challenge_response)
        token = params.data.payload.decode()
        if token not in self._fake.tokens:
            raise InvalidArgument("failed to attest: join token does not exist or has already been used")
        if not self._fake.reattestable:
            self._fake.tokens.discard(token)
        path = self._fake.agent_path or f"/spire/agent/{params.data.type}/{token}"
        svid = self._svid(params.params.csr, path)
        result = server_agent_pb2.AttestAgentResponse.Result(svid=svid, reattestable=self._fake.reattestable)
        yield server_agent_pb2.AttestAgentResponse(result=result)

    async def PostStatus(self, request: Any, context: Any) -> Any:
        self._fake.called("PostStatus")
        self._fake.versions.append(request.agent_version)
        return server_agent_pb2.PostStatusResponse()

    async def RenewAgent(self, request: Any, context: Any) -> Any:
        self._fake.called("RenewAgent")
        der = self._fake.client_chains[-1]
        if der is None:
            raise FailedPrecondition("no client certificate")
        san = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        (name,) = san.value.get_values_for_type(x509.UniformResourceIdentifier)
        return server_agent_pb2.RenewAgentResponse(svid=self._svid(request.params.csr, SpiffeId.parse(name).path))

    def _svid(self, csr: bytes, path: str) -> types_pb2.X509SVID:
        spiffe_id = SpiffeId(TD, path)
        der = self._fake.issue(csr, str(spiffe_id))
        return types_pb2.X509SVID(cert_chain=[der], id=id_to_wire(spiffe_id))


class _Bundle(server_bundle_pb2_grpc.BundleServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    async def GetBundle(self, request: server_bundle_pb2.GetBundleRequest, context: Any) -> types_pb2.Bundle:
        self._fake.called("GetBundle")
        return bundle_to_wire(self._fake.trust_bundle)

    async def GetFederatedBundle(self, request: server_bundle_pb2.GetFederatedBundleRequest, context: Any) -> Any:
        self._fake.called("GetFederatedBundle")
        if request.trust_domain not in self._fake.federated:
            raise NotFound("bundle not found")
        return bundle_to_wire(self._fake.federated[request.trust_domain])


class _Svid(server_svid_pb2_grpc.SVIDServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    async def BatchNewX509SVID(self, request: Any, context: Any) -> Any:
        self._fake.called("BatchNewX509SVID")
        response = server_svid_pb2.BatchNewX509SVIDResponse()
        for params in request.params:
            found = self._fake.entries.get(params.entry_id)
            if found is None:
                response.results.add(status=types_pb2.Status(code=5, message="entry not found or not authorized"))
                continue
            der = self._fake.issue(params.csr, str(found.spiffe_id))
            response.results.add(svid=types_pb2.X509SVID(cert_chain=[der], id=id_to_wire(found.spiffe_id)))
        return response

    async def NewJWTSVID(self, request: Any, context: Any) -> Any:
        self._fake.called("NewJWTSVID")
        if request.entry_id not in self._fake.entries:
            raise NotFound("entry not found or not authorized")
        svid = types_pb2.JWTSVID(token="a.b." + ",".join(request.audience), issued_at=1000, expires_at=1300)
        return server_svid_pb2.NewJWTSVIDResponse(svid=svid)


class _Node(node_pb2_grpc.NodeServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    async def GetTime(self, request: node_pb2.GetTimeRequest, context: Any) -> node_pb2.ServerTime:
        return node_pb2.ServerTime(now_micros=int((time.time() + self._fake.ahead_seconds) * 1e6))

    async def Sync(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        fake = self._fake
        fake.called("Sync")
        subscribe = (await anext(requests)).subscribe
        fake.subscriptions.append(subscribe)
        unknown: list[str] = []
        reader = asyncio.create_task(self._read_acks(requests, unknown))
        try:
            position = subscribe.revision - 1
            if subscribe.store_epoch != fake.epoch or not 0 <= position <= len(fake._log):
                yield self._snapshot()
                position = len(fake._log)
            while True:
                async with fake._changed:
                    while len(fake._log) <= position:
                        await fake._changed.wait()
                        if unknown:
                            raise InvalidArgument("a kind that was not pushed", reason="ACK_KIND")
                for message in fake._log[position:]:
                    yield message
                position = len(fake._log)
        finally:
            reader.cancel()

    async def _read_acks(self, requests: AsyncIterator[Any], unknown: list[str]) -> None:
        async for request in requests:
            self._fake.acks.append(request.ack)
            if request.ack.kind in self._fake.unknown_kinds:
                unknown.append(request.ack.kind)
                async with self._fake._changed:
                    self._fake._changed.notify_all()

    def _snapshot(self) -> node_pb2.SyncResponse:
        fake = self._fake
        message = node_pb2.SyncResponse(store_epoch=fake.epoch, revision=len(fake._log) + 1, snapshot=True)
        message.resources.extend(_entry_resource(e) for e in fake.entries.values())
        message.resources.append(_bundle_resource(fake.trust_bundle))
        if fake.policies is not None:
            message.resources.append(_policy_resource(fake.policies))
        message.resources.append(node_pb2.Resource(kind="of-the-future", name="x", payload=b"\xff"))
        return message


def _entry_resource(item: RegistrationEntry) -> node_pb2.Resource:
    return node_pb2.Resource(kind="entry", name=item.id, payload=entry_to_wire(item).SerializeToString())


def _policy_resource(payload: bytes) -> node_pb2.Resource:
    return node_pb2.Resource(kind="policy", name="set", payload=payload)


def _bundle_resource(bundle: TrustBundle) -> node_pb2.Resource:
    payload = bundle_to_wire(bundle).SerializeToString()
    return node_pb2.Resource(kind="bundle", name=bundle.trust_domain.name, payload=payload)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
