"""Stands before every method and admits its caller; the gate's layer, which knows the peer, stands outside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from ca.api.access import Access
from ca.runtime.gate import current_peer
from ca.runtime.rpc_handlers import Answer, Context, Yielding


class Admitted:
    """Implements ca.runtime.rpc_handlers.Layer. To stand outside of PARSED: strangers' requests are not even read."""

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
