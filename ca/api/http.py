"""The HTTP/1.1 side of the gate: an ASGI application that sees the verified peer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from ca.runtime.gate import Peer

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

MAX_HEADER_BYTES = 16 * 1024


class HttpSide:
    """Makes one HTTP protocol per connection. `make` builds the application, in a thread, when the first one comes:
    what it imports costs more than all else that the server does."""

    def __init__(self, make: Callable[[], App]) -> None:
        self._make = make
        self._parts: asyncio.Future[tuple[Any, Any, App]] | None = None

    def __call__(self, peer: Peer) -> asyncio.Protocol:
        """Implements ca.runtime.gate.HttpProtocolFactory. The peer is in `scope["burgee.peer"]`."""
        return _Waiting(self, peer)

    async def protocol(self, peer: Peer) -> asyncio.Protocol:
        """The protocol that serves this peer."""
        if self._parts is None:
            self._parts = asyncio.ensure_future(asyncio.to_thread(_build, self._make))
        config, state, app = await asyncio.shield(self._parts)
        from uvicorn.protocols.http.h11_impl import H11Protocol

        protocol = H11Protocol(config=config, server_state=state, app_state={})
        protocol.app = _with_peer(app, peer)
        return protocol


class _Waiting(asyncio.Protocol):
    """Waits until the real protocol is there, and then steps aside. A loop may read once before it can be paused."""

    def __init__(self, side: HttpSide, peer: Peer) -> None:
        self._side = side
        self._peer = peer
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their type
        self._transport.pause_reading()
        self._task = asyncio.get_running_loop().create_task(self._hand_over(self._transport))

    def data_received(self, data: bytes) -> None:
        self._early += data
        self._transport.pause_reading()  # uvloop begins to read after connection_made, whatever that did

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _hand_over(self, transport: asyncio.Transport) -> None:
        protocol = await self._side.protocol(self._peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._early:
            protocol.data_received(bytes(self._early))
        transport.resume_reading()


def _build(make: Callable[[], App]) -> tuple[Any, Any, App]:
    """uvicorn's configuration and state, and the application: half a second of imports."""
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    app = make()
    config = Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    config.load()
    return config, ServerState(), app


def _with_peer(app: App, peer: Peer) -> App:
    async def with_peer(scope: Scope, receive: Any, send: Any) -> None:
        scope["burgee.peer"] = peer
        await app(scope, receive, send)

    return with_peer
