"""A gate before a real private grpcio server whose methods say what they see."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from ca.errors import BurgeeError, Denied, Exhausted, InvalidArgument
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import TrustDomain
from ca.identity.svid import X509Svid, verify_x509_svid
from ca.runtime.gate import Gate, GateLimits, current_peer
from ca.runtime.gate_endings import REFUSED
from ca.runtime.metrics import REGISTRY
from ca.runtime.rpc import error_of, grpc_server
from ca.runtime.tls import TlsMaterial
from tests.ca.identity import forge
from tests.support.tls_client import TlsClient, key_pem, pem_of

HOUR = timedelta(hours=1)
BIG = b"x" * (64 << 10)


def describe_peer() -> bytes:
    peer = current_peer.get()
    svid = str(peer.svid.id) if peer.svid is not None else None
    return json.dumps({"transport": peer.transport, "pid": peer.pid, "uid": peer.uid, "svid": svid}).encode()


async def who(request: bytes, context: Any) -> bytes:
    return describe_peer()


async def size(request: bytes, context: Any) -> bytes:
    return str(len(request)).encode()


async def fail(request: bytes, context: Any) -> bytes:
    raise failure(request.decode())


async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield describe_peer()
    if request:
        raise failure(request.decode())
    await asyncio.Event().wait()


sent_by_flood = 0


async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
    global sent_by_flood
    sent_by_flood = 0
    while True:
        yield BIG
        sent_by_flood += len(BIG)


async def written(request: bytes, context: Any) -> None:
    await context.write(describe_peer())


async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.startswith(b"!"):
            raise failure(request[1:].decode())
        yield request


def failure(name: str) -> Exception:
    return {
        "banned": Denied("agent is banned", reason="AGENT_BANNED"),
        "input": InvalidArgument("`x` is not a number", reason="NOT_A_NUMBER", hint="use digits"),
        "limit": Exhausted("too many", reason="LIMIT"),
        "crash": RuntimeError("the password is hunter2"),
    }[name]


SERVICE = {
    "Who": grpc.unary_unary_rpc_method_handler(who),
    "Size": grpc.unary_unary_rpc_method_handler(size),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Watch": grpc.unary_stream_rpc_method_handler(watch),
    "Flood": grpc.unary_stream_rpc_method_handler(flood),
    "Written": grpc.unary_stream_rpc_method_handler(written),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
}


class Pki:
    """Two trust domains, valid now, and the server's own certificate."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self.times = {"not_before": now - HOUR, "not_after": now + HOUR}
        self.roots = {
            forge.TD: forge.root("gate root", **self.times),
            forge.OTHER: forge.root("gate other root", san=[forge.uri("spiffe://other.org")], **self.times),
        }
        self.trusted = dict(self.roots)
        self.server_ids = ["spiffe://example.org/spire/server"]

    def leaf(self, spiffe_id: str, *, by: TrustDomain | None = None, **changes: Any) -> bytes:
        signer = self.roots[by or TrustDomain.parse(spiffe_id.split("/")[2])]
        return signer.sign(forge.Cert(san=[forge.uri(spiffe_id)], **(self.times | changes)))

    def material(self) -> TlsMaterial:
        server = self.leaf(self.server_ids[-1])
        return TlsMaterial(
            chain_pem=pem_of([server]),
            key_pem=key_pem(forge.key("P-256", "leaf")),
            client_authorities=tuple(root.der for root in self.trusted.values()),
        )

    def bundles(self) -> dict[TrustDomain, TrustBundle]:
        return {domain: root.bundle(domain) for domain, root in self.trusted.items()}

    def verify(self, chain: Any) -> X509Svid:
        return verify_x509_svid(chain, self.bundles(), now=datetime.now(UTC))


class Rig:
    """`unix` is the public Unix socket, `address` the public TLS one, `private` the grpcio server's own."""

    def __init__(self, gate: Gate, directory: Path, pki: Pki) -> None:
        self.gate = gate
        self.directory = directory
        self.pki = pki
        self.unix = directory / "pub" / "api.sock"
        self.private = directory / "priv" / "grpc.sock"
        self.address = ("", 0)
        self.server: grpc.aio.Server

    @asynccontextmanager
    async def unix_channel(self, path: Path | None = None) -> AsyncIterator[grpc.aio.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"unix:{path or self.unix}", options=options) as channel:
            yield channel

    @asynccontextmanager
    async def tls_client(self, *chain: bytes) -> AsyncIterator[TlsClient]:
        roots = [self.pki.roots[forge.TD].der]
        key = forge.key("P-256", "leaf") if chain else None
        async with TlsClient(self.address, roots=roots, chain=chain, key=key) as client:
            yield client

    def reasons(self) -> set[str]:
        """Why the gates of this process have refused or ended somebody so far."""
        return {s.labels["reason"] for m in REFUSED.collect() for s in m.samples if s.name.endswith("_total")}

    def refused(self, reason: str, listener: str = "public") -> float:
        """How often that was so."""
        return REGISTRY.get_sample_value("burgee_gate_refused_total", {"listener": listener, "reason": reason}) or 0.0


@asynccontextmanager
async def rig(
    *,
    limits: GateLimits | None = None,
    tcp: bool = False,
    max_receive_bytes: int = 4 << 20,
    max_streams_per_connection: int = 4096,
    **gate_options: Any,
) -> AsyncIterator[Rig]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    (directory / "priv").mkdir(mode=0o700)
    admit = gate_options.pop("admit", lambda cred: True)
    private = directory / "priv" / "grpc.sock"
    socket_of = gate_options.pop("socket_of", None)
    gate = Gate(
        grpc_socket=private if socket_of is None else lambda peer: socket_of(private, peer),
        limits=limits,
        **gate_options,
    )
    it = Rig(gate, directory, Pki())
    outermost = gate.layer()
    server = grpc_server(
        it.private,
        [outermost],
        unknown=outermost.unknown,
        max_receive_bytes=max_receive_bytes,
        max_streams_per_connection=max_streams_per_connection,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Probe", SERVICE),))
    await server.start()
    it.server = server
    try:
        await gate.listen_unix("local", it.unix, admit=admit)
        if tcp:
            it.address = await gate.listen_tcp(
                "public", "127.0.0.1", 0, tls=it.pki.material, verify_client=it.pki.verify
            )
        yield it
    finally:
        await gate.close()
        await server.stop(0)
        shutil.rmtree(directory)


async def call(channel: grpc.aio.Channel, method: str, request: bytes = b"", timeout: float = 10) -> bytes:
    return await channel.unary_unary(f"/test.Probe/{method}")(request, timeout=timeout)


async def until(condition: Callable[[], object], *, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


def family(error: BaseException) -> BurgeeError:
    assert isinstance(error, grpc.aio.AioRpcError)
    return error_of(error)
