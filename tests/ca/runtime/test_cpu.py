"""Metering processor time: steps and threads count, waiting does not, and what is metered goes on as it would."""

from __future__ import annotations

import asyncio
import time

import pytest

from ca.runtime.cpu import metering, steps
from ca.runtime.threads import to_thread

WORK = 0.02


def burn(seconds: float = WORK) -> str:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return "done"


async def test_steps_and_threads_count_and_waiting_does_not() -> None:
    async def work() -> str:
        burn()
        await asyncio.sleep(0.05)
        burn()
        return await to_thread(burn)

    with metering() as meter:
        assert await steps(work) == "done"
    assert WORK * 3 <= meter.seconds < WORK * 3 + 0.045


async def test_tasks_of_their_own_count_where_they_are_steps_too() -> None:
    async def work() -> None:
        burn()

    with metering() as meter:
        await asyncio.gather(asyncio.create_task(steps(work)), asyncio.create_task(work()))
    assert WORK <= meter.seconds < WORK * 2


async def test_other_work_meanwhile_is_not_in_it() -> None:
    async def wait() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    with metering() as meter:
        metered = asyncio.create_task(steps(wait))
    for _ in range(5):
        burn(0.005)
        await asyncio.sleep(0)
    await metered
    assert meter.seconds < 0.02


async def test_errors_and_cancellation_pass_through() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    cleaned: list[str] = []

    async def waits() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            cleaned.append("yes")
            raise
        return "never"

    with metering():
        with pytest.raises(KeyError):
            await steps(fails)
        task = asyncio.create_task(steps(waits))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert cleaned == ["yes"]


async def test_without_a_meter_nothing_is_in_between() -> None:
    async def work() -> int:
        return 7

    assert await steps(work) == 7
    assert await to_thread(burn, 0.001) == "done"
