"""Threads for a foreign library that must not run where TLS does.

A PKCS#11 module is mostly linked to the libcrypto that Python's `ssl` uses as well, and leaves errors of its own in
that library's queue, of which each thread has one. The next `ssl` call in that thread that would only have had to wait
for bytes takes them for its own failure. So nothing but the module's calls runs in these threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

R = TypeVar("R")


class OwnThreads:
    """Made when they are needed, `most` at a time; work beyond that waits."""

    def __init__(self, most: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=most, thread_name_prefix=name)

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """For the event loop."""
        return await asyncio.wrap_future(self._submit(work, *arguments))

    def call(self, work: Callable[..., R], *arguments: Any) -> R:
        """For any other thread, which waits. Never from one of these."""
        return self._submit(work, *arguments).result()

    def _submit(self, work: Callable[..., R], *arguments: Any) -> Future[R]:
        return self._pool.submit(copy_context().run, work, *arguments)
