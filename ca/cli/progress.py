"""A bar on standard error while something long goes on; nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

WIDTH = 30


class Advance(Protocol):
    """Called with how many are done."""

    def __call__(self, done: int) -> None: ...


@contextmanager
def progress(what: str, total: int, *, least: int) -> Iterator[Advance]:
    """For the length of a `with`; fewer than `least` are not worth a bar, and only a terminal gets one."""
    shown = total >= least and sys.stderr.isatty()

    def advance(done: int) -> None:
        if shown:
            full = WIDTH * done // max(total, 1)
            bar = "#" * full + "." * (WIDTH - full)
            print(f"\r{what} [{bar}] {done}/{total}", end="", file=sys.stderr, flush=True)

    advance(0)
    try:
        yield advance
    finally:
        if shown:
            print(file=sys.stderr)
