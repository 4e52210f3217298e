"""Puts a layer around grpc.aio handlers of every shape, once per method."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # generic in its stubs only
Answer = Callable[[Any, Context], Awaitable[Any]]
"""A handler that returns once; streaming ones that call `context.write` are of this shape too."""

Yielding = Callable[[Any, Context], AsyncIterator[Any]]
"""A streaming handler written as an async generator."""


class Layer(Protocol):
    """What is put around a method's behaviour; `method` is the full name, `/package.Service/Method`."""

    def answer(self, method: str, inner: Answer, *, streaming: bool) -> Answer: ...

    def yielding(self, method: str, inner: Yielding) -> Yielding: ...


class UnknownMethod(Handler):
    """Answers a method that nobody serves, so that a layer can look at the caller first.

    It is wrapped by no further layer: its method is the caller's word and must not become a metric's label.
    """

    def __init__(self, behaviour: Answer) -> None:
        self.request_streaming = True
        self.response_streaming = True
        self.request_deserializer = None
        self.response_serializer = None
        self.unary_unary = None
        self.unary_stream = None
        self.stream_unary = None
        self.stream_stream: Any = behaviour


class LayerInterceptor(grpc.aio.ServerInterceptor):
    """Applies a Layer to every handler; a handler is wrapped at its first call and then found by its method."""

    def __init__(self, layer: Layer, *, unknown: UnknownMethod | None = None) -> None:
        self._layer = layer
        self._unknown = unknown
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler | None]], handler_call_details: Any
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return self._unknown
        if isinstance(handler, UnknownMethod):
            return handler
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        wrapped = _wrap(self._layer, method, handler)
        self._wrapped[method] = (handler, wrapped)
        return wrapped


def _wrap(layer: Layer, method: str, handler: Handler) -> Handler:
    kind = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    inner: Any = getattr(handler, kind)
    if inspect.isasyncgenfunction(inner):
        outer: Any = layer.yielding(method, inner)
    elif inspect.iscoroutinefunction(inner):
        outer = layer.answer(method, inner, streaming=handler.request_streaming or handler.response_streaming)
    else:
        raise TypeError(f"the handler of {method} is not async")
    make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped: Handler = make(outer, handler.request_deserializer, handler.response_serializer)
    return wrapped
