"""A small HTTP/1.1 client over TCP or a Unix socket: enough for Envoy's admin page, REST, and the proof."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ca.errors import Unavailable

HOST = "burgee.demo"
_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Response:
    """Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


async def get(where: Path | tuple[str, int], path: str, *, seconds: float = 5.0) -> Response:
    """GET `path` at a Unix socket or (host, port). Raises Unavailable when nobody answers in time."""
    return await _answer(where, "GET", path, b"", seconds)


async def post(where: Path | tuple[str, int], path: str, document: Any, *, seconds: float = 5.0) -> Response:
    """The same with JSON."""
    return await _answer(where, "POST", path, json.dumps(document).encode(), seconds)


async def _answer(where: Path | tuple[str, int], verb: str, path: str, body: bytes, seconds: float) -> Response:
    try:
        return await asyncio.wait_for(_call(where, verb, path, body), seconds)
    except (OSError, TimeoutError, EOFError, ValueError) as error:
        raise Unavailable(f"no answer to {verb} {path}: {type(error).__name__}", reason="NO_ANSWER") from error


async def _call(where: Path | tuple[str, int], verb: str, path: str, body: bytes) -> Response:
    if isinstance(where, Path):
        reader, writer = await asyncio.open_unix_connection(str(where), limit=_LIMIT)
    else:
        reader, writer = await asyncio.open_connection(*where, limit=_LIMIT)
    try:
        frame = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        head = f"{verb} {path} HTTP/1.1\r\nHost: {HOST}\r\n{frame}Connection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = answer.strip().split("\r\n")
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
