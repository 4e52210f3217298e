"""Work that blocks, perhaps for ever: on a file system or a name service that does not answer.

Whoever gives up waiting for a thread does not end it; nobody can. In a pool of so many threads those that hang would in
time be all. So each call has a thread to itself here, and who bounds how many there are (as `sds.shares` does, for each
workload) is told which of them still run. Nobody waits for them when the program ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar

from ca.runtime.cpu import counted

KEEP_IDLE = 16
"""Threads that are kept for the next calls; further ones end with theirs."""

P = ParamSpec("P")
T = TypeVar("T")
Begun = Future[Any]
_Inbox = SimpleQueue[tuple[Begun, Callable[[], Any]]]
_watched: ContextVar[list[Begun] | None] = ContextVar("watched", default=None)


async def to_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As asyncio.to_thread, but no other call waits for its thread. When it is cancelled the thread goes on."""
    begun: Future[T] = _threads.begin(partial(copy_context().run, partial(counted, work, *args, **kwargs)))
    watched = _watched.get()
    if watched is not None:
        watched.append(begun)
    return await asyncio.wrap_future(begun)


@contextmanager
def watch() -> Iterator[Callable[[], tuple[Begun, ...]]]:
    """Gives what tells which threads that the block began, in tasks of its own too, have not ended."""
    begun: list[Begun] = []
    token = _watched.set(begun)
    try:
        yield lambda: tuple(one for one in begun if not one.done())
    finally:
        _watched.reset(token)


def when_over(threads: Iterable[Begun], then: Callable[[], None]) -> None:
    """`then` is called by this loop once all of them have ended, and not if it is closed before that."""
    loop, left = asyncio.get_running_loop(), set(threads)

    def over(one: Begun) -> None:
        left.discard(one)
        if not left:
            then()

    def tell(one: Begun) -> None:  # in the thread that ended
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(over, one)

    for one in tuple(left):
        one.add_done_callback(tell)


class _Threads:
    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: list[_Inbox] = []

    def begin(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = SimpleQueue()
            Thread(target=self._serve, args=(inbox,), name="blocking", daemon=True).start()
        inbox.put((future, work))
        return future

    def _serve(self, inbox: _Inbox) -> None:
        kept = True
        while kept:
            future, work = inbox.get()
            settle = _outcome(future, work)
            del work
            kept = self._keep(inbox)  # before anybody knows the outcome: the next call finds this thread
            settle()
            del future, settle

    def _keep(self, inbox: _Inbox) -> bool:
        with self._lock:
            if len(self._idle) >= KEEP_IDLE:
                return False
            self._idle.append(inbox)
            return True


def _outcome(future: Begun, work: Callable[[], Any]) -> Callable[[], None]:
    """Does the work, unless it was cancelled before it began; what comes of it is told by the returned function."""
    if not future.set_running_or_notify_cancel():
        return _nothing
    try:
        return partial(future.set_result, work())
    except BaseException as error:
        return partial(future.set_exception, error)


def _nothing() -> None: ...


_threads = _Threads()
