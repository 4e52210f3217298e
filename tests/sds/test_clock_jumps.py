"""The wall clock set back or ahead by an hour: rotation goes on in time, and both clocks are named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from ca.ports import Clock
from sds.clock_watch import ClockWatch
from sds.condition import Condition, State
from tests.sds.lab import Authority, FakeServer, Lab, entry
from tests.support.clock import FakeClock


class OtherClock:
    """A server's clock that nobody sets: it moves with the agent's monotonic one."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._start = clock.now() - timedelta(seconds=clock.monotonic())

    def now(self):
        return self._start + timedelta(seconds=self._clock.monotonic())

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)


class World(Lab):
    """A lab whose server goes by its own clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.moves = clock
        server_clock: Clock = OtherClock(clock)
        self.authority = Authority(now=server_clock.now())
        self.server = FakeServer(self.authority, server_clock, self.cache.entry)
        self.condition = Condition(clock)
        self.condition.started()
        self.condition.in_touch()
        self.rotator._issuer = self.server
        self.rotator._clocks = ClockWatch(clock, self.condition)

    async def rounds(self, seconds: float) -> None:
        """What the rotator's loop would do in this time."""
        for _ in range(int(seconds / 60)):
            await self.moves.advance(60)
            self.cache.tick()
            await self.rotator.round()

    def said(self) -> tuple[str, str]:
        problem = self.condition.problem
        return (problem.reason, problem.detail) if problem else ("", "")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World(FakeClock())
    made.snapshot(entry("a"))
    await made.rotator.round()
    yield made
    await made.keys.close()


async def test_an_hour_back_rotation_goes_on_and_both_times_are_named(world: World) -> None:
    """Other nodes go by the true time: what the server issues is taken although it begins in our future."""
    first = world.cache.svid("a")
    world.moves.jump(-3600)
    await world.rounds(2100)
    second = world.cache.svid("a")
    assert second is not first
    reason, detail = world.said()
    assert reason == "CLOCK_BEHIND"
    assert f"the clock here says {(world.moves.now()).isoformat()[:13]}" in detail
    assert "begins at 2026-01-01T00:" in detail
    assert world.condition.state is State.DEGRADED
    for _ in range(3):  # and again, each in its time and not in a storm
        asked = len(world.server.asked)
        await world.rounds(2100)
        assert len(world.server.asked) == asked + 1
    world.moves.jump(3600)
    await world.rounds(2100)
    assert world.condition.state is State.OK


async def test_an_hour_ahead_nothing_expired_is_served_and_it_heals(world: World) -> None:
    """What the agent's clock calls expired is not handed out, whoever may be wrong."""
    world.moves.jump(2 * 3600)
    await world.rounds(120)
    subscription = world.cache.subscribe(entry("a").selectors, needs_svid=True)
    assert world.cache.content(subscription.view).svids == ()
    reason, detail = world.said()
    assert reason == "CLOCK_AHEAD"
    assert "expired at 2026-01-01T01:" in detail
    assert "the clock here says 2026-01-01T02:" in detail
    assert world.rotator.failure("a") == "CLOCK_AHEAD"
    world.moves.jump(-2 * 3600)
    await world.rounds(120)
    assert world.cache.content(subscription.view).svids
    assert world.condition.state is State.OK
