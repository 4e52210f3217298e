"""Who begins calls too fast is read more slowly, on all of his connections together, and loses nothing."""

from __future__ import annotations

import asyncio
import struct

from ca.runtime.gate_h2 import PREFACE, FrameTracker
from ca.runtime.gate_pace import BURST_SECONDS, LOST_SECONDS, MAX_SHARES, Pace, Throttle
from tests.ca.runtime.rig import until


def headers(stream: int, *, kind: int = 1, size: int = 20) -> bytes:
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, 4, stream) + bytes(size)


def test_a_burst_then_the_rate_and_everybody_for_himself():
    pace = Pace(10)
    assert pace.allowance("a", 0.0) == 20
    pace.spend("a", 20, 0, 0.0)
    assert pace.allowance("a", 0.0) == 0
    assert pace.wait_seconds("a", 0.0) == 0.1
    assert pace.wait_seconds("b", 0.0) == 0
    assert pace.allowance("a", 0.5) == 5
    assert pace.allowance("a", 100.0) == 20  # a long pause earns one burst and not more


def test_few_calls_of_a_share_may_be_unseen():
    pace = Pace(1000, max_unseen=4)
    pace.spend("a", 4, 4, 0.0)
    assert pace.allowance("a", 0.1) == 0
    assert pace.allowance("b", 0.1) == 4
    pace.seen("a", 1, 0.2)
    assert pace.allowance("a", 0.2) == 1
    pace.seen("a", 9, 0.3)  # more than there were: counted from nothing again
    assert pace.allowance("a", 0.3) == 4


def test_calls_that_nobody_ever_looks_at_are_given_up():
    """Who cancels what he has just begun, so that it never arrives, does not lock himself out."""
    pace = Pace(1000, max_unseen=4)
    pace.spend("a", 4, 4, 5.0)
    assert pace.wait_seconds("a", 5.25) == LOST_SECONDS - 0.25
    assert pace.allowance("a", 5.0 + LOST_SECONDS) == 4


def test_accounts_of_who_is_long_gone_are_forgotten():
    pace = Pace(10)
    for number in range(MAX_SHARES):
        pace.spend(str(number), 1, 1, 0.0)
    pace.spend("new", 1, 1, 2 * BURST_SECONDS)
    assert len(pace._accounts) == 1


def test_those_that_wait_for_the_next_call_come_one_after_the_other():
    pace = Pace(10)
    pace.spend("a", 20, 0, 0.0)
    for number in range(4):
        pace.hold("a", [number].pop, 0.0)
    assert [round(pace.wait_seconds("a", 0.0), 6) for _ in range(6)] == [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    assert round(pace.wait_seconds("a", 0.05), 6) == 0.4  # never later than everybody's turn


def test_header_frames_are_counted_wherever_the_bytes_are_cut():
    stream = PREFACE + headers(0, kind=4, size=6) + headers(1) + headers(1, kind=0) + headers(3) + headers(3, kind=9)
    for step in (1, 2, 7, len(stream)):
        tracker = FrameTracker(skip_bytes=len(PREFACE))
        for start in range(0, len(stream), step):
            tracker.feed(stream[start : start + step])
        assert tracker.header_frames == 3


def test_feeding_stops_before_the_payload_of_what_is_not_allowed():
    stream = PREFACE + headers(1) + headers(1, kind=0) + headers(3) + headers(3, kind=9)
    tracker, taken, steps = FrameTracker(skip_bytes=len(PREFACE)), 0, []
    for allowed in (0, 0, 1, 1, 0, 1):
        taken += tracker.feed(stream[taken:], allowed=allowed)
        steps.append((taken, tracker.header_frames, tracker.headers))
    first, frame = len(PREFACE) + 9, 29
    assert steps == [
        (first, 0, 0),
        (first, 0, 0),
        (first + 2 * frame, 1, 1),
        (first + 3 * frame, 2, 2),
        (first + 3 * frame, 2, 2),
        (len(stream), 3, 2),
    ]


class World:
    """Two connections of one share."""

    def __init__(self, pace: Pace, events: list[str] | None = None) -> None:
        self.got: list[bytes] = []
        self.events: list[str] = [] if events is None else events
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


def calls(count: int) -> bytes:
    return b"".join(headers(2 * n + 1) for n in range(count))


async def test_what_came_too_fast_is_held_and_let_go_whole():
    world = World(Pace(100, max_unseen=1000))
    world.one.receive(PREFACE + calls(200))
    world.two.receive(PREFACE + calls(1))
    assert world.got == [PREFACE + calls(200), PREFACE + calls(1)[:9]]
    assert world.two.holding
    assert world.events == ["two slowed", "two paused"]
    await until(lambda: not world.two.holding)
    assert world.got[2] == calls(1)[9:]
    assert world.events[-1] == "two resumed"


async def test_what_is_seen_lets_the_next_ones_in_one_connection_after_the_other():
    world = World(Pace(1000, max_unseen=2))
    world.one.receive(PREFACE + calls(3))
    world.two.receive(PREFACE + calls(3))
    assert world.got == [PREFACE + calls(2) + headers(5)[:9], PREFACE + headers(1)[:9]]
    world.one.seen()
    assert world.got[2:] == [headers(5)[9:]]
    assert not world.one.holding
    world.one.seen()
    assert world.got[3:] == [headers(1)[9:] + headers(3)[:9]]
    world.one.close()  # whose last call nobody will see now
    assert world.got[4:] == [headers(3)[9:] + headers(5)[:9]]
    await until(lambda: not world.two.holding)  # nobody looks any more: given up after a while
    assert b"".join(world.got[1:2] + world.got[3:]) == PREFACE + calls(3)


async def test_what_is_held_of_a_closed_connection_goes_nowhere():
    world = World(Pace(100, max_unseen=1000))
    world.one.receive(PREFACE + calls(200))
    world.two.receive(PREFACE + calls(1))
    world.two.close()
    await asyncio.sleep(0.2)
    assert len(world.got) == 2
    assert not world.two.holding


async def test_many_that_are_held_do_not_keep_the_loop_busy():
    """Each of them came again for every single call that became free."""
    events: list[str] = []
    pace = Pace(100, max_unseen=1000)
    pace.spend("share", 200, 0, asyncio.get_running_loop().time())
    held = [World(pace, events).one for _ in range(100)]
    for connection in held:
        connection.receive(PREFACE + calls(1000))
    slowed = events.count("one slowed")
    await asyncio.sleep(0.5)
    assert 25 <= events.count("one slowed") - slowed <= 100  # 50 calls became free
    for connection in held:
        connection.close()


async def test_a_closed_connection_is_forgotten_though_no_call_of_its_share_is_ever_seen():
    pace = Pace(100)
    for _ in range(3):
        connection = World(pace).one
        connection.receive(PREFACE + b"".join(headers(1, kind=9, size=0) for _ in range(300)))  # begins no call
        assert connection.holding
        connection.close()
    assert not pace._accounts["share"].held
