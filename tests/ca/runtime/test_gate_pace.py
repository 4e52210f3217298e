"""Who begins calls too fast is read more slowly, on all of his connections together, and loses nothing."""

from __future__ import annotations

import asyncio
import struct

from ca.runtime.gate_h2 import PREFACE, FrameTracker
from ca.runtime.gate_pace import BURST_SECONDS, MAX_SHARES, Pace, Throttle
from tests.ca.runtime.rig import until


def headers(stream: int, *, kind: int = 1, size: int = 20) -> bytes:
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, 4, stream) + bytes(size)


def test_a_burst_then_the_rate_and_everybody_for_himself():
    pace = Pace(10)
    assert pace.wait_seconds("a", 0.0) == 0
    pace.spend("a", 20, 0.0)
    assert pace.wait_seconds("a", 0.0) == 0  # the burst is spent, nothing is owed
    pace.spend("a", 5, 0.0)
    assert pace.wait_seconds("a", 0.0) == 0.5
    assert pace.wait_seconds("b", 0.0) == 0
    assert pace.wait_seconds("a", 0.5) == 0
    pace.spend("a", 1, 100.0)  # a long pause earns one burst and not more
    pace.spend("a", 20, 100.0)
    assert pace.wait_seconds("a", 100.0) == 0.1


def test_accounts_of_who_is_long_gone_are_forgotten():
    pace = Pace(10)
    for number in range(MAX_SHARES):
        pace.spend(str(number), 1, 0.0)
    pace.spend("new", 1, 2 * BURST_SECONDS)
    assert len(pace._accounts) == 1


def test_header_frames_are_counted_wherever_the_bytes_are_cut():
    stream = PREFACE + headers(0, kind=4, size=6) + headers(1) + headers(1, kind=0) + headers(3) + headers(3, kind=9)
    for step in (1, 2, 7, len(stream)):
        tracker = FrameTracker(skip_bytes=len(PREFACE))
        for start in range(0, len(stream), step):
            tracker.feed(stream[start : start + step])
        assert tracker.header_frames == 3


class World:
    """Two connections of one share."""

    def __init__(self, pace: Pace) -> None:
        self.got: list[bytes] = []
        self.events: list[str] = []
        self.one, self.two = (self._throttle(pace, name) for name in ("one", "two"))

    def _throttle(self, pace: Pace, name: str) -> Throttle:
        return Throttle(
            pace,
            "share",
            asyncio.get_running_loop(),
            forward=lambda plain: self.got.append(bytes(plain)),
            pause=lambda: self.events.append(f"{name} paused"),
            resume=lambda: self.events.append(f"{name} resumed"),
            slowed=lambda: self.events.append(f"{name} slowed"),
        )


async def test_what_came_too_fast_is_held_and_let_go_whole():
    world = World(Pace(100))
    world.one.receive(PREFACE + b"".join(headers(n) for n in range(1, 421, 2)))
    world.two.receive(PREFACE + headers(1))
    assert len(world.got) == 1
    assert world.two.holding
    assert world.events == ["two slowed", "two paused"]
    await until(lambda: not world.two.holding and len(world.got) == 2)
    assert world.got[1] == PREFACE + headers(1)
    assert world.events[-1] == "two resumed"


async def test_what_is_held_of_a_closed_connection_goes_nowhere():
    world = World(Pace(100))
    world.one.receive(PREFACE + b"".join(headers(n) for n in range(1, 421, 2)))
    world.two.receive(PREFACE + headers(1))
    world.two.close()
    await asyncio.sleep(0.2)
    assert len(world.got) == 1
    assert not world.two.holding
