"""A whole server in this process: real store, real gate, real grpcio, real TLS; and callers of every kind."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf import message

from ca.ports import Clock
from ca.proto.burgee import admin_pb2_grpc, node_pb2_grpc
from ca.proto.spire import (
    server_agent_pb2,
    server_agent_pb2_grpc,
    server_bundle_pb2_grpc,
    server_debug_pb2_grpc,
    server_entry_pb2,
    server_entry_pb2_grpc,
    server_localauthority_pb2_grpc,
    server_logger_pb2_grpc,
    server_svid_pb2_grpc,
    server_trustdomain_pb2_grpc,
    types_pb2,
)
from ca.runtime.config import from_values
from ca.runtime.rpc import connect
from ca.runtime.server_config import ServerConfig
from ca.server import Server
from tests.support.tls_client import TlsClient

TRUST_DOMAIN = "example.org"


def spiffe_id(path: str, trust_domain: str = TRUST_DOMAIN) -> types_pb2.SPIFFEID:
    return types_pb2.SPIFFEID(trust_domain=trust_domain, path=path)


def make_csr(key: Any = None, *, uris: Sequence[str] = (), dns: Sequence[str] = (), subject: str = "") -> bytes:
    """A DER request signed with `key`, or with a fresh P-256 key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, subject)] if subject else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    names = [x509.DNSName(n) for n in dns] + [x509.UniformResourceIdentifier(uri) for uri in uris]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)


def broken_csr() -> bytes:
    """A request whose signature is somebody else's."""
    good = bytearray(make_csr())
    good[-1] ^= 1
    return bytes(good)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Somebody's X.509-SVID and its key."""

    path: str
    chain: tuple[bytes, ...]
    key: Any

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.chain[0])


class Caller:
    """Stubs of every service over one channel."""

    def __init__(self, channel: grpc.aio.Channel, tls: TlsClient | None = None) -> None:
        self.channel = channel
        self.tls = tls
        self.agents: Any = server_agent_pb2_grpc.AgentStub(channel)
        self.entries: Any = server_entry_pb2_grpc.EntryStub(channel)
        self.svids: Any = server_svid_pb2_grpc.SVIDStub(channel)
        self.bundles: Any = server_bundle_pb2_grpc.BundleStub(channel)
        self.trust_domains: Any = server_trustdomain_pb2_grpc.TrustDomainStub(channel)
        self.authorities: Any = server_localauthority_pb2_grpc.LocalAuthorityStub(channel)
        self.debug: Any = server_debug_pb2_grpc.DebugStub(channel)
        self.logger: Any = server_logger_pb2_grpc.LoggerStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminStub(channel)
        self.node: Any = node_pb2_grpc.NodeStub(channel)

    async def raw(self, method: str, *, streaming: bool = False, request: message.Message | None = None) -> Any:
        """Calls a method with an empty (or the given) request and returns the raw first answer."""
        data = b"" if request is None else request.SerializeToString()
        if not streaming:
            return await self.channel.unary_unary(method)(data, timeout=10)
        call = self.channel.stream_stream(method)(timeout=10)
        await call.write(data)
        return await call.read()


class RunningServer:
    """A started server with its local administrator; made by `running_server`."""

    def __init__(self, config: ServerConfig, clock: Clock | None) -> None:
        self.config = config
        self._clock = clock
        self._stack = AsyncExitStack()
        self.server: Server
        self.local: Caller
        self._tokens = 0

    async def start(self) -> Self:
        self.server = Server(self.config, clock=self._clock)
        await self.server.start()
        channel = connect(self.config.admin_socket_path)
        self._stack.push_async_callback(channel.close)
        self.local = Caller(channel)
        return self

    async def stop(self) -> None:
        await self._stack.aclose()
        await self.server.stop()

    async def restart(self) -> None:
        """The same data, a new server, maybe another port; callers made before are gone."""
        await self.stop()
        self._stack = AsyncExitStack()
        await self.start()

    @property
    def roots(self) -> list[bytes]:
        return [authority.certificate for authority in self.server.trust.own.x509_authorities]

    async def caller(self, identity: Identity | None = None) -> Caller:
        """Someone on the network: anonymous, or with this identity. Lives until the server stops."""
        chain, key = (identity.chain, identity.key) if identity else ((), None)
        tls = await self._stack.enter_async_context(
            TlsClient(self.server.address, roots=self.roots, chain=chain, key=key)
        )
        return Caller(tls.channel, tls)

    async def token(self, **fields: Any) -> str:
        request = server_agent_pb2.CreateJoinTokenRequest(ttl=600, **fields)
        return str((await self.local.agents.CreateJoinToken(request)).value)

    async def attest(
        self, *, token: str | None = None, csr: bytes | None = None, caller: Caller | None = None
    ) -> Identity:
        """A node that attests by join token."""
        key = ec.generate_private_key(ec.SECP256R1())
        token = token or await self.token()
        result = await attest(caller or await self.caller(), token.encode(), csr or make_csr(key))
        return Identity(path=result.svid.id.path, chain=tuple(result.svid.cert_chain), key=key)

    async def agent(self) -> tuple[Identity, Caller]:
        """A freshly attested agent and its connection."""
        identity = await self.attest()
        return identity, await self.caller(identity)

    async def create(self, *entries: types_pb2.Entry) -> list[types_pb2.Entry]:
        """Creates entries, all of which must succeed."""
        request = server_entry_pb2.BatchCreateEntryRequest(entries=entries)
        results = (await self.local.entries.BatchCreateEntry(request)).results
        assert [result.status.code for result in results] == [0] * len(entries), results
        return [result.entry for result in results]

    async def mint(self, path: str) -> Identity:
        """An identity that no entry need stand for."""
        from ca.proto.spire.server_svid_pb2 import MintX509SVIDRequest

        key = ec.generate_private_key(ec.SECP256R1())
        csr = make_csr(key, uris=[f"spiffe://{self.config.trust_domain}{path}"])
        svid = (await self.local.svids.MintX509SVID(MintX509SVIDRequest(csr=csr))).svid
        return Identity(path=path, chain=tuple(svid.cert_chain), key=key)


async def attest(
    caller: Caller, payload: bytes, csr: bytes, kind: str = "join_token"
) -> server_agent_pb2.AttestAgentResponse.Result:
    """One attestation to its end."""
    pb = server_agent_pb2
    call = caller.agents.AttestAgent(timeout=20)
    await call.write(
        pb.AttestAgentRequest(
            params=pb.AttestAgentRequest.Params(
                data=types_pb2.AttestationData(type=kind, payload=payload), params=pb.AgentX509SVIDParams(csr=csr)
            )
        )
    )
    response = await call.read()
    if not isinstance(response, pb.AttestAgentResponse):
        await call  # raises
        raise AssertionError("no answer and no error")
    assert await call.read() is grpc.aio.EOF
    return response.result


def entry(path: str, parent: str, *selectors: str, **fields: Any) -> types_pb2.Entry:
    """An entry of the test trust domain; selectors as `type:value`."""
    pairs = [selector.split(":", 1) for selector in selectors or ("t:v",)]
    return types_pb2.Entry(
        spiffe_id=spiffe_id(path),
        parent_id=spiffe_id(parent),
        selectors=[types_pb2.Selector(type=kind, value=value) for kind, value in pairs],
        **fields,
    )


@asynccontextmanager
async def running_server(*, clock: Clock | None = None, **changes: Any) -> AsyncIterator[RunningServer]:
    """A server on a free loopback port with everything in a short temporary directory; `changes` go to its config."""
    directory = tempfile.mkdtemp(prefix="bg-")
    values: dict[str, Any] = {
        "trust_domain": TRUST_DOMAIN,
        "data_dir": f"{directory}/d",
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "metrics_address": None,
        **changes,
    }
    running = RunningServer(from_values(values, ServerConfig), clock)
    try:
        await running.start()
        try:
            yield running
        finally:
            await running.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def eventually(probe: Callable[[], Awaitable[bool] | bool], *, seconds: float = 10.0) -> None:
    """Polls until `probe` holds; fails loudly at the deadline."""
    async with asyncio.timeout(seconds):
        while True:
            outcome = probe()
            if await outcome if isinstance(outcome, Awaitable) else outcome:
                return
            await asyncio.sleep(0.005)


def data_dir_of(running: RunningServer) -> Path:
    return running.config.data_dir
