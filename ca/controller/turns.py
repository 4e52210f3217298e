"""Turns of many that share something: so many of one name at a time, the others in the order in which they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A name is remembered for as long as somebody has or awaits a turn of it."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._known: dict[str, int] = {}

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        turns = self._turns.setdefault(name, asyncio.Semaphore(self._each))
        self._known[name] = self._known.get(name, 0) + 1
        try:
            async with turns:
                yield
        finally:
            self._known[name] -= 1
            if not self._known[name]:
                del self._known[name], self._turns[name]
