"""Waiting for another machine in the middle of work that has few places: whoever waits gives his place up meanwhile.

Else a peer that does not answer, an issuer or a cluster's API server, would keep all who do not need it from working.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar

Paused = Callable[[], AbstractAsyncContextManager[None]]
"""Around the waiting: gives the place up and takes one again."""

_place: ContextVar[Paused | None] = ContextVar("burgee_place", default=None)


@contextmanager
def placed(paused: Paused) -> Iterator[None]:
    """Around work that has a place."""
    token = _place.set(paused)
    try:
        yield
    finally:
        _place.reset(token)


@asynccontextmanager
async def elsewhere() -> AsyncIterator[None]:
    """Around the waiting for another machine; work without a place just waits. Raises what taking a place raises.

    Tasks that the block begins are nobody's: they give up and take nothing.
    """
    paused = _place.get()
    if paused is None:
        yield
        return
    token = _place.set(None)
    try:
        async with paused():
            yield
    finally:
        _place.reset(token)
