"""One thread for the blocking calls of an event loop, one after the other: a call costs half of an executor's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Call = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class OneThread:
    """Starts at the first call. A call that was handed in runs, though its caller be cancelled."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._started = False

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns or raises."""
        if not self._started:
            self._started = True
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._calls.put((loop, done, function, arguments))
        return await done

    def close(self) -> None:
        """Waits for the calls that were handed in. None may come after it."""
        self._calls.put(None)
        if self._started:
            self._thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, done, function, arguments = call
            result, failure = None, None
            try:
                result = function(*arguments)
            except BaseException as error:
                failure = error
            try:
                loop.call_soon_threadsafe(settle, done, result, failure)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass
            del call, done, function, arguments, result, failure


def settle(done: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    """On the future's loop; nothing where nobody waits for it any more."""
    if done.done():  # its caller was cancelled
        return
    if failure is None:
        done.set_result(result)
    else:
        done.set_exception(failure)
