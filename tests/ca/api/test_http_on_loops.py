"""HTTP is served on asyncio's own loop and on uvloop, which reads once before a connection can be paused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ca.api.http import App, HttpSide
from ca.runtime.gate import Peer

REQUEST = b"GET /early HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
PEER = Peer(transport="unix", listener="admin", pid=1, uid=0, gid=0)


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["burgee.peer"] is PEER
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def made() -> App:
    """While the application is made, the request has long come."""
    time.sleep(0.2)
    return app


async def asked(path: Path) -> bytes:
    side = HttpSide(made)
    server = await asyncio.get_running_loop().create_unix_server(lambda: side(PEER), str(path))
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(REQUEST)
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        return answer
    finally:
        server.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_comes_before_the_application_is_there_is_answered(
    loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        answer = runner.run(asked(tmp_path / "s"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\r\n/early\r\n" in answer
