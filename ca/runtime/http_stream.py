"""An answer that is read while it is being written: lines of a watch, each bounded, with a limit to the silence.

On the event loop, unlike `ca.runtime.https`: such an answer may take an hour, and who waits for it may be cancelled.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import re
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ca.errors import Unavailable

MAX_HEAD_BYTES = 64 << 10
MAX_ERROR_BYTES = 64 << 10
"""Of the body of an answer that is no success."""
_PIECE = 64 << 10
_CHUNK_LINE_BYTES = 1024
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where to ask. `source` names it in errors; `idle_seconds` is the longest silence, `context` is None for HTTP."""

    host: str
    port: int
    context: ssl.SSLContext | None
    source: str
    connect_seconds: float = 10.0
    idle_seconds: float = 150.0

    def unreachable(self, why: str) -> Unavailable:
        return Unavailable(f"cannot ask {self.source}: {why}", reason="HTTP_UNREACHABLE")


class Stream:
    """The head of an answer, and its body once: as lines or whole."""

    def __init__(self, origin: Origin, reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._origin = origin
        self._reader = reader

    async def lines(self, max_bytes: int) -> AsyncIterator[bytes]:
        """Each without its end. Raises Unavailable: HTTP_UNREACHABLE where it breaks off, HTTP_TOO_LARGE."""
        kept = bytearray()
        async for piece in self._pieces():
            kept += piece
            if b"\n" in piece:
                *whole, kept = kept.split(b"\n")
                for line in whole:
                    yield bytes(line)
            if len(kept) > max_bytes:
                raise Unavailable(
                    f"{self._origin.source} answered with a line of more than {max_bytes} bytes",
                    reason="HTTP_TOO_LARGE",
                )
        if kept:
            yield bytes(kept)

    async def start(self) -> bytes:
        """The beginning of a body that says what is wrong."""
        kept = b""
        async for piece in self._pieces():
            kept += piece
            if len(kept) >= MAX_ERROR_BYTES:
                break
        return kept[:MAX_ERROR_BYTES]

    async def _pieces(self) -> AsyncIterator[bytes]:
        """RFC 9112 §6.3: chunked, as long as stated, or until the connection ends."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := await self._chunk_size():
                async for piece in self._exactly(size):
                    yield piece
                await self._timed(self._reader.readexactly(2))
        elif _DIGITS.fullmatch(stated := self.headers.get("content-length", "")):
            async for piece in self._exactly(int(stated)):
                yield piece
        else:
            while piece := await self._timed(self._reader.read(_PIECE)):
                yield piece

    async def _chunk_size(self) -> int:
        line = await self._timed(self._reader.readuntil(b"\r\n"))
        digits = line.partition(b";")[0].strip()
        if len(line) > _CHUNK_LINE_BYTES or _SIZE.fullmatch(digits) is None:  # Python's int() takes signs and more
            raise self._origin.unreachable("it answered with what is no HTTP")
        return int(digits, 16)

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size:
            piece = await self._timed(self._reader.read(min(size, _PIECE)))
            if not piece:
                raise self._origin.unreachable("it ended the connection amid an answer")
            size -= len(piece)
            yield piece

    async def _timed(self, reading: Coroutine[None, None, bytes]) -> bytes:
        try:
            async with asyncio.timeout(self._origin.idle_seconds):
                return await reading
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise self._origin.unreachable(_said(error)) from error


@asynccontextmanager
async def stream(origin: Origin, method: str, path: str, headers: Mapping[str, str]) -> AsyncIterator[Stream]:
    """One request without a body, on a connection of its own. Raises Unavailable HTTP_UNREACHABLE."""
    writer = None
    try:
        try:
            async with asyncio.timeout(origin.connect_seconds):
                reader, writer = await asyncio.open_connection(
                    origin.host, origin.port, ssl=origin.context, limit=MAX_HEAD_BYTES
                )
                _keep_alive(writer)
                given = {"Host": f"{_bracketed(origin.host)}:{origin.port}", "Connection": "close"} | dict(headers)
                head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
                writer.write("\r\n".join([*head, "", ""]).encode("latin-1"))
                answer = await _head(origin, reader)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise origin.unreachable(_said(error)) from error
        yield answer
    finally:
        if writer is not None:
            writer.transport.abort()


async def _head(origin: Origin, reader: asyncio.StreamReader) -> Stream:
    head = await reader.readuntil(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    version, _, status = first.decode("latin-1").partition(" ")
    try:
        if not version.startswith("HTTP/1.") or not status[:3].isdecimal():
            raise http.client.BadStatusLine(first[:64].decode("latin-1"))
        message = http.client.parse_headers(io.BytesIO(rest))
    except http.client.HTTPException as error:
        raise origin.unreachable("it answered with what is no HTTP") from error
    return Stream(origin, reader, int(status[:3]), {name.lower(): value for name, value in message.items()})


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """A machine that is gone is noticed within a minute, for all that is said meanwhile is nothing."""
    connection = writer.get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return "it ended the connection" if isinstance(error, EOFError) else str(error) or type(error).__name__
