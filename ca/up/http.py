"""A small HTTP/1.1 GET over TCP or a Unix socket: enough for an Envoy's admin page and for the proof."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ca.errors import Unavailable

_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Response:
    """Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


async def get(where: Path | tuple[str, int], path: str, *, seconds: float = 5.0) -> Response:
    """GET `path` at a Unix socket or (host, port). Raises Unavailable when nobody answers in time."""
    try:
        return await asyncio.wait_for(_get(where, path), seconds)
    except (OSError, TimeoutError, EOFError, ValueError) as error:
        raise Unavailable(f"no answer to GET {path}: {type(error).__name__}", reason="NO_ANSWER") from error


async def _get(where: Path | tuple[str, int], path: str) -> Response:
    if isinstance(where, Path):
        reader, writer = await asyncio.open_unix_connection(str(where), limit=_LIMIT)
    else:
        reader, writer = await asyncio.open_connection(*where, limit=_LIMIT)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: burgee.demo\r\nConnection: close\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.strip().split("\r\n")
        _, status, *_ = status_line.split()
        headers = parse_headers(lines)
        return Response(status=int(status), headers=headers, body=await read_body(reader, headers))
    finally:
        writer.close()


def parse_headers(lines: Iterable[str]) -> dict[str, str]:
    """Header lines → lower-case name to value; of a repeated header the last stays."""
    return {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """A message's body as its headers frame it (RFC 9112 §6.3); without a frame there is none."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader)
    if "content-length" in headers:
        return await reader.readexactly(min(int(headers["content-length"]), _LIMIT))
    return b""


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readline()).split(b";")[0], 16):
        if len(body) + size > _LIMIT:
            raise ValueError("answer too long")
        body += await reader.readexactly(size)
        await reader.readline()
    return bytes(body)
