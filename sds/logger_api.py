"""The log level of the running agent, asked for and set over the admin socket (spire.api.agent.logger.v1)."""

from __future__ import annotations

from collections.abc import Mapping

from ca.errors import InvalidArgument
from ca.proto.spire import agent_logger_pb2, agent_logger_pb2_grpc, types_pb2
from ca.runtime.log import Level, get, set_level
from sds.workloads import Context

log = get("sds.logger")

LEVELS: Mapping[types_pb2.LogLevel.ValueType, Level] = {
    types_pb2.PANIC: "critical",
    types_pb2.FATAL: "critical",
    types_pb2.ERROR: "error",
    types_pb2.WARN: "warning",
    types_pb2.INFO: "info",
    types_pb2.DEBUG: "debug",
    types_pb2.TRACE: "debug",
}
"""SPIRE has seven levels, we log at five of them: what we have not is the nearest one that says no less."""

CONFIGURED: Mapping[Level, types_pb2.LogLevel.ValueType] = {
    "critical": types_pb2.FATAL,
    "error": types_pb2.ERROR,
    "warning": types_pb2.WARN,
    "info": types_pb2.INFO,
    "debug": types_pb2.DEBUG,
}


class LoggerApi(agent_logger_pb2_grpc.LoggerServicer):
    """The service. `launch`: the configured level, to which a reset returns; a restart returns to it too."""

    def __init__(self, launch: Level) -> None:
        self._launch = CONFIGURED[launch]
        self._current = self._launch

    async def GetLogger(self, request: agent_logger_pb2.GetLoggerRequest, context: Context) -> types_pb2.Logger:
        return self._shown()

    async def SetLogLevel(self, request: agent_logger_pb2.SetLogLevelRequest, context: Context) -> types_pb2.Logger:
        if request.new_level == types_pb2.UNSPECIFIED:
            raise InvalidArgument("the new log level is missing", reason="LOG_LEVEL_MISSING")
        if request.new_level not in LEVELS:
            raise InvalidArgument(f"there is no log level `{request.new_level}`", reason="LOG_LEVEL_UNKNOWN")
        return self._set(request.new_level)

    async def ResetLogLevel(self, request: agent_logger_pb2.ResetLogLevelRequest, context: Context) -> types_pb2.Logger:
        return self._set(self._launch)

    def _set(self, level: types_pb2.LogLevel.ValueType) -> types_pb2.Logger:
        log.warning("log level changes", reason="LOG_LEVEL_SET", old=LEVELS[self._current], new=LEVELS[level])
        set_level(LEVELS[level])
        self._current = level
        return self._shown()

    def _shown(self) -> types_pb2.Logger:
        return types_pb2.Logger(current_level=self._current, launch_level=self._launch)
