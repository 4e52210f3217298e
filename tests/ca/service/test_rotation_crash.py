"""Each step of a rotation is stopped at every point at which it can be stopped, and before and after everything that it
does; then another process takes over and finds all whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.errors import FailedPrecondition, NotFound
from ca.keys.disk import DiskKeyManager
from tests.ca.service.rotation_lab import JWT, TTL, X509, Bench, FakeUpstream
from tests.support.clock import FakeClock

PREPARED, ACTIVE, OLD, REVOKED = AuthorityState


class Killed(BaseException):
    """Nothing handles it."""


class StoppedAt:
    """Awaits `work`, and kills it when it waits for the `number`th time. `reached` tells whether it came so far."""

    def __init__(self, work: Coroutine[Any, Any, object], number: int) -> None:
        self._work = work
        self._number = number
        self.reached = False

    def __await__(self) -> Generator[Any, None, None]:
        steps = self._work.__await__()
        with contextlib.suppress(StopIteration):
            for count in range(1, 10_000):
                waiting = next(steps)
                if count == self._number:
                    self.reached = True
                    waiting = steps.throw(Killed())  # whatever is cleaned up on the way out
                yield waiting


@dataclass
class World:
    """What outlives a process: store, keys, clock and upstream. `target` is what the scenario is about, `lost` the id
    of a key that somebody deleted."""

    directory: Path
    clock: FakeClock
    upstream: FakeUpstream | None
    target: Authority | None = None
    lost: str = ""

    def bench(self) -> Bench:
        keys = DiskKeyManager(self.directory / "keys")
        return Bench(self.directory, keys, clock=self.clock, upstream=self.upstream)


Work = Callable[[Bench, World], Coroutine[Any, Any, object]]


@dataclass(frozen=True)
class Scenario:
    """`before` leads to the moment, `work` is what is stopped, `after` is the state of the target's kind in the end:
    states of all its authorities, sorted."""

    name: str
    kind: AuthorityKind
    before: Work
    work: Work
    after: tuple[AuthorityState, ...]
    with_upstream: bool = False

    @property
    def is_start(self) -> bool:
        """The work is the start of a process itself."""
        return self.work is nothing


async def nothing(bench: Bench, world: World) -> None:
    del bench, world


def target(world: World) -> str:
    assert world.target is not None
    return world.target.authority_id


def by_hand(step: str) -> Callable[[AuthorityKind], Work]:
    def of(kind: AuthorityKind) -> Work:
        async def work(bench: Bench, world: World) -> None:
            steps = bench.authority
            await getattr(steps, step)(kind, target(world))

        return work

    return of


def prepared(kind: AuthorityKind) -> Work:
    async def before(bench: Bench, world: World) -> None:
        world.target = await bench.authority.prepare(kind)

    return before


def renewed(kind: AuthorityKind, *, tainted: bool = False) -> Work:
    async def before(bench: Bench, world: World) -> None:
        world.target, _ = await bench.renew(kind)
        if tainted:
            await bench.authority.taint(kind, world.target.authority_id)

    return before


def passed(seconds: float) -> Work:
    async def before(bench: Bench, world: World) -> None:
        await world.clock.advance(seconds)

    return before


def ticked(*seconds: float) -> Work:
    """Ticks, and then more time."""

    async def before(bench: Bench, world: World) -> None:
        for passing in seconds[:-1]:
            await bench.after(passing)
        await world.clock.advance(seconds[-1])

    return before


async def key_lost(bench: Bench, world: World) -> None:
    world.lost = bench.active(X509).key_id
    (world.directory / "keys" / f"{world.lost}.pem").unlink()


async def tick(bench: Bench, world: World) -> None:
    await bench.authority.tick()


async def prepare(bench: Bench, world: World) -> None:
    await bench.authority.prepare(X509)


async def second_root(bench: Bench, world: World) -> None:
    assert world.upstream is not None
    world.upstream.roots, world.upstream.root = {"r1": False, "r2": False}, "r2"
    world.target, _ = await bench.renew(X509)


async def second_root_tainted(bench: Bench, world: World) -> None:
    await second_root(bench, world)
    await bench.authority.taint_upstream(world.target.upstream_authority_id if world.target else "")


async def taint_upstream(bench: Bench, world: World) -> None:
    await bench.authority.taint_upstream(world.target.upstream_authority_id if world.target else "")


async def revoke_upstream(bench: Bench, world: World) -> None:
    await bench.authority.revoke_upstream(world.target.upstream_authority_id if world.target else "")


async def poll(bench: Bench, world: World) -> None:
    await bench.authority.follow_upstream.once()


async def tainted_above(bench: Bench, world: World) -> None:
    await second_root(bench, world)
    assert world.upstream is not None
    world.upstream.roots = {"r1": True, "r2": False}


SCENARIOS = [
    Scenario("a first start", X509, nothing, nothing, (ACTIVE,)),
    Scenario("a first start below an upstream", X509, nothing, nothing, (ACTIVE,), with_upstream=True),
    Scenario("a later start", X509, passed(TTL / 2 + 1), nothing, (ACTIVE, PREPARED)),
    Scenario("a start without a key", X509, key_lost, nothing, (ACTIVE, OLD)),
    Scenario("a late start", X509, passed(2 * TTL), nothing, (ACTIVE,)),
    Scenario("the next ones are made", X509, passed(TTL / 2 + 1), tick, (ACTIVE, PREPARED)),
    Scenario("the next one is made above", X509, passed(TTL / 2 + 1), tick, (ACTIVE, PREPARED), with_upstream=True),
    Scenario("the next ones sign", JWT, ticked(TTL / 2 + 1, TTL / 3), tick, (ACTIVE, OLD)),
    Scenario("the old ones go", JWT, ticked(TTL / 2 + 1, TTL / 3, TTL / 6 + 60), tick, (ACTIVE, PREPARED)),
    Scenario("prepare", X509, nothing, prepare, (ACTIVE, PREPARED)),
    *(
        Scenario(f"activate {kind}", kind, prepared(kind), by_hand("activate")(kind), (ACTIVE, OLD))
        for kind in (X509, JWT)
    ),
    *(Scenario(f"taint {kind}", kind, renewed(kind), by_hand("taint")(kind), (ACTIVE, OLD)) for kind in (X509, JWT)),
    *(
        Scenario(f"revoke {kind}", kind, renewed(kind, tainted=True), by_hand("revoke")(kind), (ACTIVE, REVOKED))
        for kind in (X509, JWT)
    ),
    *(Scenario(f"prune {kind}", kind, renewed(kind), by_hand("prune")(kind), (ACTIVE,)) for kind in (X509, JWT)),
    Scenario("taint upstream", X509, second_root, taint_upstream, (ACTIVE, OLD), with_upstream=True),
    Scenario("revoke upstream", X509, second_root_tainted, revoke_upstream, (ACTIVE, REVOKED), with_upstream=True),
    Scenario("a taint from above", X509, tainted_above, poll, (ACTIVE, OLD), with_upstream=True),
]


async def stage(scenario: Scenario, directory: Path) -> World:
    """The moment before the work."""
    clock = FakeClock()
    world = World(directory, clock, FakeUpstream(clock) if scenario.with_upstream else None)
    bench = world.bench()
    await bench.open()
    if scenario.name.startswith("a first start"):
        await bench.stop()
        return world
    await bench.authority.start()
    await scenario.before(bench, world)
    await bench.stop()
    return world


def copied(world: World, directory: Path) -> World:
    """The same moment again. The upstream is shared: what it minted for a process that was killed nobody takes back."""
    shutil.copytree(world.directory, directory)
    clock = FakeClock(world.clock.now())
    if world.upstream is not None:
        world.upstream._clock = clock
    return World(directory, clock, world.upstream, world.target, world.lost)


@contextlib.asynccontextmanager
async def opened(world: World) -> AsyncIterator[Bench]:
    bench = world.bench()
    await bench.open()
    try:
        yield bench
    finally:
        await bench.stop()


def whole(bench: Bench, world: World) -> None:
    """One of each kind signs; bundle, keys and journal say the same; nothing is left over."""
    journal = bench.authority.journal
    for kind in (X509, JWT):
        own = [one for one in journal.authorities if one.kind == kind]
        states = [one.status for one in own]
        assert states.count(ACTIVE) == 1
        assert states.count(PREPARED) <= 1
        assert bench.active(kind).authority_id in bench.signing
    alive = [one for one in journal.authorities if one.status != REVOKED]
    upstream = {m.authority_id for m in journal.upstream if m.revoked_at is None}
    assert (
        set(bench.roots) == {a.authority_id for a in alive if a.kind == X509 and not a.upstream_authority_id} | upstream
    )
    assert set(bench.kids) == {a.authority_id for a in alive if a.kind == JWT}
    tainted = {a.authority_id for a in alive if a.tainted and not a.upstream_authority_id}
    assert bench.taints == tainted | {m.authority_id for m in journal.upstream if m.tainted and m.revoked_at is None}
    assert sorted(path.stem for path in (world.directory / "keys").glob("*.pem")) == sorted(
        one.key_id for one in alive if one.key_id != world.lost
    )
    assert journal.keys == ()
    assert bench.authority.check() is None


async def finish(scenario: Scenario, bench: Bench, world: World) -> None:
    """Whoever wanted the work asks again: either it was done, or it is now."""
    try:
        await scenario.work(bench, world)
    except (FailedPrecondition, NotFound) as error:
        if error.reason not in ("AUTHORITY_STATE", "AUTHORITY_UNKNOWN"):
            raise


def states(scenario: Scenario, bench: Bench) -> tuple[AuthorityState, ...]:
    return tuple(sorted(one.status for one in bench.authority.journal.authorities if one.kind == scenario.kind))


def left_behind(world: World) -> tuple[object, ...]:
    """What a process left, as far as another one could treat it differently: names and times are left out."""
    database = sqlite3.connect(world.directory / "s.sqlite3")
    try:
        authorities = database.execute("SELECT kind, status, tainted, key_id FROM authorities").fetchall()
        notes = database.execute("SELECT kind, key_id FROM authority_keys").fetchall()
        upstream = database.execute(
            "SELECT kind, tainted, gone_at IS NULL, revoked_at IS NULL FROM upstream_authorities"
        )
        bundles = [json.loads(row[0]) for row in database.execute("SELECT authorities FROM bundles")]
        keys = {path.stem for path in (world.directory / "keys").glob("*.pem")}
        return (
            sorted((kind, status, tainted, key in keys) for kind, status, tainted, key in authorities),
            sorted((kind, key in keys) for kind, key in notes),
            sorted(upstream.fetchall()),
            [sorted(tainted for *_, tainted in bundle[kind]) for bundle in bundles for kind in ("x509", "jwt")],
            len(keys),
        )
    finally:
        database.close()


class Survivors:
    """Another process after each that was killed. What several of them left alike is taken over once."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._seen: list[tuple[object, ...]] = []

    async def take_over(self, world: World) -> None:
        found = left_behind(world)
        if found in self._seen:
            return
        self._seen.append(found)
        async with opened(world) as bench:
            await bench.authority.start()
            whole(bench, world)
        async with opened(world) as bench:
            await bench.authority.start()
            await finish(self._scenario, bench, world)
            whole(bench, world)
            allowed = {tuple(sorted(self._scenario.after))}
            if self._scenario.name == "prepare":  # asked for twice: the first was replaced
                allowed.add((ACTIVE, OLD, PREPARED))
            assert states(self._scenario, bench) in allowed


async def begun(scenario: Scenario, bench: Bench, world: World) -> Coroutine[Any, Any, object]:
    """What is to be stopped: the start, where the scenario is about one; else the work, in a process that has started
    and without the shield that lets an operator's step end when its caller goes."""

    async def unshielded(work: Coroutine[Any, Any, object]) -> object:
        return await work

    bench.authority._whole = unshielded  # type: ignore[method-assign,assignment]
    if scenario.is_start:
        return bench.authority.start()
    await bench.authority._journal.change(lambda fresh: fresh)
    await bench.authority._steps.retire_lost()
    return scenario.work(bench, world)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_stopped_at_every_point_at_which_it_waits(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    staged = await stage(scenario, tmp_path / "stage")
    survivors = Survivors(scenario)
    number, reached = 0, True
    while reached:
        number += 1
        world = copied(staged, tmp_path / str(number))
        async with opened(world) as bench:
            work = StoppedAt(await begun(scenario, bench, world), number)
            with contextlib.suppress(Killed):
                await work
        reached = work.reached
        await survivors.take_over(world)
        shutil.rmtree(world.directory)
    assert number > 3, "it hardly waited at all"


PORTS = (
    "store.authorities.alter",
    "store.issuance.append",
    "keys.generate",
    "keys.delete",
    "follower.catch_up",
    "upstream.mint",
    "upstream.publish_jwt_key",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_killed_before_and_after_everything_that_it_does(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    staged = await stage(scenario, tmp_path / "stage")
    survivors = Survivors(scenario)
    killed = 0
    for port in PORTS:
        for after in (False, True):
            number, sprung = 0, True
            while sprung:
                number += 1
                world = copied(staged, tmp_path / f"{port}-{after}-{number}")
                trap = Trap(number, after=after)
                async with opened(world) as bench:
                    work = await begun(scenario, bench, world)
                    trap.set(bench, port)
                    with contextlib.suppress(Killed):
                        await work
                trap.clear()
                sprung = trap.sprung
                killed += sprung
                await survivors.take_over(world)
                shutil.rmtree(world.directory)
    assert killed >= 2


class Trap:
    """Kills at the `number`th call of a method, before or after it does its work."""

    def __init__(self, number: int, *, after: bool) -> None:
        self._left = number
        self._after = after
        self.sprung = False
        self._undo: Callable[[], None] = lambda: None

    def set(self, bench: Bench, path: str) -> None:
        owner: Any = bench
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        if owner is None:
            return
        inner = getattr(owner, name)

        async def trapped(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                self.sprung = True
                raise Killed
            result = await inner(*arguments, **named)
            if self._left == 0:
                self.sprung = True
                raise Killed
            return result

        setattr(owner, name, trapped)
        self._undo = lambda: setattr(owner, name, inner)

    def clear(self) -> None:
        """The upstream outlives the process."""
        self._undo()


async def test_a_stopped_work_is_stopped() -> None:
    """The tool itself: killed at its second wait, it does not come to its third line."""
    seen: list[int] = []

    async def work() -> None:
        for number in range(3):
            seen.append(number)
            await asyncio.sleep(0)

    with pytest.raises(Killed):
        await StoppedAt(work(), 2)
    assert seen == [0, 1]
