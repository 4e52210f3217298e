"""OneThread: blocking calls of a loop on one thread."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ca.runtime.one_thread import OneThread


async def test_calls_run_one_after_the_other_on_one_thread_that_is_not_ours() -> None:
    thread, order = OneThread("t"), []

    def note(number: int) -> tuple[int, str]:
        time.sleep(0.01 * (3 - number))
        order.append(number)
        return number, threading.current_thread().name

    assert await asyncio.gather(*(thread.run(note, n) for n in range(3))) == [(n, "t") for n in range(3)]
    assert order == [0, 1, 2]
    thread.close()


async def test_what_a_call_raises_its_caller_gets_and_the_next_one_runs() -> None:
    thread = OneThread("t")
    with pytest.raises(KeyError):
        await thread.run({}.__getitem__, "missing")
    assert await thread.run(len, "four") == 4
    thread.close()


async def test_a_call_that_was_handed_in_runs_though_its_caller_is_cancelled() -> None:
    thread, ran, go = OneThread("t"), threading.Event(), threading.Event()

    def work() -> None:
        go.wait(5)
        ran.set()

    caller = asyncio.create_task(thread.run(work))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go.set()
    thread.close()
    assert ran.is_set()


def test_a_loop_that_is_closed_meanwhile_harms_nobody() -> None:
    thread, go = OneThread("t"), threading.Event()

    async def leave() -> None:
        call = asyncio.create_task(thread.run(go.wait, 5))
        await asyncio.sleep(0)
        call.cancel()

    asyncio.run(leave())
    go.set()
    thread.close()
    assert not thread._thread.is_alive()


def test_one_that_never_ran_can_be_closed() -> None:
    OneThread("t").close()
