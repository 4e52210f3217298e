"""Threads for a foreign library that must not run where TLS does.

A PKCS#11 module is mostly linked to the libcrypto that Python's `ssl` uses as well, and leaves errors of its own in
that library's queue, of which each thread has one. The next `ssl` call in that thread that would only have had to wait
for bytes takes them for its own failure. So nothing that speaks TLS runs in these threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

R = TypeVar("R")


class OwnThreads:
    """Made when they are needed, `most` at a time; work beyond that waits."""

    def __init__(self, most: int, name: str) -> None:
        self._here = threading.local()
        self.executor: Executor = ThreadPoolExecutor(
            max_workers=most, thread_name_prefix=name, initializer=lambda: setattr(self._here, "own", True)
        )

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """For the event loop."""
        return await asyncio.wrap_future(self._submit(work, *arguments))

    def call(self, work: Callable[..., R], *arguments: Any) -> R:
        """For any other thread, which waits; in one of these at once."""
        if getattr(self._here, "own", False):
            return work(*arguments)
        return self._submit(work, *arguments).result()

    def _submit(self, work: Callable[..., R], *arguments: Any) -> Future[R]:
        return self.executor.submit(copy_context().run, work, *arguments)
