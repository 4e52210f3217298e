"""grpc.health.v1.Health on the local socket: serving means that a workload could get an SVID now."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from ca.errors import InvalidArgument, Unimplemented
from ca.runtime.health import Health

Context = grpc.aio.ServicerContext[Any, Any]


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The server as a whole; there is no health per service."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        if request.service:
            raise InvalidArgument("per-service health is not supported", reason="HEALTH_SERVICE")
        return health_pb2.HealthCheckResponse(status=self._status())

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={"": health_pb2.HealthCheckResponse(status=self._status())})

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        raise Unimplemented("method Watch not implemented")

    def _status(self) -> health_pb2.HealthCheckResponse.ServingStatus:
        response = health_pb2.HealthCheckResponse
        return response.NOT_SERVING if self._health.problems() else response.SERVING
