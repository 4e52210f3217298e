"""The schedule waits for those who are behind as long as that is safe, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ca.authority.schedule import activate_at, last_safe_second, prepare_at
from ca.authority.state import Authority, AuthorityState
from ca.errors import Unavailable
from ca.identity.bundle import TrustBundle
from ca.keys.memory import MemoryKeyManager
from ca.runtime import metrics
from ca.service import rotation_guarding
from ca.service.rotation_metrics import rotations
from ca.store.values import JournalRecords
from tests.ca.service.rotation_lab import BEHIND, SVID_TTL, TD, TTL, X509, Bench, SomebodyBehind
from tests.support.server import eventually

SECOND = timedelta(seconds=1)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """The longest SVID is a twelfth of an authority's life, so that there is time to wait."""
    made = Bench(tmp_path, MemoryKeyManager())
    made.longest_seconds = SVID_TTL / 2
    await made.start()
    yield made
    await made.stop()


async def to(bench: Bench, moment: datetime) -> None:
    await bench.after((moment - bench.clock.now()).total_seconds())


async def prepared(bench: Bench) -> tuple[Authority, datetime, datetime]:
    """At the second before the next one would sign: (the active one, when that would be, the last safe second)."""
    active = bench.active(X509)
    await to(bench, prepare_at(active))
    await to(bench, activate_at(active) - SECOND)
    return active, activate_at(active), last_safe_second(active, timedelta(seconds=bench.longest_seconds))


def metric(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"burgee_{name}", labels) or 0.0


async def test_nobody_is_behind(bench: Bench) -> None:
    active, due, _ = await prepared(bench)
    before = rotations.labels("x509", "activate", "ok")._value.get()
    await to(bench, due)
    assert bench.signing[0] != active.authority_id
    assert rotations.labels("x509", "activate", "ok")._value.get() == before + 1
    assert bench.authority.warning() is None


async def test_an_agent_that_is_gone_for_ever(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """It is waited for until the last safe second; then the others matter more, and everybody hears of it."""
    active, due, last = await prepared(bench)
    guard = SomebodyBehind(BEHIND)
    bench.authority.guard = guard
    await to(bench, due)
    assert bench.signing[0] == active.authority_id
    assert "ROTATION_HELD" in (said := "".join(capsys.readouterr()))
    assert BEHIND.who in said
    assert metric("rotation_blockers", kind="x509") == 1
    problem = bench.authority.warning()
    assert problem is not None
    assert problem.reason == "ROTATION_HELD"
    assert bench.authority.check() is None, "the server is ready all the same"
    await to(bench, last - SECOND)
    assert bench.signing[0] == active.authority_id
    before = rotations.labels("x509", "activate", "overdue")._value.get()
    capsys.readouterr()
    await to(bench, last)
    assert bench.signing[0] != active.authority_id
    assert rotations.labels("x509", "activate", "overdue")._value.get() == before + 1
    assert "ROTATION_OVERDUE" in (said := "".join(capsys.readouterr()))
    assert BEHIND.who in said
    assert metric("rotation_blockers", kind="x509") == 0
    assert bench.authority.warning() is None
    assert active.not_after - bench.clock.now() >= timedelta(seconds=bench.longest_seconds), "no SVID was cut short"


async def test_who_catches_up_is_noticed(bench: Bench) -> None:
    active, due, _ = await prepared(bench)
    bench.authority.guard = SomebodyBehind(BEHIND)
    await to(bench, due)
    assert bench.signing[0] == active.authority_id
    bench.authority.guard = SomebodyBehind()
    await bench.after(3)
    assert bench.signing[0] != active.authority_id


async def test_a_guard_is_not_asked_at_every_turn(bench: Bench) -> None:
    _, due, _ = await prepared(bench)
    guard = bench.authority.guard = SomebodyBehind(BEHIND)
    await to(bench, due)
    asked = guard.asked
    for _ in range(10):
        await bench.authority.tick()
    assert guard.asked == asked


@pytest.mark.parametrize("error", [Unavailable("away", reason="STORE_UNAVAILABLE"), RuntimeError("a bug")])
async def test_a_guard_that_fails_blocks_until_the_last_safe_second(bench: Bench, error: Exception) -> None:
    active, due, last = await prepared(bench)
    guard = SomebodyBehind()
    guard.error = error
    bench.authority.guard = guard
    await to(bench, due)
    assert bench.signing[0] == active.authority_id
    await to(bench, last)
    assert bench.signing[0] != active.authority_id


async def test_a_guard_that_never_answers_does_not_stop_the_schedule(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation_guarding, "GUARD_SECONDS", 0.05)
    active, due, last = await prepared(bench)
    bench.authority.guard = Silent()
    await to(bench, due)
    assert bench.signing[0] == active.authority_id
    await to(bench, last)
    assert bench.signing[0] != active.authority_id


class Silent(SomebodyBehind):
    async def _answer(self) -> tuple[()]:
        await asyncio.Event().wait()
        return ()


async def test_with_nothing_that_signs_nobody_is_waited_for(bench: Bench) -> None:
    bench.authority.guard = SomebodyBehind(BEHIND)
    first = bench.active(X509)
    bench.clock.jump(2 * TTL)
    await bench.authority.tick()
    assert bench.signing[0] != first.authority_id


async def test_a_clock_that_leaps_over_the_last_safe_second(bench: Bench) -> None:
    active, _, last = await prepared(bench)
    bench.authority.guard = SomebodyBehind(BEHIND)
    bench.clock.jump((last - bench.clock.now()).total_seconds() + 5)
    await bench.authority.tick()
    assert bench.signing[0] != active.authority_id


async def test_an_operator_may_be_faster(bench: Bench) -> None:
    _, due, _ = await prepared(bench)
    bench.authority.guard = SomebodyBehind(BEHIND)
    await to(bench, due)
    (new,) = (a for a in bench.authority.authorities if a.status == AuthorityState.PREPARED and a.kind == X509)
    await bench.authority.activate(X509, new.authority_id, force=True)
    await bench.authority.tick()
    assert bench.signing[0] == new.authority_id
    problem = bench.authority.warning()
    assert problem is not None
    assert problem.detail.startswith("the next jwt authority waits"), "of X.509 nothing is said any more"


async def test_what_another_server_did_to_the_bundle_is_looked_at_at_once(bench: Bench) -> None:
    """The journal is read again when the bundle changed, not at the next tick."""
    old, _ = await bench.renew(X509)
    task = asyncio.create_task(bench.authority.run())
    following = asyncio.create_task(bench.follower.run())
    try:

        def taint(records: JournalRecords, bundle: TrustBundle) -> tuple[JournalRecords, TrustBundle]:
            marked = tuple(replace(r, tainted=r.authority_id == old.authority_id) for r in records.authorities)
            shown = tuple(replace(a, tainted=True) for a in bundle.x509_authorities)
            return replace(records, authorities=marked), replace(bundle, x509_authorities=shown)

        await bench.store.authorities.alter(TD, taint)
        await eventually(lambda: bench.row(old).tainted)
    finally:
        for one in (task, following):
            one.cancel()
        await asyncio.wait([task, following])


async def test_each_authoritys_end_is_in_the_metrics(bench: Bench) -> None:
    old, active = await bench.renew(X509)
    new = await bench.authority.prepare(X509)
    ends = {one.authority_id: one.not_after.timestamp() for one in (old, active, new)}
    for one, status in ((old, "old"), (active, "active"), (new, "prepared")):
        found = metric("authorities_not_after_seconds", kind="x509", status=status, authority_id=one.authority_id)
        assert found == ends[one.authority_id]
    assert metric("authority_not_after_seconds", kind="x509") == active.not_after.timestamp()
    assert metric("signing_not_after_seconds", kind="x509") == new.not_after.timestamp()
    await bench.authority.prune(X509, old.authority_id)
    labels = {"kind": "x509", "status": "old", "authority_id": old.authority_id}
    assert metrics.REGISTRY.get_sample_value("burgee_authorities_not_after_seconds", labels) is None
