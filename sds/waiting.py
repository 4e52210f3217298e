"""Sleeping until the time has come or somebody asks for attention."""

from __future__ import annotations

import asyncio

from ca.ports import Clock


async def sleep_or(clock: Clock, seconds: float, event: asyncio.Event) -> None:
    """Return after `seconds` or once `event` is set, whichever is first; the event stays as it is."""
    tasks = [asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(event.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
