"""Threads for what may hang: nobody waits behind one, and it is known which still run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from ca.runtime.threads import KEEP_IDLE, to_thread, watch, when_over


class Hang:
    """Work that ends when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self) -> str:
        self.go.wait(60)
        return "over"


def alive() -> int:
    return sum(thread.name == "blocking" for thread in threading.enumerate())


async def test_results_and_errors_come_back() -> None:
    assert await to_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await to_thread(divmod, 7, 0)


async def test_what_hangs_outlives_its_cancellation_and_is_told() -> None:
    hang, over = Hang(), asyncio.Event()
    with watch() as unfinished:
        await to_thread(len, "")  # ends, and is told no more
        assert unfinished() == ()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asyncio.gather(to_thread(hang), to_thread(hang))  # in tasks of their own
        stuck = unfinished()
    assert len(stuck) == 2
    when_over(stuck, over.set)
    await asyncio.sleep(0.05)
    assert not over.is_set()
    hang.go.set()
    await asyncio.wait_for(over.wait(), 2)
    assert [one.result() for one in stuck] == ["over", "over"]


async def test_hanging_ones_keep_no_other_from_running_and_few_are_kept_afterwards() -> None:
    hang = Hang()
    calls = [asyncio.create_task(to_thread(hang)) for _ in range(100)]
    assert await asyncio.wait_for(to_thread(len, "abc"), 2) == 3
    assert await asyncio.wait_for(asyncio.to_thread(len, "abc"), 2) == 3
    hang.go.set()
    await asyncio.gather(*calls)
    for _ in range(200):
        if alive() <= KEEP_IDLE:
            break
        await asyncio.sleep(0.01)
    before = alive()
    assert before <= KEEP_IDLE
    for _ in range(50):
        await to_thread(len, "")
    assert alive() == before  # idle ones are used again


def test_a_hanging_thread_does_not_keep_the_program_from_ending() -> None:
    program = (
        "import asyncio, time\n"
        "from ca.runtime.threads import to_thread\n"
        "async def main():\n"
        "    try:\n"
        "        await asyncio.wait_for(to_thread(time.sleep, 60), 0.05)\n"
        "    except TimeoutError:\n"
        "        print('gave up')\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert ended.stdout == "gave up\n"
