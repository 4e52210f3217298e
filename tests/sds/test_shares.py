"""Places and turns: nobody has more than his share, and nobody waits behind another's queue."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest

from ca.errors import Exhausted
from sds.shares import FairQueue, Places


def test_places_are_counted_by_share_and_come_back():
    places = Places(2, what="things", reason="STREAM_LIMIT")
    with places.place("a"), places.place("a"):
        with pytest.raises(Exhausted) as refused, places.place("a"):
            pass
        assert (refused.value.reason, refused.value.detail) == (
            "STREAM_LIMIT",
            "this workload has 2 things already",
        )
        with places.place("b"):
            assert places.taken("b") == 1
    assert places.taken("a") == places.taken("b") == 0
    with places.place("a"):
        pass


class Yard:
    """Jobs that run until they are let go, in the order in which they were called."""

    def __init__(self, *, total: int, each: int) -> None:
        self.queue = FairQueue(total=total, each=each)
        self.running: list[str] = []
        self.order: list[str] = []
        self.most = 0
        self._go: dict[str, asyncio.Event] = {}

    def job(self, share: str, name: str) -> asyncio.Task[None]:
        self._go[name] = asyncio.Event()
        return asyncio.create_task(self._run(share, name))

    async def _run(self, share: str, name: str) -> None:
        async with self.queue.turn(share):
            self.running.append(name)
            self.order.append(name)
            self.most = max(self.most, len(self.running))
            try:
                await self._go[name].wait()
            finally:
                self.running.remove(name)

    async def let_go(self, *names: str) -> None:
        for name in names:
            self._go[name].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_newcomer_waits_behind_nobody_elses_queue():
    yard = Yard(total=2, each=2)
    hostile = [yard.job("h", f"h{n}") for n in range(100)]
    await settle()
    assert yard.running == ["h0", "h1"]
    neighbour = yard.job("n", "n0")
    await settle()
    await yard.let_go("h0")
    assert yard.running == ["h1", "n0"]  # the next free place is the neighbour's, 98 others or not
    assert yard.queue.waiting() == 98
    for task in (*hostile, neighbour):
        task.cancel()
    await asyncio.gather(*hostile, neighbour, return_exceptions=True)
    assert yard.running == []


async def test_one_share_leaves_places_free_for_others():
    yard = Yard(total=4, each=1)
    tasks = [yard.job("h", "h0"), yard.job("h", "h1"), yard.job("n", "n0")]
    await settle()
    assert yard.running == ["h0", "n0"]
    await yard.let_go("h0", "h1", "n0")
    await asyncio.gather(*tasks)
    assert yard.order == ["h0", "n0", "h1"]


async def test_turns_go_round():
    yard = Yard(total=1, each=1)
    tasks = [yard.job(name[0], name) for name in ("a0", "a1", "a2", "b0", "b1", "c0")]
    await settle()
    await yard.let_go("a0", "a1", "a2", "b0", "b1", "c0")
    await asyncio.gather(*tasks)
    assert yard.order == ["a0", "a1", "b0", "c0", "a2", "b1"]
    assert yard.most == 1


async def test_whoever_gives_up_leaves_no_hole():
    yard = Yard(total=1, each=1)
    first, second, third = yard.job("a", "a0"), yard.job("a", "a1"), yard.job("b", "b0")
    await settle()
    second.cancel()
    await settle()
    assert yard.queue.waiting() == 1
    yard._go["a0"].set()
    await first
    third.cancel()  # perhaps just called: its place must come back
    await settle()
    fourth = yard.job("c", "c0")
    await yard.let_go("c0")
    await asyncio.wait_for(fourth, 2)


async def test_what_does_not_end_keeps_a_place_of_its_share_and_none_of_the_others() -> None:
    queue = FairQueue(total=2, each=2, what="looks", reason="STUCK")
    threads: list[Future[None]] = []

    async def hanging() -> None:
        async with queue.turn("h") as turn:
            threads.append(Future())
            turn.unfinished = (threads[-1],)

    await hanging()
    await hanging()
    assert queue.stuck("h") == 2
    with pytest.raises(Exhausted, match="earlier looks of this workload hang") as refused:
        await asyncio.wait_for(hanging(), 1)  # at once: there is nothing to wait for
    assert refused.value.reason == "STUCK"
    async with queue.turn("n"), queue.turn("n"):  # both places that are for all
        assert queue.waiting() == 0
    threads[0].set_result(None)
    await settle()
    assert queue.stuck("h") == 1
    await asyncio.wait_for(hanging(), 1)
    assert queue.stuck("h") == 2


async def test_who_waits_already_is_told_when_the_last_place_is_kept() -> None:
    yard = Yard(total=4, each=1)
    hanging, waiting = yard.job("h", "h0"), yard.job("h", "h1")
    await settle()

    async def hang() -> None:
        async with yard.queue.turn("x") as turn:
            turn.unfinished = (Future(),)

    first, second = asyncio.create_task(hang()), asyncio.create_task(hang())
    await asyncio.wait_for(first, 1)
    with pytest.raises(Exhausted):
        await asyncio.wait_for(second, 1)
    await yard.let_go("h0", "h1")  # the other share goes on
    await asyncio.gather(hanging, waiting)
