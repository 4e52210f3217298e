"""What the gate itself says in HTTP/2: GOAWAY, and the answer to the ping that goes before a call."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.runtime.gate_h2 import GOAWAY_NO_ERROR, PREFACE, ping_answer, ping_before_call
from ca.runtime.gate_insertions import Insertions, Requests
from tests.ca.identity import forge
from tests.ca.runtime.rig import Rig, rig, until
from tests.support.tls_client import client_context

DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 6, 7, 8, 9
ACK, END_STREAM, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


WINDOW = frame(WINDOW_UPDATE, 0, b"\0\0\0\x09")
ANSWERED, OTHER = (frame(PING, 0, byte * 8) for byte in (b"1", b"2"))


def begun(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, b"abc", stream)


CALL = begun(1)


# ---- which pings


@pytest.mark.parametrize(
    ("wire", "there"),
    [
        (ANSWERED + CALL, True),
        (WINDOW + ANSWERED + CALL, True),
        (WINDOW + ANSWERED + CALL[:9], True),
        (WINDOW + ANSWERED + CALL[:8], False),
        (WINDOW + ANSWERED, False),
        (ANSWERED, False),
        (b"", False),
        (CALL, False),
        (CALL + ANSWERED, False),
        (ANSWERED + OTHER + CALL, False),
        (WINDOW + WINDOW + ANSWERED + CALL, False),
        (ANSWERED + frame(DATA, 0, b"abc", 1), False),
        (frame(PING, ACK, b"12345678") + CALL, False),
        (frame(PING, 0, b"1234567") + CALL, False),
        (frame(PING, 0, b"12345678", 1) + CALL, False),
        (frame(WINDOW_UPDATE, 0, b"\0\0\0\x09", 1) + ANSWERED + CALL, False),
        (ANSWERED + begun(2), False),
        (ANSWERED + begun(0), False),
        (ANSWERED + begun(0x80000001), True),
    ],
)
def test_only_the_ping_that_goes_before_a_call_is_found(wire: bytes, there: bool) -> None:
    found = ping_before_call(wire, 0)
    assert (found is not None) == there
    if found is not None:
        assert wire[found] == ANSWERED


def test_headers_of_a_stream_that_was_there_begin_no_call() -> None:
    assert ping_before_call(ANSWERED + begun(7), 5) is not None
    assert ping_before_call(ANSWERED + begun(5), 5) is None
    assert ping_before_call(ANSWERED + begun(3), 5) is None
    assert ping_before_call(ANSWERED + begun(0x80000003), 5) is None


def test_an_answer_is_the_same_frame_with_ack() -> None:
    assert ping_answer(ANSWERED) == frame(PING, ACK, b"1" * 8)


# ---- where ours stand


class Loop:
    """Timers that run when told."""

    def __init__(self) -> None:
        self.timers: list[Any] = []

    def call_later(self, seconds: float, callback: Any) -> Any:
        self.timers.append(callback)
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def run(self) -> None:
        timers, self.timers = self.timers, []
        for callback in timers:
            callback()


def insertions(*, behind: bool = False) -> tuple[Insertions, Loop, list[bytes]]:
    loop, sent = Loop(), list[bytes]()
    made: Any = Insertions(loop, sent.append, lambda: behind)  # type: ignore[arg-type]
    return made, loop, sent


def frames_of(wire: bytes) -> list[bytes]:
    found = []
    while wire:
        size = 9 + int.from_bytes(wire[:3])
        assert len(wire) >= size, "whole frames"
        found.append(wire[:size])
        wire = wire[size:]
    return found


def block(size: int) -> bytes:
    return frame(HEADERS, 0, bytes(size), 1) + frame(CONTINUATION, END_HEADERS, bytes(size), 1)


@given(
    theirs=st.lists(
        st.one_of(st.binary(max_size=30).map(lambda data: frame(DATA, 0, data, 1)), st.integers(0, 9).map(block)),
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    asked=st.lists(st.sampled_from(["", "answer", "go_away", "timer"]), min_size=10, max_size=10),
)
def test_ours_stand_between_theirs_whatever_the_chunks(theirs: list[bytes], cuts: list[int], asked: list[str]) -> None:
    made, loop, sent = insertions()
    first = frame(SETTINGS)
    wire = first + b"".join(theirs)
    expected, at = [], 0
    turns = iter(asked)
    for cut in [*sorted({cut for cut in cuts if cut < len(wire)}), len(wire)]:
        match next(turns):
            case "answer":
                if made.answer(ANSWERED):
                    expected.append(ping_answer(ANSWERED))
            case "go_away":
                made.go_away()
                expected.append(GOAWAY_NO_ERROR)
            case "timer":
                loop.run()
        sent.append(bytes(made.carry(memoryview(wire)[at:cut])))
        at = cut
    loop.run()
    said = frames_of(b"".join(sent))
    ours = [one for one in said if one == GOAWAY_NO_ERROR or one[3] == PING]
    assert ours == expected
    assert b"".join(one for one in said if one not in ours) == wire
    assert said[0] == first
    for before, after in pairwise(said):
        if before[3] == HEADERS and not before[4] & END_HEADERS:
            assert after[3] == CONTINUATION


def test_an_answer_goes_with_what_is_sent_next() -> None:
    made, loop, sent = insertions()
    made.carry(memoryview(frame(SETTINGS)))
    assert made.answer(ANSWERED)
    assert made.carry(memoryview(CALL)) == ping_answer(ANSWERED) + CALL
    loop.run()
    assert sent == []


def test_a_second_ping_is_not_answered_while_one_answer_is_due() -> None:
    made, loop, sent = insertions()
    made.carry(memoryview(frame(SETTINGS)))
    requests = Requests(made)
    requests.follow(PREFACE + frame(SETTINGS))
    assert requests.follow(WINDOW + ANSWERED + begun(1)) == WINDOW + begun(1)
    assert requests.follow(OTHER + begun(3)) == OTHER + begun(3)
    loop.run()
    assert sent == [ping_answer(ANSWERED)]
    assert requests.follow(OTHER + begun(5)) == begun(5)


def test_a_ping_is_grpcios_when_its_headers_begin_nothing() -> None:
    """A flood of pings would be free with empty HEADERS of a stream that is over."""
    made, loop, _ = insertions()
    requests = Requests(made)
    requests.follow(PREFACE + frame(SETTINGS) + begun(5))
    for stream in 5, 3, 0:
        assert requests.follow(ANSWERED + begun(stream)) == ANSWERED + begun(stream)
    assert loop.timers == []


def test_a_client_that_does_not_read_gets_no_answers_of_ours() -> None:
    """They would pile up here."""
    made, loop, _ = insertions(behind=True)
    requests = Requests(made)
    requests.follow(PREFACE + frame(SETTINGS))
    assert requests.follow(ANSWERED + CALL) == ANSWERED + CALL
    assert loop.timers == []


def test_nothing_is_taken_out_of_the_middle_of_a_frame_or_of_a_header_block() -> None:
    made, _, _ = insertions()
    requests = Requests(made)
    requests.follow(PREFACE + frame(SETTINGS))
    body = ANSWERED + CALL
    requests.follow(frame(DATA, 0, bytes(50), 1)[:-40])
    assert requests.follow(body[:40]) == body[:40]
    requests.follow(frame(HEADERS, 0, b"a", 3))
    assert requests.follow(body) == body


def test_nothing_is_sent_after_the_end() -> None:
    made, loop, sent = insertions()
    made.carry(memoryview(frame(SETTINGS)))
    made.answer(ANSWERED)
    made.close()
    loop.run()
    assert made.carry(memoryview(CALL)) == CALL
    assert sent == []


# ---- over a real connection


def header_block(method: str) -> bytes:
    """HPACK literals only (RFC 7541 §6.2.2)."""
    pairs = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/test.Probe/{method}",
        ":authority": "a",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in pairs.items()
    )


def grpc_call(method: str, stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, header_block(method), stream) + frame(DATA, END_STREAM, bytes(5), stream)


class Client:
    """Says frames and hears frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, *frames: bytes) -> None:
        """In one TLS record."""
        self._writer.write(b"".join(frames))

    async def hear(self, kind: int, flags: int = 0) -> bytes:
        """The next such frame's payload; those before it are passed over."""
        while True:
            head = await asyncio.wait_for(self._reader.readexactly(9), 5)
            payload = await self._reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == kind and head[4] & flags == flags:
                return payload


@asynccontextmanager
async def client(it: Rig) -> AsyncIterator[Client]:
    context = client_context(roots=[it.pki.roots[forge.TD].der])
    reader, writer = await asyncio.open_connection(*it.address, ssl=context, server_hostname="")
    try:
        made = Client(reader, writer)
        made.say(PREFACE, frame(SETTINGS))
        await made.hear(SETTINGS)
        yield made
    finally:
        writer.transport.abort()


async def test_the_ping_before_a_call_is_answered_and_grpcio_does_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = bytearray()
    follow = Requests.follow

    def followed(self: Requests, plain: bytes) -> bytes:
        passed = follow(self, plain)
        seen.extend(passed)
        return passed

    monkeypatch.setattr(Requests, "follow", followed)
    async with rig(tcp=True) as it, client(it) as caller:
        for number in range(20):
            payload = struct.pack(">Q", number)
            caller.say(WINDOW, frame(PING, 0, payload), grpc_call("Who", 2 * number + 1))
            assert await caller.hear(PING, ACK) == payload
            await caller.hear(HEADERS, END_STREAM)
    assert frame(PING)[3:9] not in seen
    assert seen.count(header_block("Who")) == 20


async def test_its_answer_does_not_wait_for_a_call_that_takes_long() -> None:
    async with rig(tcp=True) as it, client(it) as caller:
        caller.say(frame(PING, 0, b"a" * 8), frame(HEADERS, END_HEADERS, header_block("Echo"), 1))
        assert await caller.hear(PING, ACK) == b"a" * 8


async def test_whoever_does_nothing_but_ping_is_sent_away() -> None:
    async with rig(tcp=True) as it, client(it) as caller:
        caller.say(*(frame(PING, 0, bytes(8)) for _ in range(20)))
        assert b"too_many_pings" in await caller.hear(GOAWAY)


async def test_whoever_pings_before_empty_headers_of_an_old_stream_is_sent_away() -> None:
    async with rig(tcp=True) as it, client(it) as caller:
        caller.say(grpc_call("Who", 1))
        await caller.hear(HEADERS, END_STREAM)
        for _ in range(20):
            caller.say(frame(PING, 0, bytes(8)), frame(HEADERS, END_HEADERS, b"", 1))
            await asyncio.sleep(0.01)
        assert b"too_many_pings" in await caller.hear(GOAWAY)


async def test_pings_in_one_chunk_with_a_call_are_grpcios_but_for_one() -> None:
    """Else a flood of pings would be free with a call here and there."""
    async with rig(tcp=True) as it, client(it) as caller:
        caller.say(*(frame(PING, 0, bytes(8)) for _ in range(20)), grpc_call("Echo", 1))
        assert b"too_many_pings" in await caller.hear(GOAWAY)


async def test_a_connection_whose_back_has_gone_says_nothing_of_ours_any_more() -> None:
    """Its TLS is over by then: whatever came would go out in the clear."""
    async with rig(tcp=True) as it, client(it):
        (connection,) = it.gate._connections.values()
        sent = list[bytes]()
        assert connection._insertions is not None
        assert connection._insertions.answer(ANSWERED)
        connection._back_ended()
        connection._send_plain = lambda data: sent.append(bytes(data))  # type: ignore[method-assign]
        connection.go_away("SVID_EXPIRED")
        await asyncio.sleep(0.05)
        assert sent == []
        await until(lambda: not it.gate._connections)
