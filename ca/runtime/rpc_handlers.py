"""Puts layers around grpc.aio handlers of every shape, once per method."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from ca.errors import Internal, Unimplemented

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
    """What is put around a method's behaviour; `method` is the full name, `/package.Service/Method`.

    The layers of a server begin with the outermost. What stands outside of `PARSED` sees a unary request as bytes.
    """

    def answer(self, method: str, inner: Answer, *, streaming: bool) -> Answer: ...

    def yielding(self, method: str, inner: Yielding) -> Yielding: ...


class Parsed:
    """Among the layers, the place where unary requests become messages; without it they do so in the innermost one.

    Not in grpcio, which would parse for callers that nobody has admitted yet, and tell them of Python's exceptions.
    """


PARSED = Parsed()


class UnknownMethod(Handler):
    """Answers a method that nobody serves, so that somebody can look at the caller first.

    It stands in no layer: its method is the caller's word and must not become a metric's label.
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


class LayeredHandlers(grpc.GenericRpcHandler):
    """All handlers of one server in its layers; a handler is wrapped at its first call and then found by its method.

    grpcio's interceptors can do the same, at the price of some coroutines for each call.
    """

    def __init__(self, layers: Iterable[Layer | Parsed], unknown: Answer | None) -> None:
        given = tuple(layers)
        self._layers = given if PARSED in given else (*given, PARSED)
        self._unknown = None if unknown is None else UnknownMethod(unknown)
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, Handler] = {}

    def add(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Of one method, the handler that was added first is the one that serves."""
        self._handlers.extend(handlers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        for candidate in self._handlers:
            handler: Any = candidate.service(handler_call_details)
            if handler is not None:
                return self.layered(method, handler)
        return self._unknown

    def layered(self, method: str, handler: Handler) -> Handler:
        """The handler in its layers, from now on."""
        wrapped = self._wrapped[method] = wrap(self._layers, method, handler)
        return wrapped


class LayeredServer(grpc.aio.Server):
    """Another server, with its services in layers.

    Calls of a method wait in a queue of the method's own, so that a flood of calls of one method, or of none that
    exists, holds up no other. `queued` names those methods, where not all of them are worth what it costs: grpcio looks
    at each queue for each call. The others share one.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        layers: Iterable[Layer | Parsed],
        unknown: Answer | None,
        queued: Container[str] | None = None,
    ) -> None:
        self._server = server
        self._queued = queued
        self._handlers = LayeredHandlers(layers, unknown)
        server.add_generic_rpc_handlers((self._handlers,))

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._handlers.add(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """The generated code adds each handler in both ways; those of methods without a queue are found generically."""
        named = {name: f"/{service_name}/{name}" for name in method_handlers}
        queued = {
            name: self._handlers.layered(method, method_handlers[name])
            for name, method in named.items()
            if self._queued is None or method in self._queued
        }
        self._server.add_registered_method_handlers(service_name, queued)

    def add_insecure_port(self, address: str) -> int:
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        return await self._server.wait_for_termination(timeout)


async def _left_out(request: Any, context: Context) -> Any:
    raise Unimplemented("this server does not implement the method", reason="NOT_BUILT")


def wrap(layers: Sequence[Layer | Parsed], method: str, handler: Handler) -> Handler:
    """Methods that a servicer leaves as they were generated are Unimplemented. Raises TypeError for a handler that is
    not async."""
    kind = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    behaviour: Any = getattr(handler, kind)
    parse: Any = handler.request_deserializer
    if getattr(behaviour, "__module__", "").endswith("_pb2_grpc"):  # what a servicer leaves as it was generated
        behaviour = _left_out
    yields = inspect.isasyncgenfunction(behaviour)
    if not yields and not inspect.iscoroutinefunction(behaviour):
        raise TypeError(f"the handler of {method} is not async")
    for layer in reversed(layers):
        if isinstance(layer, Parsed):
            if kind == "unary_unary" and parse is not None:
                behaviour, parse = _parsing(parse, behaviour), None
        elif yields:
            behaviour = layer.yielding(method, behaviour)
        else:
            behaviour = layer.answer(method, behaviour, streaming=kind != "unary_unary")
    make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped: Handler = make(behaviour, parse, handler.response_serializer)
    return wrapped


def _parsing(parse: Callable[[bytes], Any], inner: Answer) -> Answer:
    async def parsed(data: bytes, context: Context) -> Any:
        try:
            request = parse(data)
        except DecodeError as error:
            raise Internal("request is not a message of this method", reason="REQUEST_MALFORMED") from error
        return await inner(request, context)

    return parsed
