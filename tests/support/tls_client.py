"""A grpcio client for a TLS server that has a SPIFFE ID and no host name: a relay on a private Unix socket.

grpcio insists on a host name in the server's certificate. The relay does TLS with the standard library, checks the
chain and the URI SAN, and hands grpcio the plain bytes.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.runtime.tls import load_chain

LIMIT_BYTES = 64 * 1024 * 1024


def pem_of(chain: Sequence[bytes]) -> bytes:
    return b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in chain)


def key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def client_context(
    *, roots: Sequence[bytes], chain: Sequence[bytes] = (), key: Any = None, alpn: Sequence[str] = ("h2",)
) -> ssl.SSLContext:
    """A TLS client that trusts `roots` (DER) and shows `chain` (DER, leaf first) if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=b"".join(roots))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if chain:
        load_chain(context, pem_of(chain), key_pem(key))
    return context


def uri_of(certificate: bytes) -> str:
    san = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    (uri,) = san.value.get_values_for_type(x509.UniformResourceIdentifier)
    return uri


class TlsClient:
    """One caller: `async with TlsClient(...) as client: client.channel`. Remembers the server's ID in `server_id`."""

    def __init__(
        self, address: tuple[str, int], *, roots: Sequence[bytes], chain: Sequence[bytes] = (), key: Any = None
    ) -> None:
        self.address = address
        self.server_id = ""
        self.connections = 0
        self._context = client_context(roots=roots, chain=chain, key=key)
        self._directory = Path(tempfile.mkdtemp(prefix="bg-"))
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: grpc.aio.Channel | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            options = [
                ("grpc.max_receive_message_length", LIMIT_BYTES),
                ("grpc.max_send_message_length", LIMIT_BYTES),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
                ("grpc.use_local_subchannel_pool", 1),
            ]
            self._channel = grpc.aio.insecure_channel(f"unix:{self._directory}/relay.sock", options=options)
        return self._channel

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self._directory / "relay.sock"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(OSError, ssl.SSLError, asyncio.CancelledError):
            await self._relay(reader, writer)
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self.address, ssl=self._context, server_hostname="")
        try:
            leaf = far_writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            self.server_id = uri_of(leaf)
            self.connections += 1
            pumps = [asyncio.ensure_future(_pump(reader, far_writer)), asyncio.ensure_future(_pump(far_reader, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
