"""The HTTP/1.1 side of the gate: an ASGI application that sees the verified peer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from ca.runtime.gate import Peer

if TYPE_CHECKING:
    from fastapi import FastAPI

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

MAX_HEADER_BYTES = 16 * 1024


def application(version: str) -> FastAPI:
    """The application; FastAPI is imported here, since it costs more than all else that the server imports."""
    from fastapi import FastAPI

    app = FastAPI(title="Burgee", version=version, openapi_url=None, docs_url=None, redoc_url=None)

    async def show_version() -> dict[str, str]:
        return {"name": "burgee", "version": version}

    app.get("/version")(show_version)
    return app


class HttpSide:
    """Makes one HTTP protocol per connection; the application is built when the first one comes, or by `warm`."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._parts: tuple[Any, Any, App] | None = None

    def __call__(self, peer: Peer) -> asyncio.Protocol:
        """Implements ca.runtime.gate.HttpProtocolFactory. The peer is in `scope["burgee.peer"]`."""
        from uvicorn.protocols.http.h11_impl import H11Protocol

        config, state, app = self._parts or self._build()
        protocol = H11Protocol(config=config, server_state=state, app_state={})
        protocol.app = _with_peer(app, peer)
        return protocol

    def warm(self) -> None:
        """Imports and builds everything; slow, for a thread."""
        if self._parts is None:
            self._build()

    def _build(self) -> tuple[Any, Any, App]:
        from uvicorn.config import Config
        from uvicorn.server import ServerState

        app = application(self._version)
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
        self._parts = (config, ServerState(), app)
        return self._parts


def _with_peer(app: App, peer: Peer) -> App:
    async def with_peer(scope: Scope, receive: Any, send: Any) -> None:
        scope["burgee.peer"] = peer
        await app(scope, receive, send)

    return with_peer
