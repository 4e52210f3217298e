"""The gate on TCP: optional client certificates, whose authority vouches for whom, ALPN, reload, expiry, bans."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from ca.identity.certificate import load_certificate
from ca.runtime.gate import GateLimits, Peer, TlsMaterial, current_peer
from ca.runtime.gate_tls import TlsEngine, server_context
from ca.runtime.rpc import grpc_server
from tests.ca.identity import forge
from tests.ca.runtime.rig import Pki, Rig, call, rig, until
from tests.support.clock import FakeClock
from tests.support.tls_client import client_context

WEB = "spiffe://example.org/web"
AGENT = "spiffe://example.org/spire/agent/join_token/a"


@asynccontextmanager
async def raw(
    it: Rig, *chain: bytes, alpn: Sequence[str] = ("h2",), version: ssl.TLSVersion | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare TLS connection."""
    context = client_context(
        roots=[it.pki.roots[forge.TD].der], chain=chain, key=forge.key("P-256", "leaf"), alpn=list(alpn)
    )
    if version is not None:
        context.maximum_version = context.minimum_version = version
    reader, writer = await asyncio.open_connection(*it.address, ssl=context, server_hostname="")
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def end_of(reader: asyncio.StreamReader) -> bytes:
    """What still comes, until the gate ends the connection; an alert counts as an end."""
    with contextlib.suppress(OSError, ssl.SSLError):
        return await asyncio.wait_for(reader.read(), 5)
    return b""


async def test_one_port_serves_callers_with_and_without_a_certificate() -> None:
    async with rig(tcp=True) as it:
        async with it.tls_client() as client:
            assert json.loads(await call(client.channel, "Who"))["svid"] is None
            assert client.server_id == "spiffe://example.org/spire/server"
        async with it.tls_client(it.pki.leaf(AGENT)) as client:
            assert json.loads(await call(client.channel, "Who")) == {
                "transport": "tls",
                "pid": None,
                "uid": None,
                "svid": AGENT,
            }
            (peer,) = (peer for peer in it.gate.connections() if peer.svid)
            assert peer.remote_address.startswith("127.0.0.1:")


async def test_a_certificate_of_an_unknown_authority_fails_the_handshake() -> None:
    stranger = forge.root("stranger", **Pki().times)
    async with rig(tcp=True) as it:
        leaf = stranger.sign(forge.Cert(san=[forge.uri(WEB)], **it.pki.times))
        async with raw(it, leaf) as (reader, _):
            with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
                await asyncio.wait_for(reader.read(1), 5)
        assert "HANDSHAKE_FAILED" in it.reasons()
        assert not it.gate.connections()


async def test_no_domains_authority_vouches_for_an_id_of_another() -> None:
    """OpenSSL is content with a chain to any authority it knows; the gate asks that of the ID's own domain."""
    async with rig(tcp=True) as it:
        honest = it.pki.leaf("spiffe://other.org/db")
        async with it.tls_client(honest) as client:
            assert json.loads(await call(client.channel, "Who"))["svid"] == "spiffe://other.org/db"
        for crossed in (it.pki.leaf(AGENT, by=forge.OTHER), it.pki.leaf("spiffe://other.org/db", by=forge.TD)):
            before = it.refused("SVID_UNTRUSTED")
            async with raw(it, crossed) as (reader, _):
                assert await end_of(reader) == b""
            assert it.refused("SVID_UNTRUSTED") == before + 1
            assert not it.gate.connections()
        cross_signed = it.pki.roots[forge.OTHER].sign(
            forge.ca_order("gate root", key=it.pki.roots[forge.TD].key, san=[], **it.pki.times)
        )
        it.pki.trusted = {forge.OTHER: it.pki.roots[forge.OTHER]}
        it.gate.reload_tls()
        async with raw(it, it.pki.leaf(AGENT), cross_signed) as (reader, _):
            assert await end_of(reader) == b"", "its own domain is not known, whoever cross-signed its root"
        assert not it.gate.connections()


@pytest.mark.parametrize(
    "changes",
    [
        {"constraints": forge.x509.BasicConstraints(True, None), "key_usage": forge.usage("key_cert_sign")},
        {"san": [forge.uri(WEB), forge.uri("spiffe://example.org/two")]},
        {"san": [forge.uri("sparfe://example.org/web")]},
        {"san": [forge.uri("spiffe://example.org")]},
        {"san": []},
        {"not_after": timedelta(seconds=-5)},
        {"not_before": timedelta(minutes=5)},
    ],
    ids=["ca", "two ids", "another scheme", "no path", "no id", "expired", "not yet"],
)
async def test_what_is_no_valid_svid_is_not_let_in(changes: dict[str, object]) -> None:
    async with rig(tcp=True) as it:
        now = datetime.now(UTC)
        changes = {name: now + value if isinstance(value, timedelta) else value for name, value in changes.items()}
        order = {"san": [forge.uri(WEB)], **it.pki.times, **changes}
        leaf = it.pki.roots[forge.TD].sign(forge.Cert(**order))  # type: ignore[arg-type]
        with contextlib.suppress(ssl.SSLError):
            async with raw(it, leaf) as (reader, writer):
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                assert await end_of(reader) == b""
        assert not it.gate.connections()


@pytest.mark.parametrize("alpn", [(), ("http/1.0",), ("spdy/3", "foo"), ("http/1.1",)])
async def test_without_a_protocol_that_is_served_the_connection_is_closed(alpn: tuple[str, ...]) -> None:
    async with rig(tcp=True) as it:
        async with raw(it, alpn=alpn) as (reader, writer):
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert await end_of(reader) == b""
        assert "ALPN_MISSING" in it.reasons()


async def test_tls_below_1_2_is_refused_and_both_later_ones_are_served() -> None:
    assert server_context(Pki().material()).minimum_version is ssl.TLSVersion.TLSv1_2
    async with rig(tcp=True) as it:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            async with raw(it, version=version) as (reader, writer):
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                assert await asyncio.wait_for(reader.readexactly(9), 5)


def handshake(client: TlsEngine, server: TlsEngine) -> None:
    done = [False, False]
    for _ in range(10):
        for index, (one, other) in enumerate(((client, server), (server, client))):
            done[index] = done[index] or one.handshake()
            other.feed(one.outgoing())
    assert all(done)


async def test_there_are_no_tickets_and_a_resumed_session_never_carries_a_certificate() -> None:
    pki = Pki()
    leaf = pki.leaf(AGENT)
    context = client_context(roots=[pki.roots[forge.TD].der], chain=[leaf], key=forge.key("P-256", "leaf"))
    serving = server_context(pki.material())
    client, server = TlsEngine(context, server_side=False), TlsEngine(serving)
    handshake(client, server)
    assert server.version == "TLSv1.3"
    assert server.chain()[0] == leaf
    session = client._tls.session
    assert session is None or not session.has_ticket

    async with rig(tcp=True) as it:
        context = client_context(
            roots=[it.pki.roots[forge.TD].der], chain=[it.pki.leaf(AGENT)], key=forge.key("P-256", "leaf")
        )
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        first = await asyncio.to_thread(blocking_session, it.address, context, None)
        assert first[0] == b"\0", "the first, full handshake is served"
        again = await asyncio.to_thread(blocking_session, it.address, context, first[1])
        assert again[2], "the client did resume by session id"
        assert again[0] == b""
        assert "SESSION_RESUMED" in it.reasons()


def blocking_session(
    address: tuple[str, int], context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bytes, ssl.SSLSession | None, bool]:
    """(first byte of the answer, session, resumed) of one TLS 1.2 connection."""
    import socket

    with (
        socket.create_connection(address, timeout=5) as sock,
        context.wrap_socket(sock, session=session) as tls,
    ):
        try:
            tls.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            first = tls.recv(1)
        except OSError:
            first = b""
        return first, tls.session, bool(tls.session_reused)


async def test_a_handshake_that_takes_too_long_is_ended() -> None:
    async with rig(tcp=True, limits=GateLimits(handshake_timeout_seconds=0.05)) as it:
        reader, writer = await asyncio.open_connection(*it.address)
        assert await end_of(reader) == b""
        writer.close()
        assert "HANDSHAKE_TIMEOUT" in it.reasons()


async def test_a_caller_that_is_silent_after_the_handshake_is_ended() -> None:
    async with rig(tcp=True, limits=GateLimits(first_bytes_timeout_seconds=0.05)) as it:
        async with raw(it) as (reader, _):
            assert await end_of(reader) == b""
        assert "FIRST_BYTES_TIMEOUT" in it.reasons()


async def test_what_is_not_tls_is_ended() -> None:
    async with rig(tcp=True) as it:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(200), b"\0" * 50):
            reader, writer = await asyncio.open_connection(*it.address)
            writer.write(garbage)
            with contextlib.suppress(OSError):
                await asyncio.wait_for(reader.read(), 0.3)
            writer.close()
        async with it.tls_client() as client:
            assert await call(client.channel, "Who")


async def test_a_reload_serves_the_new_certificate_to_new_callers_and_keeps_the_old_connections() -> None:
    async with rig(tcp=True) as it, it.tls_client() as early:
        stream = early.channel.stream_stream("/test.Probe/Echo")()
        await stream.write(b"before")
        assert await stream.read() == b"before"
        it.pki.server_ids.append("spiffe://example.org/spire/server2")
        it.gate.reload_tls()
        async with it.tls_client() as late:
            await call(late.channel, "Who")
            assert late.server_id == "spiffe://example.org/spire/server2"
        await stream.write(b"after")
        assert await stream.read() == b"after"
        assert early.connections == 1
        stream.cancel()


async def test_a_reload_of_authorities_lets_in_and_keeps_out() -> None:
    async with rig(tcp=True) as it:
        other = it.pki.leaf("spiffe://other.org/db")
        del it.pki.trusted[forge.OTHER]
        it.gate.reload_tls()
        async with raw(it, other) as (reader, _):
            assert await end_of(reader) == b""
        it.pki.trusted = dict(it.pki.roots)
        it.gate.reload_tls()
        async with it.tls_client(other) as client:
            assert await call(client.channel, "Who")


async def test_a_reload_with_bad_material_keeps_the_old_one() -> None:
    async with rig(tcp=True) as it:
        good = it.gate._tls["public"].material
        it.gate._tls["public"].material = lambda: type(good())(chain_pem=b"", key_pem=b"")
        with pytest.raises(ssl.SSLError):
            it.gate.reload_tls()
        async with it.tls_client() as client:
            assert await call(client.channel, "Who")


async def test_a_reload_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked for it has new material already, and so no reason to ask again before the old has expired."""
    monkeypatch.setattr("ca.runtime.gate.SWEEP_SECONDS", 0.02)
    async with rig(tcp=True) as it:
        good = it.gate._tls["public"].material
        it.pki.server_ids.append("spiffe://example.org/spire/server2")
        failures = 2

        def out_of_files() -> TlsMaterial:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(24, "Too many open files")
            return good()

        it.gate._tls["public"].material = out_of_files
        with pytest.raises(OSError, match="Too many"):
            it.gate.reload_tls()
        await until(lambda: not failures and not it.gate._tls_is_old)
        async with it.tls_client() as client:
            await call(client.channel, "Who")
            assert client.server_id == "spiffe://example.org/spire/server2"


async def test_a_ban_ends_open_streams_within_half_a_second() -> None:
    async with rig(tcp=True) as it:
        agents = [it.pki.leaf(f"spiffe://example.org/spire/agent/x/{name}") for name in ("good", "bad")]
        async with it.tls_client(agents[0]) as good, it.tls_client(agents[1]) as bad:
            streams = [client.channel.unary_stream("/test.Probe/Watch")(b"") for client in (good, bad)]
            for stream in streams:
                await stream.read()
            started = time.monotonic()
            closed = it.gate.close_peers(
                lambda p: p.svid is not None and p.svid.id.path.endswith("bad"), "AGENT_BANNED"
            )
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await streams[1].read()
            assert time.monotonic() - started < 0.5
            assert closed == 1
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not streams[0].done()
            assert await call(good.channel, "Who")
            streams[0].cancel()
        assert "AGENT_BANNED" in it.reasons()


async def test_thirty_seconds_after_its_certificate_a_caller_is_told_to_go_and_then_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ca.runtime.gate_connection.GOAWAY_DRAIN_SECONDS", 2.0)
    clock = FakeClock(datetime.now(UTC))
    async with rig(tcp=True, clock=clock) as it, it.tls_client(it.pki.leaf(AGENT)) as client:
        stream = client.channel.stream_stream("/test.Probe/Echo")()
        await stream.write(b"1")
        assert await stream.read() == b"1"
        await clock.advance(3600 + 25)
        await stream.write(b"2")
        assert await stream.read() == b"2", "within the grace it goes on: calls get their AGENT_EXPIRED"
        (before,) = it.gate.connections()
        await clock.advance(10)
        # GOAWAY: the next call takes a new connection (its certificate is in truth still valid), the stream goes on.
        deadline = time.monotonic() + 5
        while client.connections == 1:
            assert await call(client.channel, "Who")
            assert time.monotonic() < deadline, "no GOAWAY came"
        await stream.write(b"3")
        assert await stream.read() == b"3"
        await until(lambda: before.closed)
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        assert "SVID_EXPIRED" in it.reasons()


async def test_callers_of_one_address_are_limited() -> None:
    async with rig(tcp=True, limits=GateLimits(max_connections_per_address=1)) as it, it.tls_client() as first:
        await call(first.channel, "Who")
        reader, writer = await asyncio.open_connection(*it.address)
        assert await end_of(reader) == b""
        writer.close()
        assert "CONNECTION_LIMIT_OF_CALLER" in it.reasons()
        assert await call(first.channel, "Who")


async def test_a_verification_that_fails_in_an_unforeseen_way_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(chain: Sequence[bytes]) -> object:
        raise KeyError("bundle")

    async with rig(tcp=True) as it:
        monkeypatch.setattr(it.gate._tls["public"], "verify", broken)
        async with raw(it, it.pki.leaf(AGENT)) as (reader, _):
            assert await end_of(reader) == b""
        assert "CLIENT_VERIFICATION_FAILED" in it.reasons()
        assert not it.gate.connections()


async def test_an_authority_that_openssl_cannot_read_shuts_nobody_else_out() -> None:
    """cryptography reads more than OpenSSL does, so that a bundle, another trust domain's perhaps, can hold one."""
    no_string = forge.root("unreadable").der.replace(b"\x55\x04\x03\x0c", b"\x55\x04\x03\x00")
    load_certificate(no_string)
    with pytest.raises(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=no_string)
    async with rig(tcp=True) as it:
        listener = it.gate._tls["public"]
        good = listener.material
        listener.material = lambda: replace(good(), client_authorities=(no_string, *good().client_authorities))
        it.gate.reload_tls()
        async with it.tls_client(it.pki.leaf(WEB)) as client:
            assert await call(client.channel, "Who")


async def test_a_gate_may_have_several_servers_behind_it(tmp_path: Path) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        assert current_peer.get().svid is not None
        return b"the other server"

    def socket_of(private: Path, peer: Peer) -> Path:
        return private if peer.svid is None or str(peer.svid.id) != AGENT else tmp_path / "s"

    tmp_path.chmod(0o700)
    async with rig(tcp=True, socket_of=socket_of) as it:
        server = grpc_server(tmp_path / "s", [it.gate.layer()])
        handlers = {"Who": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Probe", handlers),))
        await server.start()
        try:
            for chain, theirs in ([it.pki.leaf(AGENT)], True), ([it.pki.leaf(WEB)], False), ([], False):
                async with it.tls_client(*chain) as client:
                    assert (await call(client.channel, "Who") == b"the other server") == theirs
            async with it.unix_channel() as local:
                assert await call(local, "Who") != b"the other server"
        finally:
            await server.stop(0)
