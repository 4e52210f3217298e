"""What a connection needs from its gate."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ca.runtime.gate_connection import Connection
    from ca.runtime.gate_pace import Throttle
    from ca.runtime.peers import Peer


class Host(Protocol):
    """`admitted` says why a connection that was just authenticated cannot stay, or nothing."""

    loop: asyncio.AbstractEventLoop
    view: memoryview
    handshake_timeout_seconds: float
    first_bytes_timeout_seconds: float
    max_anonymous_bytes: int
    has_http: bool

    def open_grpc(self, peer: Peer) -> tuple[str, socket.socket]: ...

    def open_http(self, peer: Peer) -> socket.socket: ...

    def release_name(self, name: str) -> None: ...

    def throttle(self, connection: Connection) -> Throttle | None: ...

    def admitted(self, connection: Connection) -> str: ...

    def ended(self, connection: Connection) -> None: ...
