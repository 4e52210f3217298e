"""Requests on SDS streams: a workload that sends them without end is read more slowly, its neighbours are not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from sds.request_pace import BURST_SECONDS, MAX_SHARES, RequestPace
from tests.sds.lab import Lab, Me, entry, eventually
from tests.support.clock import FakeClock
from tests.support.workload_client import SdsCall

RATE = 50
BURST = int(RATE * BURST_SECONDS)


class Line:
    """Requests of one share that come all at once."""

    def __init__(self, pace: RequestPace, share: str, count: int, *, size_bytes: int = 0) -> None:
        self.seen = 0
        self.tasks = [asyncio.create_task(self._ask(pace, share, size_bytes)) for _ in range(count)]

    async def _ask(self, pace: RequestPace, share: str, size_bytes: int) -> None:
        await pace.turn(share, size_bytes)
        self.seen += 1


async def test_a_burst_passes_and_the_rest_comes_at_the_rate_while_others_pass() -> None:
    clock = FakeClock()
    pace = RequestPace(RATE, clock)
    line = Line(pace, "h", 2 * BURST)
    await clock.advance(0)
    assert line.seen == pytest.approx(BURST, abs=1)
    await clock.advance(0.5)
    assert line.seen == pytest.approx(BURST + RATE / 2, abs=1)
    await asyncio.wait_for(pace.turn("n", 0), 1)  # without the clock moving
    await clock.advance(BURST_SECONDS)
    assert line.seen == 2 * BURST


async def test_long_requests_count_for_more() -> None:
    clock = FakeClock()
    line = Line(RequestPace(RATE, clock), "h", BURST, size_bytes=9 * 1024)
    await clock.advance(0)
    assert line.seen == pytest.approx(BURST / 10, abs=1)
    for task in line.tasks:
        task.cancel()


async def test_what_was_given_up_is_not_paid_for() -> None:
    clock = FakeClock()
    pace = RequestPace(RATE, clock)
    line = Line(pace, "h", 3 * BURST)
    await clock.advance(0)
    for task in line.tasks:
        task.cancel()
    await asyncio.gather(*line.tasks, return_exceptions=True)
    waiting = Line(pace, "h", 1)
    await clock.advance(2 / RATE)
    assert waiting.seen == 1


async def test_shares_that_have_paid_are_forgotten() -> None:
    clock = FakeClock()
    pace = RequestPace(RATE, clock)
    for number in range(MAX_SHARES):
        await pace.turn(f"old {number}", 0)
    await clock.advance(2 * BURST_SECONDS)
    await pace.turn("new", 0)
    assert set(pace._paid_at) == {"new"}


@pytest.fixture
def other() -> Iterator[int]:
    """Another process, whose share is the hostile one."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.communicate()


@pytest.fixture
async def lab(other: int) -> AsyncIterator[Lab]:
    lab = Lab()
    lab.pace = RequestPace(RATE, lab.clock)
    lab.workloads._share_of = lambda process: "hostile" if process.pid == other else "neighbour"
    async with lab:
        await lab.issued(entry("a"))
        yield lab


class Flood:
    """A client that asks for ever other names, as fast as it is let, and counts the answers."""

    def __init__(self, call: SdsCall, *names: str) -> None:
        self.answers = 0
        self._call = call
        self._names = names
        self._tasks = [asyncio.create_task(self._ask()), asyncio.create_task(self._read())]

    async def _ask(self) -> None:
        for number in range(100_000):
            await self._call.ask("default", f"n{number}", *self._names)

    async def _read(self) -> None:
        while True:
            await self._call.read()
            self.answers += 1

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.call.cancel()


async def flood(lab: Lab, call: SdsCall, pid: int, *names: str) -> Flood:
    """Begun as the process `pid`; whoever connects next is this process again."""
    lab.caller = Me(pid=pid)
    made = Flood(call, *names)
    await eventually(lambda: made.answers > 0)
    lab.caller = Me()
    return made


async def test_a_stream_that_asks_without_end_is_read_slowly_and_a_neighbours_is_answered(lab: Lab, other: int) -> None:
    began = time.monotonic()
    async with lab.client() as hostile, lab.client() as client:
        flooding = await flood(lab, hostile.sds(), other)
        await eventually(lambda: flooding.answers >= BURST - 1)
        neighbour = client.sds()
        for name in ("default", "ROOTCA", "default"):  # asked and acknowledged on one stream
            await neighbour.ask(name)
            await asyncio.wait_for(neighbour.read(), 2)
            await neighbour.ack(name)
        before, at = flooding.answers, time.monotonic()
        await asyncio.sleep(0.5)
        assert 0 < flooding.answers - before <= RATE * (time.monotonic() - at) + 2
        assert flooding.answers <= BURST + RATE * (time.monotonic() - began) + 2
        await flooding.stop()


async def test_many_names_count_for_many_requests(lab: Lab, other: int) -> None:
    began = time.monotonic()
    async with lab.client() as hostile:
        flooding = await flood(lab, hostile.sds(), other, *(f"x{number}" for number in range(160)))
        await asyncio.sleep(0.5)
        assert flooding.answers <= (BURST + RATE * (time.monotonic() - began)) / 10
        await flooding.stop()


async def test_single_fetches_are_paced_too(lab: Lab) -> None:
    async with lab.client() as client:
        began = time.monotonic()
        await asyncio.gather(*(client.fetch_secrets("default") for _ in range(BURST + RATE)))
        assert time.monotonic() - began > 0.9
