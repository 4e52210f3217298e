"""The relay itself: back-pressure both ways, large messages, endings, stalls, and HTTP/1.1 beside gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import struct
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.runtime.gate import GateLimits, Peer
from ca.runtime.gate_h2 import GOAWAY_NO_ERROR, PREFACE, FrameTracker
from ca.runtime.gate_leg import CHUNK_BYTES
from tests.ca.identity import forge
from tests.ca.runtime import rig as rig_module
from tests.ca.runtime.rig import call, rig, until
from tests.support.clock import FakeClock
from tests.support.tls_client import client_context

GOAWAY_FRAME_TYPE = b"\x07"


@pytest.mark.parametrize("over_tls", [False, True])
async def test_large_messages_pass_both_ways_unharmed(over_tls: bool) -> None:
    data = b"." + os.urandom(3 << 20)
    web = "spiffe://example.org/web"
    async with rig(tcp=True) as it, it.tls_client(it.pki.leaf(web)) as client, it.unix_channel() as unix:
        channel = client.channel if over_tls else unix
        echo = channel.stream_stream("/test.Probe/Echo")()
        await echo.write(data)
        assert await echo.read() == data
        echo.cancel()


async def test_a_message_above_the_limit_is_refused_unread() -> None:
    async with rig(max_receive_bytes=100_000) as it, it.unix_channel() as channel:
        assert await call(channel, "Size", bytes(99_000)) == b"99000"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(channel, "Size", bytes(100_001))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(channel, "Size", b"1") == b"1"


def held_back(it: Any) -> int:
    """Bytes that the relay keeps in this process."""
    legs = [leg for c in it.gate._connections.values() for leg in (c.front, c.back) if leg is not None]
    return sum(len(leg.pending) for leg in legs)


async def flood_without_reading(it: Any) -> socket.socket:
    """Open a stream that sends without end, as an HTTP/2 client with a huge window that never reads."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(str(it.unix))
    path = b"/test.Probe/Flood"
    headers = (
        b"\x83\x86\x04"
        + bytes([len(path)])
        + path
        + b"\x01\x01a"
        + b"\x0f\x10\x10application/grpc"
        + b"\x00\x02te\x08trailers"
    )
    huge = (0x7FFFFFFF - 65535).to_bytes(4, "big")
    sock.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x7f\xff\xff\xff"
        + b"\x00\x00\x04\x08\x00\x00\x00\x00\x00"
        + huge
        + len(headers).to_bytes(3, "big")
        + b"\x01\x04\x00\x00\x00\x01"
        + headers
        + b"\x00\x00\x05\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00"
    )
    return sock


async def test_a_reader_that_does_not_read_costs_one_chunk_and_is_ended_when_it_stalls() -> None:
    clock = FakeClock()
    async with rig(limits=GateLimits(stall_timeout_seconds=0.2), clock=clock) as it:
        sock = await flood_without_reading(it)
        await until(lambda: held_back(it) > 0)
        settled = -1
        while settled != rig_module.sent_by_flood:
            settled = rig_module.sent_by_flood
            await asyncio.sleep(0.1)
        assert settled < 8 << 20, "grpcio was made to wait"
        assert 0 < held_back(it) <= CHUNK_BYTES
        async with it.unix_channel() as other:
            assert await call(other, "Who"), "nobody else waits"
        await asyncio.sleep(0.2)
        await clock.advance(1)
        await until(lambda: len(it.gate.connections()) <= 1)
        assert "CLIENT_STALLED" in it.reasons()
        sock.close()


async def test_a_slow_reader_gets_everything_in_the_end() -> None:
    async with rig() as it, it.unix_channel() as channel:
        stream = channel.unary_stream("/test.Probe/Flood")(b"")
        for count in range(200):
            if count % 50 == 0:
                await asyncio.sleep(0.02)
            assert await stream.read() == rig_module.BIG
        stream.cancel()


async def test_when_the_client_goes_its_streams_end_and_nothing_stays_registered() -> None:
    async with rig() as it:
        reader, writer = await asyncio.open_unix_connection(str(it.unix))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        await reader.readexactly(9)
        assert len(it.gate._table) == 1
        writer.transport.abort()
        await until(lambda: not len(it.gate._table) and not it.gate._connections)


async def test_when_the_server_ends_the_client_still_gets_its_last_words() -> None:
    async with rig() as it:
        reader, writer = await asyncio.open_unix_connection(str(it.unix))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        await until(lambda: it.gate.connections())
        await asyncio.wait_for(reader.readexactly(9), 5)
        await it.server.stop(0)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert GOAWAY_FRAME_TYPE in re.findall(rb"\x00\x00.(.)\x00", answer, re.DOTALL), "before the end"
        writer.close()
        await until(lambda: not it.gate._connections)


# ---- HTTP/1.1


def http_side(app: Any) -> Any:
    """uvicorn's protocol, one per connection, with the peer in its scope."""
    from uvicorn.config import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    config = Config(app, http="h11", ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()

    def factory(peer: Peer) -> asyncio.Protocol:
        protocol = H11Protocol(config=config, server_state=state, app_state={})
        inner: Any = config.loaded_app

        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            scope["burgee.peer"] = peer
            await inner(scope, receive, send)

        protocol.app = with_peer
        return protocol

    return factory


async def app(scope: Any, receive: Any, send: Any) -> None:
    peer = scope["burgee.peer"]
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    who = f"{peer.transport} uid={peer.uid} svid={peer.svid and peer.svid.id} {len(body)}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": who, "more_body": True})
    await send({"type": "http.response.body", "body": bytes(len(body))})


async def test_http_1_1_goes_to_the_asgi_app_with_its_peer_and_grpc_stays_beside_it() -> None:
    async with rig(tcp=True, http_protocol_factory=http_side(app)) as it:
        transport = httpx.AsyncHTTPTransport(uds=str(it.unix))
        async with httpx.AsyncClient(transport=transport) as client, it.unix_channel() as channel:
            for size in (0, 10, 5 << 20):
                answer = await client.post("http://gate/version", content=bytes(size))
                assert answer.content == f"unix uid={os.getuid()} svid=None {size}".encode() + bytes(size)
            assert await call(channel, "Who")
        for chain, expected in (((), "None"), ((it.pki.leaf("spiffe://example.org/web"),), "spiffe://example.org/web")):
            context = client_context(
                roots=[it.pki.roots[forge.TD].der], chain=chain, key=forge.key("P-256", "leaf"), alpn=["http/1.1"]
            )
            async with httpx.AsyncClient(verify=context) as client:
                answer = await client.post(f"https://127.0.0.1:{it.address[1]}/", content=b"xyz")
                assert answer.content == f"tls uid=None svid={expected} 3".encode() + bytes(3)


async def test_http_without_a_length_ends_properly_over_tls() -> None:
    async with rig(tcp=True, http_protocol_factory=http_side(app)) as it:
        context = client_context(roots=[it.pki.roots[forge.TD].der], alpn=["http/1.1"])
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        reader, writer = await asyncio.open_connection(*it.address, ssl=context, server_hostname="")
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.endswith(b"tls uid=None svid=None 0")
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
        await until(lambda: not it.gate._connections)


# ---- frames


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + payload


@given(
    frames=st.lists(st.tuples(st.sampled_from([0, 4, 6, 8]), st.binary(max_size=40)), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_the_tracker_is_between_frames_exactly_at_their_ends(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    wire = b"".join(frame(kind, 0, payload) for kind, payload in frames)
    ends = {0}
    for kind, payload in frames:
        ends.add(max(ends) + len(frame(kind, 0, payload)))
    tracker, at = FrameTracker(), 0
    for cut in [*sorted({cut for cut in cuts if cut < len(wire)}), len(wire)]:
        tracker.feed(memoryview(wire)[at:cut])
        at = cut
        assert tracker.between_frames == (cut in ends and cut > 0)


def test_a_goaway_never_stands_between_headers_and_their_continuation() -> None:
    tracker = FrameTracker()
    assert not tracker.between_frames, "the first frame must be SETTINGS"
    tracker.feed(memoryview(frame(4, 0, b"")))
    assert tracker.between_frames
    tracker.feed(memoryview(frame(1, 0, b"abc")))
    assert not tracker.between_frames
    tracker.feed(memoryview(frame(9, 4, b"def")))
    assert tracker.between_frames
    tracker.feed(memoryview(GOAWAY_NO_ERROR))
    assert tracker.between_frames


async def test_a_server_says_how_many_calls_a_connection_may_have_open() -> None:
    async with rig(max_streams_per_connection=7) as it:
        reader, writer = await asyncio.open_unix_connection(str(it.unix))
        writer.write(PREFACE + b"\x00\x00\x00\x04" + bytes(5))
        size, kind = struct.unpack(">IB", b"\x00" + (await reader.readexactly(9))[:4])
        settings = dict(struct.iter_unpack(">HI", await reader.readexactly(size)))
        assert (kind, settings[3]) == (4, 7)  # RFC 9113 §6.5.2: SETTINGS_MAX_CONCURRENT_STREAMS
        writer.close()


def test_the_tracker_measures_a_header_block_over_its_continuations() -> None:
    tracker = FrameTracker(skip_bytes=4)
    tracker.feed(b"skip" + frame(4, 0, b"") + frame(1, 0, b"a" * 100))
    assert tracker.block_bytes == 100
    tracker.feed(frame(9, 0, b"b" * 50) + frame(9, 4, b"c" * 25))
    assert tracker.block_bytes == 175
    tracker.feed(frame(0, 1, b"data") + frame(1, 4, b"d" * 10))
    assert tracker.block_bytes == 10


async def test_a_client_that_resets_its_connection_with_its_last_bytes_is_gone() -> None:
    """Both are there when the loop looks, and uvloop tells of them once."""
    async with rig(tcp=True) as it:
        context = client_context(roots=[root.der for root in it.pki.roots.values()])
        sock = await asyncio.to_thread(reach, it.address, context)
        await until(lambda: len(it.gate.connections()) == 1)
        sock.send(PREFACE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        await until(lambda: not it.gate.connections())


def reach(address: tuple[str, int], context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(address, timeout=5))
