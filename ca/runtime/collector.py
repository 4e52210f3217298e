"""Python's cyclic garbage collector in a program that makes much at its start and keeps it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

COLLECT_AFTER = (20_000, 20, 20)
"""Objects made, and younger collections, before the collector looks for cycles: a batch of 500 makes thousands."""
_lock = Lock()
_pauses: list[bool] = []
"""Of each thread that has it paused, whether it ran before."""


def start_is_over() -> None:
    """What start-up made lives as long as the process: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


@contextmanager
def paused() -> Iterator[None]:
    """While a thread makes very much of which it keeps little, without cycles: the collector would take all of that for
    something that lasts, and look at everything there is, during which no other thread runs."""
    with _lock:
        _pauses.append(gc.isenabled() or any(_pauses))
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            if _pauses.pop() and not _pauses:
                gc.enable()
