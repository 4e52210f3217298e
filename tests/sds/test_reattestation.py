"""Attesting again: everybody once an interval, never all at once, within the budget, and nobody behind who hangs."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from ca.runtime import cpu
from sds.reattestation import UNSEEN, Budget, Reattestation
from tests.support.clock import FakeClock

INTERVAL = 10.0


@dataclass(eq=False)
class Item:
    number: int
    share: str = ""
    followed: bool = True


class Bench:
    """A number of items, what each attestation costs in processor time, and when each was attested."""

    def __init__(
        self, number: int, *, cost: float = 0.0, cpu_share: float = 0.1, each: int = 2, total: int = 16
    ) -> None:
        self.clock = FakeClock()
        self.cost = cost
        self.hanging: set[str] = set()
        self.free = asyncio.Event()
        self.when: dict[int, list[float]] = {n: [] for n in range(number)}
        self.items = [Item(n, f"share-{n}") for n in range(number)]
        self.most = 0
        self.now_running: Counter[str] = Counter()
        jitter = iter([(n + 1) / number for n in range(number)] * 10)
        self.again = Reattestation(
            self._attest,
            clock=self.clock,
            interval_seconds=INTERVAL,
            cpu_share=cpu_share,
            each=each,
            total=total,
            jitter=lambda: next(jitter),
        )

    async def _attest(self, item: Item) -> None:
        self.when[item.number].append(self.clock.monotonic())
        self.now_running[item.share] += 1
        self.most = max(self.most, self.now_running.total())
        meter = cpu._meter.get()
        assert meter is not None
        meter.add(self.cost / UNSEEN)
        if item.share in self.hanging:
            await self.free.wait()
        self.now_running[item.share] -= 1

    async def __aenter__(self) -> Bench:
        for item in self.items:
            self.again.follow(item)
        self.task = asyncio.create_task(self.again.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    @property
    def attested(self) -> int:
        return sum(len(times) for times in self.when.values())


async def test_a_thousand_are_attested_once_an_interval_and_evenly_over_it() -> None:
    async with Bench(1000, cost=0.0005) as bench:
        before = bench.attested
        most = 0
        for _ in range(100):
            await bench.clock.advance(INTERVAL / 100)
            most, before = max(most, bench.attested - before), bench.attested
        await bench.clock.advance(INTERVAL / 100)
        assert all(1 <= len(times) <= 2 for times in bench.when.values())
        assert most <= 2 * 1000 / 100, "a burst"
        await bench.clock.advance(2 * INTERVAL)
        gaps = [b - a for times in bench.when.values() for a, b in pairwise(times)]
        assert max(gaps) <= INTERVAL * 1.1
        assert bench.again.behind_seconds <= INTERVAL * 0.1


@pytest.mark.parametrize("number", [1, 3])
async def test_few_are_attested_in_time_too(number: int) -> None:
    async with Bench(number) as bench:
        await bench.clock.advance(3 * INTERVAL)
        assert all(2 <= len(times) <= 3 for times in bench.when.values())
        assert max(times[0] for times in bench.when.values()) <= INTERVAL * 1.1


async def test_no_more_is_spent_than_the_share_and_the_longest_due_come_first() -> None:
    """A thousand that cost 4 ms each are 40 % of a core in ten seconds; 10 % are allowed, so it takes forty."""
    async with Bench(1000, cost=0.004, cpu_share=0.1) as bench:
        for _ in range(8):
            before = bench.attested
            with capture_logs() as logs:
                await bench.clock.advance(INTERVAL)
            spent = (bench.attested - before) * bench.cost
            assert spent <= (INTERVAL + 1) * 0.1 + bench.cost * 2
        assert all(1 <= len(times) <= 3 for times in bench.when.values()), "everybody has a turn"
        assert bench.again.behind_seconds > INTERVAL
        assert not logs, "it was said, and is not said again every moment"
        bench.cost = 0.0001
        await bench.clock.advance(3 * INTERVAL)
        assert bench.again.behind_seconds <= INTERVAL * 0.1


async def test_that_it_is_behind_is_said_once() -> None:
    async with Bench(500, cost=0.02) as bench:
        with capture_logs() as logs:
            await bench.clock.advance(4 * INTERVAL)
    (line,) = [line for line in logs if line.get("reason") == "ATTESTATION_BEHIND"]
    assert "attest_cpu_share" in line["hint"]


async def test_more_than_there_are_places_are_attested_in_time() -> None:
    async with Bench(5000, total=2, cpu_share=1) as bench:
        for _ in range(12):  # the clock lets the loop run a few times only for each of its steps
            await bench.clock.advance(INTERVAL / 10)
            for _ in range(2000):
                await asyncio.sleep(0)
        assert all(bench.when.values())


async def test_a_workload_that_hangs_holds_up_itself_alone() -> None:
    bench = Bench(100, total=8)
    for item in bench.items[:50]:
        item.share = "hostile"
    bench.hanging = {"hostile"}
    async with bench:
        await bench.clock.advance(3 * INTERVAL)
        assert bench.now_running["hostile"] == 2
        assert all(len(bench.when[item.number]) >= 2 for item in bench.items[50:])
        bench.hanging.clear()
        bench.free.set()
        await bench.clock.advance(3 * INTERVAL)
        assert all(bench.when[item.number] for item in bench.items[:50])


async def test_no_more_at_once_than_there_are_places() -> None:
    bench = Bench(100, total=4)
    bench.hanging = {item.share for item in bench.items}
    async with bench:
        await bench.clock.advance(3 * INTERVAL)
        assert bench.most == 4
        bench.hanging.clear()
        bench.free.set()


async def test_whom_nobody_follows_is_let_go_and_may_come_again() -> None:
    async with Bench(10) as bench:
        for item in bench.items:
            bench.again.follow(item)  # twice is once
            item.followed = False
        await bench.clock.advance(1.2 * INTERVAL)
        assert bench.attested == 0
        assert not bench.again._due
        assert not bench.again._held
        bench.items[3].followed = True
        bench.again.follow(bench.items[3])
        await bench.clock.advance(1.2 * INTERVAL)
        assert [n for n, times in bench.when.items() if times] == [3]


async def test_one_that_fails_does_not_end_it() -> None:
    clock, tried = FakeClock(), 0

    async def fails(item: Item) -> None:
        nonlocal tried
        tried += 1
        raise KeyError("x")

    again = Reattestation(fails, clock=clock, interval_seconds=1, cpu_share=1, each=1, total=1)
    again.follow(Item(0))
    task = asyncio.create_task(again.run())
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await clock.advance(3.5)
    assert tried >= 3
    assert all(line["log_level"] == "error" for line in logs)
    task.cancel()


def test_a_budget_is_a_share_of_the_time_and_little_is_saved_up() -> None:
    budget = Budget(0.1, now=0)
    assert budget.allows(0)
    budget.passed(1000)
    budget.spent(0.1)
    assert not budget.allows(0), "a thousand idle seconds are no hundred seconds of work"
    budget.passed(1000.05)
    assert budget.allows(0)
    assert not budget.allows(1), "what runs is expected to cost what the others did"
