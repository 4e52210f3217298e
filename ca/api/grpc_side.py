"""The private grpcio servers behind the gate: one for acting agents, one for everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from os import PathLike

import grpc

from ca.api.admitted import Admitted
from ca.api.audit import Audited, AuditedAccess, Auditor
from ca.api.services import register
from ca.api.tiers import AGENTS_METHODS
from ca.runtime.gate import Gate
from ca.runtime.rpc import grpc_server
from ca.runtime.rpc_handlers import PARSED
from ca.runtime.server_config import LimitsConfig

MAX_STREAMS_PER_CONNECTION = 128
"""Calls open at once; whoever has no certificate must not hold thousands of them with one connection."""


class GrpcSide:
    """Both serve everything, in the same way. What agents call does not wait for what others call, nor for what agents
    have no business to call; the fewer queues, the less a call costs."""

    def __init__(
        self,
        gate: Gate,
        access: AuditedAccess,
        auditor: Auditor,
        limits: LimitsConfig,
        *,
        services: Sequence[object],
        handlers: Sequence[grpc.GenericRpcHandler],
    ) -> None:
        outermost = gate.layer()
        self._services = services
        self._handlers = handlers
        self._layers = (outermost, Admitted(access), PARSED, Audited(auditor))
        self._unknown = outermost.unknown
        self._limits = limits
        self._servers: list[grpc.aio.Server] = []

    async def start(self, grpc_socket: PathLike[str], agents_socket: PathLike[str]) -> None:
        for socket, queued in ((grpc_socket, None), (agents_socket, AGENTS_METHODS)):
            server = grpc_server(
                socket,
                self._layers,
                unknown=self._unknown,
                queued=queued,
                max_receive_bytes=self._limits.max_message_bytes,
                max_connection_age_seconds=self._limits.max_connection_age_seconds,
                max_streams_per_connection=MAX_STREAMS_PER_CONNECTION,
            )
            register(server, self._services)
            server.add_generic_rpc_handlers(self._handlers)
            self._servers.append(server)
            await server.start()

    async def stop(self, grace_seconds: float) -> None:
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))
