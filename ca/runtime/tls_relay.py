"""From gRPC to a SPIFFE server: gRPC insists on host names, which SPIFFE servers do not have, so TLS is done here.

gRPC speaks plaintext to a Unix socket of ours; for each connection the relay dials a server, verifies chain and
SPIFFE ID, and only then passes bytes. Whoever reached the plaintext leg would act with our SVID: it lies in a 0700
directory and accepts only a peer whose pid is our own, so that neither a process of the same user nor root gets in.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ca.errors import BurgeeError, Unauthenticated, Unavailable
from ca.identity.svid import X509Svid
from ca.ports import Clock
from ca.runtime.addresses import MAX_SOCKET_PATH_BYTES, split_address
from ca.runtime.files import make_private_dir
from ca.runtime.gate_tls import unverified_chain
from ca.runtime.log import get
from ca.runtime.tls import TlsMaterial, load_chain

DIAL_TIMEOUT_SECONDS = 5.0
GREETING_SECONDS = 5.0
"""What a server gets, once it is dialled, for the first frame of HTTP/2."""

CHUNK_BYTES = 64 * 1024
log = get("relay")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why no server could be used: the last one's address, the error, and the chain it showed (DER), if any."""

    address: str
    error: BurgeeError
    chain: tuple[bytes, ...] = ()


@dataclass(eq=False, kw_only=True)
class _Upstream:
    """A verified connection to a server."""

    address: str
    server: X509Svid
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class TlsRelay:
    """One Unix socket; every connection to it becomes one verified TLS connection to the first server that will do.

    `verify` raises Unauthenticated for a chain that is not the server's. `material` is the client's chain and key, or
    None to come without; `fit` says why it is not to be shown now. The last failure stays in `refusal` until a
    connection succeeds; `dialled` counts successes.
    """

    def __init__(
        self,
        *,
        servers: Sequence[str],
        verify: Callable[[Sequence[bytes]], X509Svid],
        material: TlsMaterial | None,
        directory: Path,
        clock: Clock,
        fit: Callable[[], BurgeeError | None] = lambda: None,
    ) -> None:
        self._servers = tuple(servers)
        self._fit = fit
        self._verify = verify
        self._context = client_context(material)
        self._clock = clock
        self.path = _socket_path(directory)
        self.refusal: Refusal | None = None
        self.dialled = 0
        self._first = 0
        self._upstreams: set[_Upstream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    @property
    def address(self) -> str | None:
        """The server that a connection leads to now."""
        return next((upstream.address for upstream in self._upstreams), None)

    @property
    def server_chain(self) -> tuple[bytes, ...]:
        """The chain (DER) of the server that a connection leads to now; empty when there is none."""
        return next((upstream.server.chain for upstream in self._upstreams), ())

    @property
    def patience(self) -> tuple[str, int]:
        """An option for the channel that uses this relay: gRPC gives up an attempt to connect after this time (whatever
        the name says), and each server is dialled in one."""
        seconds = len(self._servers) * DIAL_TIMEOUT_SECONDS + GREETING_SECONDS
        return "grpc.min_reconnect_backoff_ms", int(seconds * 1000)

    async def start(self) -> None:
        self._listener = await asyncio.start_unix_server(self._accept, self.path, limit=CHUNK_BYTES)
        os.chmod(self.path, 0o600)

    def recheck(self) -> None:
        """The bundle changed: connections to a server that no longer verifies are closed."""
        for upstream in tuple(self._upstreams):
            try:
                self._verify(upstream.server.chain)
            except BurgeeError as error:
                self._refuse(upstream.address, error, upstream.server.chain)
                upstream.writer.transport.abort()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        Path(self.path).unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if _peer_pid(writer) == os.getpid():
                await self._relay(reader, writer)
            else:
                log.warning("stranger on the relay's socket", reason="RELAY_STRANGER", pid=_peer_pid(writer))
        except asyncio.CancelledError:
            pass  # the relay is closing; asyncio's own callback would report the cancellation as an error
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await self._dial_any()
        if upstream is None:
            return
        self._upstreams.add(upstream)
        parts: list[asyncio.Task[OSError | None]] = [
            asyncio.create_task(_pump(reader, upstream.writer)),
            asyncio.create_task(_pump(upstream.reader, writer)),
            asyncio.create_task(self._until_expiry(upstream.server)),
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if parts[1].done() and isinstance(ended := parts[1].result(), ssl.SSLError):
                self._refuse(upstream.address, _turned_away(ended), upstream.server.chain)
        finally:
            self._upstreams.discard(upstream)
            upstream.writer.transport.abort()
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _until_expiry(self, server: X509Svid) -> OSError | None:
        await self._clock.sleep(max(0.0, (server.not_after - self._clock.now()).total_seconds()))
        return None

    async def _dial_any(self) -> _Upstream | None:
        """Each server once, beginning with the one that worked last."""
        for offset in range(len(self._servers)):
            index = (self._first + offset) % len(self._servers)
            upstream = await self._dial(self._servers[index])
            if upstream is not None:
                self._first = index
                self.refusal = None
                self.dialled += 1
                return upstream
        return None

    async def _dial(self, address: str) -> _Upstream | None:
        host, port = split_address(address)
        if (unfit := self._fit()) is not None:
            self._refuse(address, unfit)
            return None
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._context, server_hostname=_server_name(host), limit=CHUNK_BYTES
                )
        except (OSError, TimeoutError) as error:
            self._refuse(address, _unreachable(address, error))
            return None
        chain: tuple[bytes, ...] = ()
        try:
            connection = writer.get_extra_info("ssl_object")
            chain = unverified_chain(connection)
            if connection.selected_alpn_protocol() != "h2":
                raise Unauthenticated("the peer does not speak HTTP/2 over TLS (ALPN)", reason="SERVER_ALPN")
            server = self._verify(chain)
        except BurgeeError as error:
            writer.transport.abort()
            self._refuse(address, error, chain)
            return None
        _watch(writer.get_extra_info("socket"))
        return _Upstream(address=address, server=server, reader=reader, writer=writer)

    def _refuse(self, address: str, error: BurgeeError, chain: tuple[bytes, ...] = ()) -> None:
        if self.refusal is None or self.refusal.error.reason != error.reason or self.refusal.address != address:
            log.warning("server not usable", reason=error.reason, detail=error.detail, server=address)
        self.refusal = Refusal(address=address, error=error, chain=chain)


def client_context(material: TlsMaterial | None, *, alpn: str = "h2") -> ssl.SSLContext:
    """Chain and ID are verified by our own rules right after the handshake, which proves the key of the leaf."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([alpn])
    if material is not None:
        load_chain(context, material.chain_pem, material.key_pem)
    return context


def _server_name(host: str) -> str:
    """What is sent as the server's name (SNI): nothing for an address (RFC 6066 §3), for which `ssl` would still load
    the tables of international names."""
    try:
        ip_address(host)
    except ValueError:
        return host
    return ""


def _socket_path(directory: Path) -> str:
    """A fresh name in `directory`, or in a fresh temporary directory where that path would be too long."""
    name = f"{secrets.token_hex(8)}.sock"
    path = make_private_dir(directory) / name
    if len(str(path).encode()) > MAX_SOCKET_PATH_BYTES:
        path = Path(tempfile.mkdtemp(prefix="burgee-")) / name
    return str(path)


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    """Of the process that connected, by the kernel (SO_PEERCRED, unix(7)); 0 for one outside our pid namespace."""
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def _watch(connection: socket.socket) -> None:
    """A server that vanished without a word is noticed within half a minute (tcp(7))."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000)


def _unreachable(address: str, error: Exception) -> Unavailable:
    text = "no answer in time" if isinstance(error, TimeoutError) else (getattr(error, "strerror", None) or str(error))
    return Unavailable(
        f"cannot reach the server at `{address}`: {text.lower()}",
        reason="SERVER_UNREACHABLE",
        hint="is the server running, and is this its address?",
    )


def _turned_away(error: ssl.SSLError) -> Unavailable:
    """In TLS 1.3 a server's verdict on our certificate comes after the handshake, as an alert."""
    text = (error.reason or "TLS error").lower().replace("_", " ")
    return Unavailable(
        f"the server ended the TLS connection: {text}",
        reason="SERVER_REFUSED_TLS",
        hint="does the server still know the authority of our SVID, and do both clocks agree?",
    )


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> OSError | None:
    """Until the end, or the error that it ended with: gRPC then makes another connection."""
    try:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError as error:
        return error
    return None
