"""What a piece of work costs in processor time: its steps on the event loop, and its threads.

Whoever has a budget meters what spends it; who is metered need not know. Processor time, not time that passes: waiting
for somebody else costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Meter:
    """Adds up; from any thread."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[float] = []

    @property
    def seconds(self) -> float:
        """So much so far."""
        return sum(self._parts)

    def add(self, seconds: float) -> None:
        """So much more."""
        self._parts.append(seconds)  # one step, where `+=` is two


_meter: ContextVar[Meter | None] = ContextVar("cpu", default=None)


@contextmanager
def metering() -> Iterator[Meter]:
    """Meters what the block begins by `steps` and `counted`, in its tasks and threads too."""
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def counted(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Does the work, and meters this thread if anybody asked."""
    meter = _meter.get()
    if meter is None:
        return work(*args, **kwargs)
    begun = time.thread_time()
    try:
        return work(*args, **kwargs)
    finally:
        meter.add(time.thread_time() - begun)


async def steps(work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Does the work, and meters each of its steps if anybody asked. What it begins as tasks of their own is not in
    it, unless they do what they do by `steps`."""
    meter = _meter.get()
    coroutine = work(*args, **kwargs)
    if meter is None:
        return await coroutine
    found: T = await _Steps(coroutine, meter)
    return found


class _Steps:
    def __init__(self, coroutine: Coroutine[Any, Any, Any], meter: Meter) -> None:
        self._coroutine = coroutine
        self._meter = meter

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any] = self._coroutine.send
        given: Any = None
        while True:
            begun = time.thread_time()
            try:
                waited_for = resume(given)
            except StopIteration as over:
                return over.value
            finally:
                self._meter.add(time.thread_time() - begun)
            try:
                given, resume = (yield waited_for), self._coroutine.send
            except BaseException as error:  # a cancellation too: it is for the coroutine to take
                given, resume = error, self._coroutine.throw
