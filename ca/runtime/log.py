"""Structured logs, as JSON or for a console, with a request id and stable `reason` codes."""

from __future__ import annotations

import itertools
import logging
import secrets
import sys
from collections import deque
from contextvars import ContextVar
from typing import Any, Literal, TextIO, cast

from ca.runtime.stand_ins import stand_ins

# structlog would load rich for tracebacks in colour: three megabytes and a tenth of the start of every program; and
# greenlet and colorama, for threads and consoles that nothing here has. Of pickle it uses the name of an error.
_plain = {name: sys.modules.get(name) for name in ("rich", "greenlet", "colorama")}
sys.modules.update(dict.fromkeys(_plain))  # type: ignore[arg-type]
with stand_ins("pickle"):
    import structlog
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

for _name, _module in _plain.items():
    if _module is None:
        del sys.modules[_name]
    else:
        sys.modules[_name] = _module

Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error", "critical"]

request_id: ContextVar[str] = ContextVar("burgee_request_id", default="")
"""The id of the call being served, empty outside of one. It is in every log line of the call and in its errors."""

RECENT_LINES = 1000
RECENT_LINE_CHARACTERS = 2000
"""What is kept of the log in memory, for bug reports."""

_recent: deque[str] = deque(maxlen=RECENT_LINES)
_run = secrets.token_hex(4)
_numbers = itertools.count(1)


def new_request_id() -> str:
    """Set and return a fresh request id for the current context: 8 hex digits of this run, a dash, a number."""
    value = f"{_run}-{next(_numbers):x}"
    request_id.set(value)
    return value


def run_id() -> str:
    """What all request ids of this run of the program begin with."""
    return _run


def get(name: str) -> FilteringBoundLogger:
    """A logger; `name` is shown as `component`. Log a denial with `reason=` and a failure with `error=`."""
    return cast(FilteringBoundLogger, structlog.get_logger(component=name))


def configure(format: Format = "console", level: Level = "info", stream: TextIO | None = None) -> None:
    """Set up this process's logs (standard error by default); libraries that log by `logging` come out the same way.

    May be called again; the last call counts.
    """
    target = cast(TextIO, _Stream(stream))
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        _add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last = _renderer(format, target)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    _adopt_libraries(shared, last, target, threshold)


def set_level(level: Level) -> None:
    """From now on log this level and what is graver; loggers that exist already obey too."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(threshold))
    logging.getLogger().setLevel(_library_threshold(threshold))


def _library_threshold(threshold: int) -> int:
    return max(threshold, logging.WARNING)


def recent(lines: int = 0) -> list[str]:
    """The last lines that were logged here, oldest first: all that are kept, or at most `lines`."""
    kept = list(_recent)
    return kept[-lines:] if lines > 0 else kept


class _Stream:
    """Standard error, or another stream, as a text file that never fails: who serves calls does not stop serving
    them because nobody reads its log."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def _target(self) -> TextIO:
        return self._stream or sys.stderr

    def write(self, text: str) -> int:
        _recent.extend(line[:RECENT_LINE_CHARACTERS] for line in text.splitlines() if line)
        try:
            return self._target.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        try:
            self._target.flush()
        except (OSError, ValueError):
            pass  # closed, full, or a pipe without a reader

    def isatty(self) -> bool:
        return self._target.isatty()


def _renderer(format: Format, target: TextIO) -> list[Processor]:
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback)]


def _add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if value := request_id.get():
        event["request_id"] = value
    return event


def _adopt_libraries(shared: list[Processor], last: list[Processor], target: TextIO, threshold: int) -> None:
    """Send what libraries say by `logging` through the same processors; below warning they are silent."""
    handler = logging.StreamHandler(target)
    remove: Any = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove, *last]))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_library_threshold(threshold))
