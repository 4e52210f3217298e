"""A gRPC service that is loaded for the first who calls it: nobody asks most agents for most of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import grpc

from ca.runtime.rpc_handlers import Handler

if TYPE_CHECKING:
    from grpc import HandlerCallDetails


class LateService(grpc.GenericRpcHandler):
    """`add` imports the service `name` and adds it to the server that it is given, as generated code does."""

    def __init__(self, name: str, add: Callable[[grpc.aio.Server], None]) -> None:
        self._prefix = f"/{name}/"
        self._add = add
        self._loaded: _Handlers | None = None

    def service(self, handler_call_details: HandlerCallDetails) -> Handler | None:
        if not handler_call_details.method.startswith(self._prefix):
            return None
        if self._loaded is None:
            loaded = _Handlers()
            self._add(cast(grpc.aio.Server, loaded))
            self._loaded = loaded
        return self._loaded.find(handler_call_details)


class _Handlers:
    """Takes handlers as a server does."""

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._handlers += handlers

    def add_registered_method_handlers(self, name: str, handlers: Any) -> None:
        """The same ones once more."""

    def find(self, details: HandlerCallDetails) -> Handler | None:
        found = (handler.service(details) for handler in self._handlers)
        return next((handler for handler in found if handler is not None), None)
