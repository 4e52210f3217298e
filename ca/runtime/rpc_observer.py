"""The outermost layer of every RPC: request id, error mapping, metrics, and the log of refusals and failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from ca.errors import BurgeeError, Code, Internal
from ca.runtime import log, metrics
from ca.runtime.rpc_errors import STATUS_CODES, abort_with
from ca.runtime.rpc_handlers import Answer, Context, Yielding

RPCS = metrics.counter("rpc", "RPCs that ended, by method and gRPC status.", ["method", "code"])
REFUSED = metrics.counter("rpc_refused", "RPCs that were refused, by method and reason.", ["method", "reason"])
SECONDS = metrics.histogram(
    "rpc_seconds",
    "Time to answer unary RPCs.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10),
)
STREAMS = metrics.gauge("rpc_streams", "Streaming RPCs that are open.", ["method"])

_CODE_NAMES = {status.value[0]: "".join(part.title() for part in status.name.split("_")) for status in grpc.StatusCode}
_CODE_NAMES[0] = "OK"
_OURS = frozenset({Code.INTERNAL, Code.UNAVAILABLE})
_log = log.get("rpc")


class Observed:
    """Implements Layer. No traceback reaches a caller: what is not in the error family becomes Internal with the
    request id."""

    def answer(self, method: str, inner: Answer, *, streaming: bool) -> Answer:
        record = _Recorder(method)
        seconds = SECONDS.labels(method)
        streams = STREAMS.labels(method)

        async def unary(request: Any, context: Context) -> Any:
            log.new_request_id()
            started = time.perf_counter()
            try:
                response = await inner(request, context)
            except BaseException as error:
                await record.failed(context, error)
            record.ended(context)
            seconds.observe(time.perf_counter() - started)
            return response

        async def stream(request: Any, context: Context) -> Any:
            log.new_request_id()
            with streams.track_inprogress():
                try:
                    response = await inner(request, context)
                except BaseException as error:
                    await record.failed(context, error)
                record.ended(context)
                return response

        return stream if streaming else unary

    def yielding(self, method: str, inner: Yielding) -> Yielding:
        record = _Recorder(method)
        streams = STREAMS.labels(method)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            log.new_request_id()
            with streams.track_inprogress():
                responses: Any = inner(request, context)
                try:
                    async with aclosing(responses):
                        async for response in responses:
                            yield response
                except BaseException as error:
                    await record.failed(context, error)
                record.ended(context)

        return stream


class _Recorder:
    """How the RPCs of one method ended."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._codes: dict[int, Any] = {}

    def ended(self, context: Context) -> None:
        # grpc.aio keeps the number; a handler may have used set_code instead of raising.
        code: Any = context.code()
        self._count(code if isinstance(code, int) else code.value[0] if code is not None else 0)

    def _count(self, number: int) -> None:
        child = self._codes.get(number)
        if child is None:
            child = self._codes[number] = RPCS.labels(self._method, _CODE_NAMES.get(number, "Unknown"))
        child.inc()

    async def failed(self, context: Context, error: BaseException) -> None:
        """Always raises: AbortError for an error that is answered, or what it was given for the end of a task."""
        if isinstance(error, grpc.aio.AbortError):
            self.ended(context)
            raise error
        if isinstance(error, asyncio.CancelledError | GeneratorExit) or not isinstance(error, Exception):
            self._count(grpc.StatusCode.CANCELLED.value[0])
            raise error
        if isinstance(error, grpc.aio.InternalError):  # the caller's stream is gone: there is nobody to write to
            self._count(grpc.StatusCode.CANCELLED.value[0])
            raise asyncio.CancelledError from error
        known = error if isinstance(error, BurgeeError) else self._unknown(error)
        if isinstance(error, BurgeeError):
            self._refused(error)
        self._count(STATUS_CODES[known.code].value[0])
        await abort_with(context, known)

    def _refused(self, error: BurgeeError) -> None:
        REFUSED.labels(self._method, error.reason).inc()
        cause = error.__cause__
        say = _log.warning if error.code in _OURS else _log.info
        say(
            "rpc refused",
            method=self._method,
            code=str(error.code),
            reason=error.reason,
            detail=error.detail,
            **({"cause": f"{type(cause).__name__}: {cause}"} if cause is not None else {}),
        )

    def _unknown(self, error: Exception) -> Internal:
        REFUSED.labels(self._method, Internal.reason).inc()
        _log.error("rpc failed", method=self._method, reason=Internal.reason, exc_info=error)
        return Internal(f"internal error (request {log.request_id.get()})")
