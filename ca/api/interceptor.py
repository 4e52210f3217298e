"""Stands before every method and admits its caller; the gate's interceptor, which knows the peer, stands outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ca.api.access import Access
from ca.errors import Internal
from ca.runtime.gate import current_peer
from ca.runtime.rpc_handlers import Answer, Context, Handler, LayerInterceptor, Yielding


class AccessInterceptor(LayerInterceptor):
    """To be the innermost of a server's interceptors. What it refuses is counted and logged by the outermost.

    Unary requests are parsed after their caller was admitted, and not by grpcio, which would tell a caller of
    Python's exceptions.
    """

    def __init__(self, access: Access) -> None:
        super().__init__(_Admission(access))
        self._parsing: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler | None]], handler_call_details: Any
    ) -> Handler | None:
        async def parsed_by_us(details: Any) -> Handler | None:
            handler = await continuation(details)
            if handler is None or handler.unary_unary is None or handler.request_deserializer is None:
                return handler
            return self._parse(details.method, handler)

        return await super().intercept_service(parsed_by_us, handler_call_details)

    def _parse(self, method: str, handler: Handler) -> Handler:
        known = self._parsing.get(method)
        if known is None or known[0] is not handler:
            known = self._parsing[method] = (handler, _with_parser(handler))
        return known[1]


def _with_parser(handler: Handler) -> Handler:
    parse: Any = handler.request_deserializer
    inner: Any = handler.unary_unary

    async def parsed(data: bytes, context: Context) -> Any:
        try:
            request = parse(data)
        except DecodeError as error:
            raise Internal("request is not a message of this method", reason="REQUEST_MALFORMED") from error
        return await inner(request, context)

    made: Handler = grpc.unary_unary_rpc_method_handler(parsed, None, handler.response_serializer)
    return made


class _Admission:
    """Implements ca.runtime.rpc_handlers.Layer."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def answer(self, method: str, inner: Answer, *, streaming: bool) -> Answer:
        async def admitted(request: Any, context: Context) -> Any:
            await self._access.admit(method, current_peer.get())
            return await inner(request, context)

        return admitted

    def yielding(self, method: str, inner: Yielding) -> Yielding:
        async def admitted(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._access.admit(method, current_peer.get())
            responses: Any = inner(request, context)
            async with aclosing(responses):
                async for response in responses:
                    yield response

        return admitted
