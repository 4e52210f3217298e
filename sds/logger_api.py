"""The log level of the running agent, asked for and set over the admin socket (spire.api.agent.logger.v1)."""

from __future__ import annotations

from ca.proto.spire import agent_logger_pb2, agent_logger_pb2_grpc, types_pb2
from ca.runtime.log_levels import LogLevels
from sds.workloads import Context


class LoggerApi(agent_logger_pb2_grpc.LoggerServicer):
    """The service over this process's levels."""

    def __init__(self, levels: LogLevels) -> None:
        self._levels = levels

    async def GetLogger(self, request: agent_logger_pb2.GetLoggerRequest, context: Context) -> types_pb2.Logger:
        return self._levels.shown()

    async def SetLogLevel(self, request: agent_logger_pb2.SetLogLevelRequest, context: Context) -> types_pb2.Logger:
        return self._levels.set(request.new_level)

    async def ResetLogLevel(self, request: agent_logger_pb2.ResetLogLevelRequest, context: Context) -> types_pb2.Logger:
        return self._levels.reset()
