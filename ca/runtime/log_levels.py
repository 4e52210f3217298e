"""SPIRE's seven log levels over our five, for the logger services of server and agent."""

from __future__ import annotations

from collections.abc import Mapping

from ca.errors import InvalidArgument
from ca.proto.spire import types_pb2
from ca.runtime.log import Level, get, set_level

_log = get("log")

LEVELS: Mapping[types_pb2.LogLevel.ValueType, Level] = {
    types_pb2.PANIC: "critical",
    types_pb2.FATAL: "critical",
    types_pb2.ERROR: "error",
    types_pb2.WARN: "warning",
    types_pb2.INFO: "info",
    types_pb2.DEBUG: "debug",
    types_pb2.TRACE: "debug",
}
"""What we have not is the nearest level that says no less."""

CONFIGURED: Mapping[Level, types_pb2.LogLevel.ValueType] = {
    "critical": types_pb2.FATAL,
    "error": types_pb2.ERROR,
    "warning": types_pb2.WARN,
    "info": types_pb2.INFO,
    "debug": types_pb2.DEBUG,
}


class LogLevels:
    """The level of this process as it is asked for and set. `launch`: the configured one, to which a reset returns; a
    restart returns to it too."""

    def __init__(self, launch: Level) -> None:
        self._launch = CONFIGURED[launch]
        self._current = self._launch

    def shown(self) -> types_pb2.Logger:
        """A level that we do not have is shown as it was set."""
        return types_pb2.Logger(current_level=self._current, launch_level=self._launch)

    def set(self, level: types_pb2.LogLevel.ValueType) -> types_pb2.Logger:
        """Raises InvalidArgument with reason LOG_LEVEL_MISSING or LOG_LEVEL_UNKNOWN."""
        if level == types_pb2.UNSPECIFIED:
            raise InvalidArgument("the new log level is missing", reason="LOG_LEVEL_MISSING")
        if level not in LEVELS:
            raise InvalidArgument(f"there is no log level `{level}`", reason="LOG_LEVEL_UNKNOWN")
        return self._set(level)

    def configured(self, level: Level) -> None:
        """The configuration was read again: this is the level now, and what a reset returns to."""
        self._launch = self._current = CONFIGURED[level]
        set_level(level)

    def reset(self) -> types_pb2.Logger:
        return self._set(self._launch)

    def _set(self, level: types_pb2.LogLevel.ValueType) -> types_pb2.Logger:
        _log.warning("log level changes", reason="LOG_LEVEL_SET", old=LEVELS[self._current], new=LEVELS[level])
        set_level(LEVELS[level])
        self._current = level
        return self.shown()
