"""Answers that are read while they are written: whole lines, bounded in size and silence, however they are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from ca.errors import Unavailable
from ca.runtime.http_stream import Origin, stream

OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def answering(pieces: Sequence[bytes], *, then_wait: bool = False) -> AsyncIterator[Origin]:
    """A server that reads a request and writes these pieces, one after the other."""
    waiting = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if then_wait:
            await waiting.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Origin(host="127.0.0.1", port=port, context=None, source="the API", connect_seconds=5, idle_seconds=0.3)
    finally:
        waiting.set()
        server.close()
        await server.wait_closed()


async def lines(origin: Origin, *, max_bytes: int = 100) -> list[bytes]:
    async with stream(origin, "GET", "/x", {}) as answer:
        assert answer.status == 200
        return [line async for line in answer.lines(max_bytes)]


BODIES = [
    [OK + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\none\nt\r\n", b"4;x=y\r\nwo\nt\r\n4\r\nhree\r\n0\r\n\r\n"],
    [OK + b"Content-Length: 13\r\n\r\none\n", b"two\nth", b"ree"],
    [OK + b"\r\n", b"one\ntwo", b"\nthree\n"],
]


@pytest.mark.parametrize("pieces", BODIES)
async def test_lines_are_whole_however_the_answer_is_cut(pieces: list[bytes]) -> None:
    async with answering(pieces) as origin:
        assert await lines(origin) == [b"one", b"two", b"three"]


BROKEN = [
    [OK + b"Content-Length: 13\r\n\r\none\n"],
    [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\none\n"],
    [OK + b"Transfer-Encoding: chunked\r\n\r\nwhat\r\n"],
    [OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\none\r\n"],
    [OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 70_000],
    [OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n"],
    [b"SSH-2.0-x\r\n\r\n"],
    [OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n"],
    [OK],
    [b""],
]


@pytest.mark.parametrize("pieces", BROKEN)
async def test_one_that_breaks_off_or_is_no_http_is_unavailable(pieces: list[bytes]) -> None:
    async with answering(pieces) as origin:
        with pytest.raises(Unavailable) as caught:
            await lines(origin)
    assert caught.value.reason == "HTTP_UNREACHABLE"


@pytest.mark.parametrize("size", [b"-1", b"-5", b"+5", b"0x5", b"1_0", b"", b"5 5"])
async def test_a_chunk_has_a_size_that_is_one(size: bytes) -> None:
    """To Python's `int` all but the last two are numbers, and to a reader less than nothing is all that ever comes."""
    async with answering([OK + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n"], then_wait=True) as origin:
        with pytest.raises(Unavailable) as caught:
            await lines(origin)
    assert "no HTTP" in caught.value.detail


async def test_a_length_without_end_is_none() -> None:
    async with answering([OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\none\n"]) as origin:
        assert await lines(origin) == [b"one"]


async def test_a_line_has_a_bound_and_silence_an_end() -> None:
    async with answering([OK + b"\r\n", b"x" * 200_000]) as origin:
        with pytest.raises(Unavailable) as caught:
            await lines(origin)
        assert caught.value.reason == "HTTP_TOO_LARGE"
    async with answering([OK + b"\r\n", b"one\n"], then_wait=True) as origin:
        with pytest.raises(Unavailable) as caught:
            await lines(origin)
        assert "no answer in time" in caught.value.detail


async def test_nobody_there_is_unavailable() -> None:
    async with answering([]) as origin:
        pass
    with pytest.raises(Unavailable):
        await lines(origin)
