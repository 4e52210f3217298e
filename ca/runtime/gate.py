"""The gate: owns the public listeners, authenticates each connection, relays it to grpcio or to an HTTP/1.1 protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from ca.ports import Clock
from ca.runtime.peers import Peer, PeerCred, current_peer
from ca.runtime.tls import TlsMaterial

if TYPE_CHECKING:
    from ca.identity.svid import X509Svid

__all__ = ["Gate", "GateLimits", "Peer", "PeerCred", "TlsMaterial", "current_peer"]

HttpProtocolFactory = Callable[[Peer], asyncio.Protocol]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """What one gate bears before it refuses."""

    max_connections: int = 10_000
    max_connections_per_address: int = 2_000
    max_connections_per_uid: int = 4_000
    handshake_timeout_seconds: float = 10.0
    first_bytes_timeout_seconds: float = 10.0
    expiry_grace_seconds: float = 30.0


class Gate:
    """SIGNATURES ONLY YET: the body follows within the hour."""

    def __init__(
        self,
        *,
        grpc_socket: str,
        http_protocol_factory: HttpProtocolFactory | None = None,
        limits: GateLimits | None = None,
        clock: Clock | None = None,
    ) -> None: ...

    async def listen_tcp(
        self,
        name: str,
        host: str,
        port: int,
        *,
        tls: Callable[[], TlsMaterial],
        verify_client: Callable[[Sequence[bytes]], X509Svid],
    ) -> tuple[str, int]: ...

    async def listen_unix(
        self,
        name: str,
        path: str,
        *,
        mode: int = 0o600,
        dir_mode: int = 0o700,
        gid: int | None = None,
        admit: Callable[[PeerCred], bool] = lambda cred: True,
    ) -> None: ...

    def interceptor(self) -> grpc.aio.ServerInterceptor[Any, Any]: ...

    def peer_of(self, context: grpc.aio.ServicerContext[Any, Any]) -> Peer: ...

    def connections(self) -> tuple[Peer, ...]: ...

    def close_peers(self, predicate: Callable[[Peer], bool], reason: str) -> int: ...

    def reload_tls(self) -> None: ...

    async def close(self) -> None: ...
