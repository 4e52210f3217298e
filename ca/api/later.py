"""Methods of SPIRE's services that are not built: authorization guards them already."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ca.errors import Unimplemented

WIT = "WIT-SVID functionality is not yet implemented"


def later(detail: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """A method that answers Unimplemented to everyone who may call it."""

    async def method(self: object, request: object, context: object) -> object:
        raise Unimplemented(detail, reason="NOT_BUILT")

    return method
