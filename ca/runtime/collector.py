"""Python's cyclic garbage collector in a program that makes much at its start and keeps it."""

from __future__ import annotations

import gc

COLLECT_AFTER = (20_000, 20, 20)
"""Objects made, and younger collections, before the collector looks for cycles: a batch of 500 makes thousands."""


def start_is_over() -> None:
    """What start-up made lives as long as the process: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
