"""Before every RPC of a private server: only callers that came through its gate, whoever they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

from ca.errors import BurgeeError, Unimplemented
from ca.runtime.peers import PeerTable, current_peer
from ca.runtime.rpc_errors import abort_with
from ca.runtime.rpc_handlers import Answer, Context, Yielding


class OnlyThroughGate:
    """Implements rpc_handlers.Layer."""

    def __init__(self, table: PeerTable) -> None:
        self._find = table.find

    def answer(self, method: str, inner: Answer, *, streaming: bool) -> Answer:
        async def admitted(request: Any, context: Context) -> Any:
            self._enter(context)
            return await inner(request, context)

        return admitted

    def yielding(self, method: str, inner: Yielding) -> Yielding:
        async def admitted(request: Any, context: Context) -> AsyncIterator[Any]:
            self._enter(context)
            responses: Any = inner(request, context)
            async with aclosing(responses):
                async for response in responses:
                    yield response

        return admitted

    def _enter(self, context: Context) -> None:
        peer = self._find(context.peer())
        current_peer.set(peer)
        peer.call_seen()

    async def unknown(self, request: Any, context: Context) -> NoReturn:
        """A method nobody serves: strangers are not even told that."""
        try:
            self._enter(context)
        except BurgeeError as error:
            await abort_with(context, error)
        await abort_with(context, Unimplemented("unknown service or method", reason="UNKNOWN_METHOD"))
