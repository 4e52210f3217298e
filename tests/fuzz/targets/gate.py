"""The gate's first bytes: HTTP/2 or HTTP/1.1 or neither on a Unix socket, handshake and ALPN with TLS."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import socket
import ssl
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.svid import X509Svid, verify_x509_svid
from ca.runtime.gate import Gate, Peer
from ca.runtime.gate_h2 import PREFACE
from ca.runtime.gate_tls import ALPN_H2, ALPN_HTTP1, TlsEngine, server_context
from ca.runtime.tls import TlsMaterial
from tests.fuzz import keys, records
from tests.fuzz.harness import Target
from tests.fuzz.targets.certificates import SVID, TIME
from tests.fuzz.targets.requests import TD, root
from tests.support.tls_client import client_context, key_pem, pem_of

DEADLINE_SECONDS = 15.0
STEPS_AHEAD = 40
"""Turns of the loop in which everything that waits on nobody has happened."""


class Sink(asyncio.Protocol):
    """A back that only listens; `heard` says what came and over which of the two."""

    def __init__(self, heard: list[Sink], kind: str, peer: Peer | None = None) -> None:
        self.kind = kind
        self.peer = peer
        self.data = bytearray()
        self.ended = False
        heard.append(self)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True


class Stand:
    """A gate with both backs, made once; inputs come one after the other."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        self.heard: list[Sink] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.directory = Path(tempfile.mkdtemp(prefix="bg-"))
        self.gate = self.loop.run_until_complete(self._start())
        self.context = server_context(self._material())
        atexit.register(self.close)

    def _material(self) -> TlsMaterial:
        # A leaf serves as the server's own: what the client makes of it is not looked at here.
        leaf = (SVID.corpus / "a-good-leaf").read_bytes()
        return TlsMaterial(chain_pem=pem_of([leaf]), key_pem=key_pem(keys.key("leaf")), client_authorities=(root(),))

    async def _start(self) -> Gate:
        (self.directory / "private").mkdir(mode=0o700)
        backend = self.directory / "private" / "grpc.sock"
        self.server = await self.loop.create_unix_server(lambda: Sink(self.heard, "grpc"), backend)
        gate = Gate(
            grpc_socket=backend,
            http_protocol_factory=lambda peer: Sink(self.heard, "http", peer),
        )
        await gate.listen_unix("local", self.path)
        return gate

    def close(self) -> None:
        self.loop.run_until_complete(self.gate.close())
        self.server.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        shutil.rmtree(self.directory)

    @property
    def path(self) -> Path:
        return self.directory / "public" / "api.sock"

    def run(self, what: Any) -> list[Sink]:
        """One connection from its first byte to its end; what the backs heard."""
        self.heard.clear()
        self.loop.run_until_complete(asyncio.wait_for(what, DEADLINE_SECONDS))
        assert not self.failures, f"the loop caught {self.failures}"
        assert not self.gate.connections(), "a connection is left"
        return list(self.heard)

    async def end(self, client: socket.socket) -> None:
        """Close the client's half, then wait until the gate has let go."""
        try:
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the gate was first
        # The gate has no event for it; `run` has a deadline.
        while self.gate._connections or not all(sink.ended for sink in self.heard):  # noqa: ASYNC110
            await asyncio.sleep(0)
        client.close()
        for _ in range(3):
            await asyncio.sleep(0)


@cache
def stand() -> Stand:
    return Stand()


async def _send(client: socket.socket, data: bytes) -> bool:
    """False once the gate has hung up."""
    try:
        await asyncio.get_running_loop().sock_sendall(client, data)
    except OSError:
        return False
    for _ in range(3):
        await asyncio.sleep(0)
    return True


# ---- Unix socket


def run_unix(data: bytes) -> None:
    chunks = [content for _, content in records.split(data) if content]
    spoken = b"".join(chunks)
    sinks = stand().run(_unix(chunks))
    if spoken.startswith(PREFACE):
        expected = [("grpc", spoken)]
    elif PREFACE.startswith(spoken):
        expected = []
    else:
        expected = [("http", spoken)]
    assert [(sink.kind, bytes(sink.data)) for sink in sinks] == expected
    for sink in sinks:
        assert sink.peer is None or (sink.peer.transport, sink.peer.uid) == ("unix", os.getuid())


async def _unix(chunks: list[bytes]) -> None:
    it = stand()
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    await it.loop.sock_connect(client, os.fspath(it.path))
    for chunk in chunks:
        await _send(client, chunk)
    await it.end(client)


# ---- TLS


class Caller:
    """A client's half. The first record's letter decides: `r` raw bytes, else a handshake that offers protocols."""

    def __init__(self, letter: bytes, offered: bytes) -> None:
        self.raw = letter == b"r"
        alpn = {b"h": (ALPN_H2,), b"1": (ALPN_HTTP1,), b"2": (ALPN_HTTP1, ALPN_H2), b"n": ()}.get(letter)
        if alpn is None:
            name = offered[:64].decode("ascii", "replace").replace("\ufffd", "?")
            alpn = (name,) if name else ()
        chain = [(SVID.corpus / "a-good-leaf").read_bytes()] if letter == b"2" else []
        context = client_context(roots=[root()], chain=chain, key=keys.key("leaf"), alpn=alpn)
        context.verify_mode = ssl.CERT_NONE
        self.alpn = alpn
        self.with_certificate = bool(chain)
        self.engine = TlsEngine(context, server_side=False)


def _verify(chain: Any) -> X509Svid:
    bundle = TrustBundle(trust_domain=TD, x509_authorities=(X509Authority(certificate=root()),))
    return verify_x509_svid(chain, {TD: bundle}, now=TIME)


def run_tls(data: bytes) -> None:
    steps = list(records.split(data))
    if not steps:
        return
    caller = Caller(*steps[0])
    chunks = [content for _, content in steps[1:] if content]
    sinks = stand().run(_tls(caller, chunks))
    spoken = b"".join(chunks)
    for sink in sinks:
        assert not caller.raw, "bytes without a handshake reached a back"
        agreed = ALPN_H2 if ALPN_H2 in caller.alpn else ALPN_HTTP1
        assert agreed in caller.alpn
        assert sink.kind == ("grpc" if agreed == ALPN_H2 else "http")
        assert spoken.startswith(bytes(sink.data))
        if sink.peer is not None:
            assert (sink.peer.svid is not None) == caller.with_certificate
    if not caller.raw and not {ALPN_H2, ALPN_HTTP1} & set(caller.alpn):
        assert not sinks, "a client without a known protocol was let in"


async def _tls(caller: Caller, chunks: list[bytes]) -> None:
    it = stand()
    client, theirs = socket.socketpair()
    client.setblocking(False)
    theirs.setblocking(False)
    # The TCP listener's own way in, without a network.
    listener: Any = type("Listener", (), {"name": "fuzz"})
    it.gate._connection(listener, theirs, "fuzz", "fuzz").start_tls(it.context, _verify)
    if caller.raw:
        for chunk in chunks:
            await _send(client, chunk)
    elif await _handshake(client, caller.engine):
        for chunk in chunks:
            if not await _send(client, caller.engine.write(chunk)):
                break
    await it.end(client)


async def _handshake(client: socket.socket, engine: TlsEngine) -> bool:
    for _ in range(STEPS_AHEAD):
        try:
            done = engine.handshake()
        except ssl.SSLError:
            return False
        if (out := engine.outgoing()) and not await _send(client, out):
            return False
        if done:
            return True
        try:
            got = client.recv(65536)
        except BlockingIOError:
            await asyncio.sleep(0)
            continue
        except OSError:
            return False
        if not got:
            return False
        engine.feed(got)
    return False


_PARTS = tuple(PREFACE[at:] for at in range(0, 24, 6))

TARGETS = (
    Target(name="gate_unix", run=run_unix, mutate=records.mutating(), words=(*_PARTS, b"GET / HTTP/1.1\r\n\r\n")),
    Target(
        name="gate_tls", run=run_tls, mutate=records.mutating(), words=(b"\x16\x03\x01", b"h2", b"http/1.1", PREFACE)
    ),
)
