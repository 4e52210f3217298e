"""Admission: bounded, the most urgent first, and a hint for those who are sent away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ca.errors import Exhausted
from ca.runtime.elsewhere import elsewhere, placed
from ca.service import admission as module
from ca.service.admission import Admission, Turn
from ca.service.rates import TokenBuckets


class Desk:
    """Callers that come, work until they are let go, and leave their names in `served`."""

    def __init__(self, *, running: int = 1, waiting: int = 3, jitter: float = 0.0) -> None:
        self.now = 0.0
        self.admission = Admission(
            max_running=running, max_waiting=waiting, monotonic=lambda: self.now, jitter=lambda: jitter
        )
        self.served: list[str] = []
        self.doors: dict[str, asyncio.Event] = {}
        self.callers: dict[str, asyncio.Task[None]] = {}

    async def comes(self, name: str, *urgency: float, units: int = 1, share: object = None) -> None:
        self.doors[name] = asyncio.Event()
        self.callers[name] = asyncio.create_task(self._call(name, urgency, units, share))
        await self.settle()

    async def _call(self, name: str, urgency: tuple[float, ...], units: int, share: object) -> None:
        async with self.admission.turn(urgency, units=units, share=share):
            self.served.append(name)
            await self.doors[name].wait()

    async def leaves(self, name: str) -> None:
        self.now += 0.1
        self.doors[name].set()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)


@asynccontextmanager
async def desk(**options: float) -> AsyncIterator[Desk]:
    made = Desk(**options)  # type: ignore[arg-type]  # numbers of either kind
    yield made
    for door in made.doors.values():
        door.set()
    await asyncio.gather(*made.callers.values(), return_exceptions=True)
    assert (made.admission.running, made.admission.waiting) == (0, 0)


async def test_the_most_urgent_is_next() -> None:
    async with desk() as d:
        await d.comes("first", 1)
        await d.comes("new", 1)
        await d.comes("late", 0, 200)
        await d.comes("soon", 0, 100)
        for name in ("first", "soon", "late", "new"):
            assert d.served[-1] == name
            await d.leaves(name)


async def test_a_full_queue_sends_the_least_urgent_away_and_says_when_to_come_again() -> None:
    async with desk() as d:
        await d.comes("working", 1)
        for name, ends in (("a", 100), ("b", 300), ("c", 200)):
            await d.comes(name, 0, ends)
        await d.comes("newcomer", 1)
        with pytest.raises(Exhausted) as refused:
            await d.callers["newcomer"]
        assert refused.value.reason == "SERVER_BUSY"
        assert refused.value.retry_after_seconds is not None
        assert 0.5 <= refused.value.retry_after_seconds < 30
        await d.comes("urgent", 0, 50)
        with pytest.raises(Exhausted):
            await d.callers["b"]
        for name in ("working", "urgent", "a", "c"):
            await d.leaves(name)
        assert d.served == ["working", "urgent", "a", "c"]


async def test_hints_are_spread() -> None:
    hints = []
    for jitter in (0.0, 1.0):
        async with desk(waiting=1, jitter=jitter) as d:
            await d.comes("working", 1)
            await d.comes("waiting", 1)
            await d.comes("refused", 1)
            with pytest.raises(Exhausted) as refused:
                await d.callers["refused"]
            hints.append(refused.value.retry_after_seconds)
    assert hints[1] == 2 * hints[0]


async def test_large_calls_count_for_more_and_the_largest_run_alone() -> None:
    async with desk(running=4, waiting=100) as d:
        await d.comes("three", 1, units=3)
        await d.comes("two", 1, units=2)
        await d.comes("nine", 0, units=9)
        assert d.served == ["three"]
        await d.leaves("three")
        assert d.served == ["three", "nine"]
        await d.leaves("nine")
        assert d.served == ["three", "nine", "two"]


async def test_one_caller_cannot_have_the_queue_for_itself() -> None:
    async with desk(waiting=8) as d:
        await d.comes("working", 1)
        await d.comes("greedy 1", 0, 1, share="greedy")
        await d.comes("greedy 2", 0, 1, share="greedy")
        await d.comes("greedy 3", 0, 1, share="greedy")
        with pytest.raises(Exhausted) as refused:
            await d.callers["greedy 3"]
        assert refused.value.reason == "QUEUE_SHARE"
        await d.comes("modest", 0, 1, share="modest")
        assert not d.callers["modest"].done()


async def test_a_turn_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    async with desk() as d:
        await d.comes("working", 1)
        await d.comes("waiting", 1)
        with pytest.raises(Exhausted, match="did not come"):
            await d.callers["waiting"]
        assert d.admission.waiting == 0


async def test_who_leaves_while_waiting_frees_the_place_and_keeps_no_turn() -> None:
    async with desk() as d:
        await d.comes("working", 1)
        await d.comes("gone", 1)
        await d.comes("next", 1)
        d.callers["gone"].cancel()
        await d.settle()
        assert d.admission.waiting == 1
        await d.leaves("working")
        assert d.served == ["working", "next"]
        # Cancelled in the very moment in which its turn came.
        await d.comes("unlucky", 1)
        await d.comes("after", 1)
        d.doors["next"].set()
        await asyncio.sleep(0)
        d.callers["unlucky"].cancel()
        await d.settle()
        assert d.served[-1] == "after"


async def test_a_silent_caller_keeps_nobody_from_working() -> None:
    async with desk() as d:
        answer = asyncio.Event()
        events: list[str] = []

        async def challenged() -> None:
            async with d.admission.turn((1,)) as turn:
                await self_paused(turn)

        async def self_paused(turn: Turn) -> None:
            async with turn.paused():
                events.append("asked")
                await answer.wait()
            events.append("answered")

        task = asyncio.create_task(challenged())
        await d.settle()
        await d.comes("other", 1)
        assert (events, d.served) == (["asked"], ["other"])
        answer.set()
        await d.settle()
        assert events == ["asked"]
        await d.leaves("other")
        await task
        assert events == ["asked", "answered"]


async def test_pauses_of_one_turn_that_overlap_take_it_once() -> None:
    async with desk() as d:
        answers = [asyncio.Event(), asyncio.Event()]

        async def ask(number: int) -> None:
            async with elsewhere(), elsewhere():  # the inner one does nothing
                await answers[number].wait()

        async def caller() -> None:
            async with d.admission.turn((1,)) as turn:
                with placed(turn.paused):
                    await asyncio.gather(ask(0), ask(1))
                assert d.admission.running == 1

        task = asyncio.create_task(caller())
        await d.settle()
        assert d.admission.running == 0
        answers[1].set()
        await d.settle()
        assert d.admission.running == 0
        answers[0].set()
        await task
        assert d.admission.running == 0


async def test_a_pause_that_fails_takes_nothing() -> None:
    async with desk() as d:

        async def failing() -> None:
            async with d.admission.turn((1,)) as turn:
                with placed(turn.paused):
                    async with elsewhere():
                        raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            await failing()
        assert d.admission.running == 0
        async with elsewhere():  # outside of any turn it does nothing
            assert d.admission.running == 0


def test_buckets_fill_again() -> None:
    buckets = TokenBuckets(per_second=10, burst_seconds=2)
    assert [buckets.take("a", 10, 0.0) for _ in range(3)] == [0.0, 0.0, 1.0]
    assert buckets.take("b", 20, 0.0) == 0.0
    assert buckets.take("a", 10, 0.5) == 0.5
    assert buckets.take("a", 10, 1.0) == 0.0
    assert buckets.take("a", 1, 100.0) == 0.0
    # More than a bucket ever holds is granted to a full one and paid for later.
    assert buckets.take("c", 50, 0.0) == 0.0
    assert buckets.take("c", 1, 1.0) == pytest.approx(2.1)


def test_buckets_forget_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.service.rates.MAX_CALLERS", 2)
    buckets = TokenBuckets(per_second=1, burst_seconds=1)
    for caller in ("a", "b", "c"):
        assert buckets.take(caller, 1, 0.0) == 0.0
    assert buckets.take("c", 1, 0.0) == 1.0
    assert buckets.take("a", 1, 0.0) == 0.0
