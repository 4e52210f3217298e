from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import Unauthenticated
from ca.identity.bundle import authority_id
from ca.identity.spiffe_id import SpiffeId, server_id
from sds.feed import Change, ResumeToken, Snapshot
from sds.keys import certificate_request, generate
from sds.rotation import BATCH, check_issued, due_in, retry_seconds, rotate_at, wanted
from sds.views import asked_for
from tests.sds.lab import TD, Authority, Lab, entry, eventually
from tests.support.clock import FakeClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.floats(2, 1e6), st.floats(-1, 1))
def test_rotation_falls_around_half_of_the_time_between_issue_and_expiry(life: float, jitter: float):
    part = (rotate_at(NOW, NOW + timedelta(seconds=life), jitter) - NOW).total_seconds() / life
    assert 0.449 <= part <= 0.551


def test_an_svid_that_is_all_but_expired_is_not_asked_for_in_a_loop():
    assert rotate_at(NOW, NOW, 0) == NOW + timedelta(seconds=0.25)


@pytest.mark.parametrize(("failures", "low", "high"), [(1, 0.4, 0.6), (3, 1.6, 2.4), (50, 24, 36)])
def test_retries_slow_down(failures: int, low: float, high: float):
    assert low <= retry_seconds(failures, 30, -1) <= retry_seconds(failures, 30, 1) <= high


def test_who_is_wanted_first_and_how_many():
    alias = type(entry("x"))(
        id="x", spiffe_id=SpiffeId(TD, "/n"), parent_id=server_id(TD), selectors=entry("x").selectors
    )
    lazy, stored = entry("l", disable_x509_svid_prefetch=True), entry("s", store_svid=True)
    entries = [entry("b"), entry("a"), entry("c"), lazy, stored, alias]
    urgent, ahead = wanted(entries, {"c"}, 2, str(server_id(TD)))
    assert [e.id for e in urgent] == ["c"]
    assert [e.id for e in ahead] == ["a"]
    urgent, _ = wanted(entries, {"l"}, 10, str(server_id(TD)))
    assert [e.id for e in urgent] == ["l"]


@pytest.fixture
def signed() -> tuple[Authority, object, bytes]:
    authority, key = Authority(now=NOW), generate("ec-p256")  # type: ignore[arg-type]
    csr = certificate_request(key, SpiffeId(TD, "/a"))
    return authority, key, authority.certify(csr, SpiffeId(TD, "/a"), not_after=NOW + timedelta(hours=1), now=NOW)


def test_what_the_server_sent_is_checked(signed):
    authority, key, der = signed
    bundles = {TD: authority.bundle()}
    svid = check_issued(entry("a"), key, (der,), bundles=bundles, now=NOW, jitter=0)
    assert svid.rotate_at == NOW + timedelta(minutes=30)
    assert svid.issuer_ids == (authority_id(authority.der),)
    assert due_in(entry("a"), svid, NOW, 0.0) == 1800
    assert due_in(entry("a"), svid, NOW + timedelta(minutes=30), 0.0) == 0
    assert due_in(entry("a", dns_names=("x",)), svid, NOW, 0.0) == 0
    assert due_in(entry("a", hint="h"), svid, NOW, 0.0) == 1800
    assert due_in(entry("a"), None, NOW, 0.0) == 0
    assert svid.asked == asked_for(entry("a"))


@pytest.mark.parametrize("case", ["other root", "other id", "other key", "expired"])
def test_what_is_not_ours_is_not_taken_over(signed, case: str):
    authority, key, der = signed
    bundles = {TD: (Authority(now=NOW) if case == "other root" else authority).bundle()}
    wanted_by = entry("a", "/b") if case == "other id" else entry("a")
    given_key = generate("ec-p256") if case == "other key" else key  # type: ignore[arg-type]
    now = NOW + timedelta(hours=2) if case == "expired" else NOW
    with pytest.raises(Unauthenticated) as refused:
        check_issued(wanted_by, given_key, (der,), bundles=bundles, now=now, jitter=0)
    expected = {"other id": "SVID_WRONG_ID", "other key": "SVID_WRONG_KEY", "expired": "CLOCK_AHEAD"}.get(
        case, "SVID_UNTRUSTED"
    )
    assert refused.value.reason == expected


async def test_everything_is_fetched_ahead_in_batches_except_what_asks_not_to_be():
    async with Lab() as lab:
        many = [entry(f"e{n:04}") for n in range(BATCH + 20)]
        lab.snapshot(*many, entry("lazy", disable_x509_svid_prefetch=True))
        await eventually(lambda: len(lab.cache.svids()) == len(many), seconds=30)
        assert "lazy" not in lab.server.asked
        assert len(lab.server.asked) == len(many)


async def test_svids_are_rotated_at_half_life_and_with_a_new_key():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    first = lab.cache.svid("a")
    assert first is not None
    clock.jump((first.rotate_at - clock.now()).total_seconds() - 1)
    await lab.rotator.round()
    assert lab.cache.svid("a") is first
    clock.jump(1)
    await lab.rotator.round()
    second = lab.cache.svid("a")
    assert second is not None
    assert second is not first
    assert second.key != first.key
    await lab.keys.close()


async def test_a_refused_entry_does_not_hold_up_the_others_and_is_retried():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.server.refuse = {"a"}
    lab.snapshot(entry("a"), entry("b"))
    await lab.rotator.round()
    assert [svid.entry_id for svid in lab.cache.svids()] == ["b"]
    assert lab.rotator.failure("a") == "ENTRY_NOT_AUTHORIZED"
    await lab.rotator.round()
    assert lab.server.asked.count("a") == 1
    lab.server.refuse = set()
    await clock.advance(1)
    await lab.rotator.round()
    assert lab.cache.svid("a") is not None
    assert lab.rotator.failure("a") is None
    await lab.keys.close()


async def test_a_leaf_whose_root_is_not_here_yet_waits_for_it():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.snapshot(entry("a"))
    old, new = lab.authority, Authority(now=clock.now())
    lab.server.authority = new
    await lab.rotator.round()
    assert lab.cache.svid("a") is None
    assert lab.rotator.failure("a") == "SVID_UNTRUSTED"
    lab.put(bundles=(old.bundle(new),))
    await lab.rotator.round()
    assert lab.cache.svid("a") is not None
    await lab.keys.close()


async def test_more_than_the_limit_is_not_held_unless_in_use():
    lab = Lab()
    lab.rotator._limit = 2
    lab.snapshot(*[entry(f"e{n}") for n in range(5)])
    await lab.rotator.round()
    assert sorted(svid.entry_id for svid in lab.cache.svids()) == ["e0", "e1"]
    subscription = lab.cache.subscribe(entry("e0").selectors, needs_svid=True)
    await lab.rotator.round()
    assert len(lab.cache.svids()) == 5
    lab.cache.unsubscribe(subscription)
    await lab.rotator.round()
    assert sorted(svid.entry_id for svid in lab.cache.svids()) == ["e0", "e1"]
    await lab.keys.close()


async def test_a_server_that_is_down_is_named_and_recovers():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.server.down = True
    lab.snapshot(entry("a"))
    await lab.rotator.round()
    assert lab.rotator.problem is not None
    assert lab.rotator.problem.reason == "SERVER_UNREACHABLE"
    lab.server.down = False
    await clock.advance(1)
    await lab.rotator.round()
    assert lab.rotator.problem is None
    assert lab.cache.svid("a") is not None
    await lab.keys.close()


async def test_after_a_long_outage_it_is_asked_again_soon():
    clock = FakeClock()
    lab = Lab(clock=clock)
    lab.server.down = True
    lab.snapshot(entry("a"))
    for _ in range(20):
        await lab.rotator.round()
        await clock.advance(6)
    lab.server.down = False
    await lab.rotator.round()
    assert lab.cache.svid("a") is not None
    await lab.keys.close()


async def test_the_loop_asks_as_soon_as_it_is_poked():
    async with Lab() as lab:
        lab.snapshot()
        await asyncio.sleep(0)
        lab.cache.apply(Change(token=ResumeToken("e", 9), entries=(entry("a"),)))
        lab.rotator.poke()
        await eventually(lambda: lab.cache.svid("a") is not None)
        lab.cache.apply(Snapshot(token=ResumeToken("e", 10), bundles=(lab.authority.bundle(),)))
        assert lab.cache.svids() == []
