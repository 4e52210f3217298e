"""spire.api.server.logger.v1.Logger: the level of this server's log, on the local socket alone."""

from __future__ import annotations

from typing import Any

import grpc

from ca.proto.spire import server_logger_pb2 as pb
from ca.proto.spire import server_logger_pb2_grpc, types_pb2
from ca.runtime.log_levels import LogLevels

Context = grpc.aio.ServicerContext[Any, Any]


class LoggerService(server_logger_pb2_grpc.LoggerServicer):
    """The level really changes, until it is reset or the server restarts."""

    def __init__(self, levels: LogLevels) -> None:
        self._levels = levels

    async def GetLogger(self, request: pb.GetLoggerRequest, context: Context) -> types_pb2.Logger:
        return self._levels.shown()

    async def SetLogLevel(self, request: pb.SetLogLevelRequest, context: Context) -> types_pb2.Logger:
        return self._levels.set(request.new_level)

    async def ResetLogLevel(self, request: pb.ResetLogLevelRequest, context: Context) -> types_pb2.Logger:
        return self._levels.reset()
