"""A mirror and a lease by a scripted API: nothing is taken for gone that was only not answered, and one alone leads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from ca.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from ca.runtime.clock import SystemClock
from ca.runtime.kube import KubeClient
from ca.runtime.kube_lease import LeaderElection
from ca.runtime.kube_mirror import Mirror
from ca.runtime.kube_watch import Event, Listing, Object
from tests.support.clock import FakeClock


def thing(name: str, version: int, value: str = "x") -> Object:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, "value": value}


GONE = NotFound("too old", reason="KUBE_GONE")
BROKEN = Unavailable("gone away", reason="HTTP_UNREACHABLE")
ODD = Unavailable("no JSON", reason="KUBE_ANSWER")
Step = Listing | list[Event] | Exception


class Script:
    """Answers lists and watches, one step after the other; then waits. `asked` has the versions of the watches."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)
        self.asked: list[str] = []

    async def list(self, path: str, **options: Any) -> Listing:
        self.asked.append("list")
        found = self._next()
        assert isinstance(found, Listing)
        return found

    async def watch(self, path: str, version: str, **options: Any) -> AsyncGenerator[Event, None]:
        self.asked.append(version)
        if not self._steps:
            await asyncio.Event().wait()
        found = self._next()
        assert isinstance(found, list)
        options["opened"]()
        for event in found:
            yield event

    def _next(self) -> Any:
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


async def followed(*steps: Step) -> tuple[Mirror[str], list[Any], list[str]]:
    """The mirror after these steps, what it told, and what it asked for."""
    script, told = Script(*steps), []
    mirror = Mirror[str](
        cast(KubeClient, script),
        "/things",
        lambda value: value["value"] or None,
        what="things",
        clock=_Hasty(),
        changed=lambda *change: told.append(change),
    )
    task = asyncio.create_task(mirror.run())
    try:
        async with asyncio.timeout(20):
            while script._steps or script.asked[-1:] in ([], ["list"]):  # noqa: ASYNC110 - a script tells nobody
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return mirror, told, script.asked


class _Hasty(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


START = Listing([thing("a", 1), thing("b", 2)], "5")


async def test_events_change_what_the_list_had() -> None:
    mirror, told, asked = await followed(
        START,
        [Event("ADDED", thing("c", 6)), Event("MODIFIED", thing("a", 7, "y")), Event("DELETED", thing("b", 8))],
    )
    assert mirror.items == {"a": "y", "c": "x"}
    assert sorted(told[:2]) == [("a", None, "x", False), ("b", None, "x", False)]
    assert told[2:] == [("c", None, "x", True), ("a", "x", "y", True), ("b", "x", None, True)]
    assert asked == ["list", "5", "8"]


async def test_what_did_not_change_is_not_told_and_what_is_left_out_is_gone() -> None:
    _, told, _ = await followed(START, [Event("MODIFIED", thing("a", 6)), Event("MODIFIED", thing("b", 7, ""))])
    assert told[2:] == [("b", "x", None, True)]


async def test_a_watch_that_breaks_goes_on_where_it_was() -> None:
    mirror, told, asked = await followed(START, [Event("BOOKMARK", thing("", 9))], BROKEN, BROKEN, [])
    assert (asked, len(told), mirror.problem) == (["list", "5", "9", "9", "9", "9"], 2, None)


async def test_an_expired_one_lists_again_and_tells_the_difference_alone() -> None:
    again = Listing([thing("b", 2), thing("c", 20)], "30")
    mirror, told, asked = await followed(START, GONE, again)
    assert (mirror.items, asked) == ({"b": "x", "c": "x"}, ["list", "5", "list", "30"])
    assert sorted(told[2:]) == [("a", "x", None, False), ("c", None, "x", False)]


async def test_nothing_is_gone_because_nobody_answers() -> None:
    mirror, told, asked = await followed(START, ODD, BROKEN, ODD, BROKEN, GONE, START)
    assert (mirror.items, len(told), mirror.synced) == ({"a": "x", "b": "x"}, 2, True)
    assert asked.count("list") == 6


class Leases:
    """One Lease with its versions."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.away = False

    async def get(self, path: str) -> Object:
        self._there()
        if self.lease is None:
            raise NotFound("none", reason="KUBE_NOT_FOUND")
        return _copy(self.lease)

    async def create(self, path: str, body: Mapping[str, Any]) -> Object:
        self._there()
        if self.lease is not None:
            raise AlreadyExists("there", reason="KUBE_EXISTS")
        self.lease = _copy(body)
        self.lease["metadata"]["resourceVersion"] = "1"
        return _copy(self.lease)

    async def update(self, path: str, body: Mapping[str, Any]) -> Object:
        self._there()
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise FailedPrecondition("changed", reason="KUBE_CONFLICT")
        self.lease = _copy(body)
        self.lease["metadata"]["resourceVersion"] = str(int(body["metadata"]["resourceVersion"]) + 1)
        return _copy(self.lease)

    def _there(self) -> None:
        if self.away:
            raise Unavailable("away", reason="HTTP_UNREACHABLE")


def _copy(value: Mapping[str, Any]) -> Object:
    return {"metadata": dict(value["metadata"]), "spec": dict(value["spec"])}


@asynccontextmanager
async def candidates(
    leases: Leases, clock: FakeClock, count: int = 2
) -> AsyncIterator[list[tuple[LeaderElection, asyncio.Task[None]]]]:
    found = []
    for number in range(count):
        election = LeaderElection(
            cast(KubeClient, leases), namespace="a", name="b", identity=f"me-{number}", clock=clock
        )
        found.append((election, asyncio.create_task(election.run())))
        await clock.advance(0.1)
    try:
        yield found
    finally:
        for _, task in found:
            task.cancel()
        await asyncio.gather(*(task for _, task in found), return_exceptions=True)


async def pass_by(clock: FakeClock, seconds: float, holds: Callable[[], bool]) -> None:
    for _ in range(int(seconds * 5)):
        assert holds()
        await clock.advance(0.2)


async def test_one_leads_and_goes_on_leading() -> None:
    leases, clock = Leases(), FakeClock()
    async with candidates(leases, clock, 3) as made:
        first, *others = [election for election, _ in made]
        await pass_by(clock, 60, lambda: first.leading and not any(one.leading for one in others))


async def test_a_leader_that_cannot_renew_stops_before_another_begins() -> None:
    leases, clock = Leases(), FakeClock()
    async with candidates(leases, clock) as [(first, task), (second, _)]:
        first._release = _nothing  # type: ignore[method-assign] - as if it were killed
        task.cancel()
        await pass_by(clock, 14, lambda: not second.leading)
        assert not first.leading
        for _ in range(30):
            await clock.advance(0.2)
        assert second.leading
        assert leases.lease is not None
        assert leases.lease["spec"]["leaseTransitions"] == 1


async def test_an_orderly_end_is_noticed_at_the_next_look() -> None:
    leases, clock = Leases(), FakeClock()
    async with candidates(leases, clock) as [(first, task), (second, _)]:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not first.leading
        for _ in range(13):
            await clock.advance(0.2)
        assert second.leading


async def test_while_the_api_is_away_nobody_leads_for_long_and_afterwards_one_does() -> None:
    leases, clock = Leases(), FakeClock()
    async with candidates(leases, clock) as [(first, _), (second, _)]:
        leases.away = True
        await clock.advance(5)
        assert first.leading, "a short absence changes nothing"
        for _ in range(60):
            await clock.advance(0.2)
        assert not first.leading
        assert not second.leading
        leases.away = False
        for _ in range(100):
            await clock.advance(0.2)
            assert not (first.leading and second.leading)
        assert first.leading or second.leading


async def test_a_leader_that_was_given_more_time_is_believed_to_lead_for_so_long() -> None:
    """As while a new configuration is rolled out: its own idea of its time is in the Lease."""
    leases, clock = Leases(), FakeClock()
    patient, hasty = (
        LeaderElection(
            cast(KubeClient, leases), namespace="a", name="b", identity=name, clock=clock, duration_seconds=seconds
        )
        for name, seconds in (("patient", 60.0), ("hasty", 15.0))
    )
    tasks = [asyncio.create_task(patient.run())]
    await clock.advance(1)
    tasks.append(asyncio.create_task(hasty.run()))
    await clock.advance(1)
    patient._held = _away  # type: ignore[method-assign] - it alone does not reach the API server
    try:
        await pass_by(clock, 90, lambda: not (patient.leading and hasty.leading))
        assert hasty.leading
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("odd", [5, "x", ["x"], {"holderIdentity": 3, "leaseTransitions": "x"}])
async def test_a_lease_of_any_shape_is_taken_or_left(odd: Any) -> None:
    leases, clock = Leases(), FakeClock()
    leases.lease = {"metadata": {"resourceVersion": "1", "annotations": odd}, "spec": {}}
    real = leases.get

    async def get(path: str) -> Object:
        return {**await real(path), "spec": odd}

    leases.get = get  # type: ignore[method-assign]
    election = LeaderElection(cast(KubeClient, leases), namespace="a", name="b", identity="me", clock=clock)
    await election._try()
    assert election.leading


async def _away() -> bool:
    raise BROKEN


async def _nothing() -> None:
    pass
