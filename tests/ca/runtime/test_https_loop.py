"""What only requests on the loop could get wrong: whose answer it is, what is asked again, who stays connected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from ca.errors import Unavailable
from ca.runtime.https_loop import LoopHttpClient

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
Serve = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[tuple[LoopHttpClient, list[bytes]]]:
    """A client, and the heads of what it asked; `serve` gets the number of each request and its connection."""
    asked: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                await serve(len(asked), reader, writer)
        except (OSError, EOFError):
            pass
        writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    host = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = LoopHttpClient(host, source="a peer", timeout_seconds=5)
    yield client, asked
    client.close()
    server.close()


async def test_what_nobody_asked_for_answers_nobody() -> None:
    async def serve(number: int, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER + str(number).encode())
        await writer.drain()
        if number == 1:
            await asyncio.sleep(0.05)  # when the connection is kept already
            writer.write(ANSWER + b"x")
        if number == 2:
            writer.write(ANSWER + b"x")

    async with served(serve) as (client, _):
        for number in (1, 2, 3):
            assert (await client.request("GET", "/")).body == str(number).encode()
            await asyncio.sleep(0.1)


async def test_a_question_that_was_not_answered_at_all_is_asked_once_more() -> None:
    async def serve(number: int, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if number in (2, 4):
            writer.write(b"" if number == 2 else ANSWER)
            await writer.drain()
            raise EOFError
        writer.write(ANSWER + b"x")

    async with served(serve) as (client, asked):
        for _ in range(2):
            assert (await client.request("GET", "/")).status == 200
        assert len(asked) == 3
        with pytest.raises(Unavailable, match="amid an answer"):
            await client.request("GET", "/")
        assert len(asked) == 4


async def test_a_new_connection_that_ends_is_not_tried_again() -> None:
    async def serve(number: int, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise EOFError

    async with served(serve) as (client, asked):
        with pytest.raises(Unavailable):
            await client.request("GET", "/")
        assert len(asked) == 1


@pytest.mark.parametrize("kept", [False, True])
async def test_whoever_stops_waiting_leaves_no_connection(kept: bool) -> None:
    here, gone = asyncio.Event(), asyncio.Event()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if kept and number == 1:
            writer.write(ANSWER + b"x")
            return
        here.set()
        assert await reader.read() == b""
        gone.set()

    async with served(serve) as (client, _):
        if kept:
            await client.request("GET", "/")
        waiting = asyncio.create_task(client.request("GET", "/"))
        await here.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_client_that_was_closed_keeps_nothing() -> None:
    here, going, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.set()
        await going.wait()
        writer.write(ANSWER + b"x")
        assert await reader.read() == b""
        gone.set()

    async with served(serve) as (client, _):
        waiting = asyncio.create_task(client.request("GET", "/"))
        await here.wait()
        client.close()
        going.set()
        assert (await waiting).status == 200
        await asyncio.wait_for(gone.wait(), 5)


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/ HTTP/1.1\r\nX: y", {}), ("/a b", {}), ("/", {"X": "a\r\nY: b"}), ("/", {"X\n": "a"}), ("/\x7f", {})],
)
async def test_nothing_but_one_request_is_sent(path: str, headers: dict[str, str]) -> None:
    async def serve(number: int, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER + b"x")

    async with served(serve) as (client, asked):
        with pytest.raises(ValueError, match="no line of a request"):
            await client.request("GET", path, headers=headers)
        assert not asked
