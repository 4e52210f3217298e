"""The demo's api application: answers any request with who called it, as its Envoy tells it.

Run as `python -m ca.up.application SOCKET [UID]`; it binds the Unix socket SOCKET, then becomes UID.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys

from ca.up.http import parse_headers, read_body
from ca.up.launch import become, die_with

_CALLER = re.compile(r"(?:^|;)URI=([^;,]+)")
"""The URI field of Envoy's x-forwarded-client-cert, which Envoy sets afresh (SANITIZE_SET)."""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection until the other side ends it."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = parse_headers(head.strip().split("\r\n")[1:])
            await read_body(reader, headers)
            body = json.dumps({"service": "api", "caller": caller(headers)}).encode() + b"\n"
            header = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(header.encode() + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        pass  # the end of the connection, however it came
    except asyncio.CancelledError:
        pass  # the end of the program: asyncio's streams would print a traceback for a task that ends cancelled
    finally:
        writer.close()


def caller(headers: dict[str, str]) -> str | None:
    """The SPIFFE ID that our Envoy verified, or None."""
    found = _CALLER.search(headers.get("x-forwarded-client-cert", ""))
    return found[1] if found else None


async def serve(socket: str, uid: int | None) -> None:
    """Serve on `socket` as `uid` until SIGTERM."""
    server = await asyncio.start_unix_server(answer, socket)
    if uid is not None:
        parent = os.getppid()
        os.chown(socket, uid, uid)
        become(uid)
        die_with(parent)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with server:
        await stop.wait()


def main() -> None:
    """Arguments: SOCKET [UID]."""
    socket, *uid = sys.argv[1:]
    asyncio.run(serve(socket, int(uid[0]) if uid else None))


if __name__ == "__main__":
    main()
