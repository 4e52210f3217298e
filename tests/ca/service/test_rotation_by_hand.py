"""What operators do to authorities: in order, out of order, two at once, over somebody's head."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ca.authority.actions import Activate, Prune, Taint
from ca.authority.state import Authority, AuthorityState
from ca.errors import BurgeeError, FailedPrecondition, Unavailable
from ca.identity.bundle import TrustBundle
from ca.keys.disk import DiskKeyManager
from ca.keys.memory import MemoryKeyManager
from ca.service.rotation_guard_port import Blocker
from ca.service.rotation_metrics import rotations
from tests.ca.service.rotation_lab import BEHIND, JWT, TD, TTL, X509, Bench, SomebodyBehind
from tests.support.server import eventually
from tests.support.stores import url_of

KINDS = pytest.mark.parametrize("kind", [X509, JWT])
PREPARED, ACTIVE, OLD, REVOKED = AuthorityState


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, MemoryKeyManager())
    await made.start()
    yield made
    await made.stop()


def count(kind: str, step: str, result: str) -> float:
    return rotations.labels(kind, step, result)._value.get()  # type: ignore[no-any-return]


async def refused(work: Awaitable[object], *words: str, reason: str = "AUTHORITY_STATE") -> None:
    with pytest.raises(BurgeeError) as caught:
        await work
    assert caught.value.reason == reason, caught.value.detail
    for word in words:
        assert word in caught.value.detail


@KINDS
async def test_from_one_authority_to_the_next(bench: Bench, kind: str) -> None:
    first = bench.active(kind)
    prepared = await bench.authority.prepare(kind)
    assert (prepared.status, prepared.prepared_at) == (PREPARED, bench.clock.now())
    assert prepared.authority_id in (*bench.roots, *bench.kids)
    assert first.authority_id in bench.signing
    activated = await bench.authority.activate(kind, prepared.authority_id)
    assert (activated.status, activated.activated_at) == (ACTIVE, bench.clock.now())
    assert activated.authority_id in bench.signing
    tainted = await bench.authority.taint(kind, first.authority_id)
    assert (tainted.tainted, bench.taints) == (True, {first.authority_id})
    revoked = await bench.authority.revoke(kind, first.authority_id)
    assert revoked.status == REVOKED
    assert first.authority_id not in (*bench.roots, *bench.kids)
    assert await bench.keys.get(first.key_id) is None
    await bench.restart()
    assert bench.row(first).status == REVOKED
    assert activated.authority_id in bench.signing


@KINDS
async def test_an_old_one_that_nobody_needs_leaves_before_its_end(bench: Bench, kind: str) -> None:
    old, _ = await bench.renew(kind)
    assert (await bench.authority.prune(kind, old.authority_id)).authority_id == old.authority_id
    assert old.authority_id not in (*bench.roots, *bench.kids)
    assert old.authority_id not in {one.authority_id for one in bench.authority.journal.authorities}
    assert await bench.keys.get(old.key_id) is None


@KINDS
async def test_wrong_orders_are_refused_with_what_to_do(bench: Bench, kind: str) -> None:
    manager, active = bench.authority, bench.active(kind).authority_id
    prepared = (await manager.prepare(kind)).authority_id
    await refused(manager.activate(kind, active), "is active since 2026-01-01T00:00:00Z", "only a prepared one")
    await refused(manager.taint(kind, active), "is active", "only an old one can be tainted")
    await refused(manager.revoke(kind, active), "is active", "only an old one can be revoked")
    await refused(manager.prune(kind, active), "is active", "only an old one can be pruned")
    await refused(manager.taint(kind, prepared), "is prepared")
    await refused(manager.activate(kind, "nobody"), f"no {kind} authority `nobody`", reason="AUTHORITY_UNKNOWN")
    await manager.activate(kind, prepared)
    await refused(manager.activate(kind, prepared), "is active")
    await refused(manager.revoke(kind, active), "is old", "taint it first")
    await manager.taint(kind, active)
    await refused(manager.taint(kind, active), "is old and tainted since 2026-01-01T00:00:00Z")


async def test_an_authority_of_the_other_kind_is_not_meant(bench: Bench) -> None:
    old, _ = await bench.renew(X509)
    await refused(bench.authority.taint(JWT, old.authority_id), reason="AUTHORITY_UNKNOWN")


async def test_a_plan_shows_and_does_nothing(bench: Bench) -> None:
    await bench.clock.advance(1)  # of two that begin at once, memory and store may differ on who is first
    prepared = await bench.authority.prepare(X509)
    bench.authority.guard = SomebodyBehind(BEHIND)
    before = bench.authority.journal
    plan = await bench.authority.plan(Activate(prepared.authority_id))
    assert (plan.name, plan.blockers, plan.before) == ("activate", (BEHIND,), before)
    assert {one.authority_id: one.status for one in plan.after.authorities}[prepared.authority_id] == ACTIVE
    assert await bench.authority.plan(Activate(prepared.authority_id)) == plan
    assert bench.row(prepared).status == PREPARED
    await refused(bench.authority.plan(Taint(prepared.authority_id)))


class TestTwoAtOnce:
    @KINDS
    async def test_of_two_who_activate_one_is_told_of_the_other(self, bench: Bench, kind: str) -> None:
        new = await bench.authority.prepare(kind)
        results = await asyncio.gather(
            *(bench.authority.activate(kind, new.authority_id) for _ in range(2)), return_exceptions=True
        )
        won, lost = sorted(results, key=lambda one: isinstance(one, BaseException))
        assert isinstance(won, Authority)
        assert isinstance(lost, FailedPrecondition)
        assert f"`{new.authority_id}` is active since" in lost.detail
        assert lost.reason == "AUTHORITY_STATE"

    @KINDS
    async def test_of_two_who_prepare_one_is_told_of_the_other(self, bench: Bench, kind: str) -> None:
        results = await asyncio.gather(*(bench.authority.prepare(kind) for _ in range(2)), return_exceptions=True)
        assert sum(isinstance(one, Authority) for one in results) == 1
        (lost,) = (one for one in results if isinstance(one, FailedPrecondition))
        assert "being prepared right now" in lost.detail
        await bench.authority.tick()
        assert len(await bench.keys.list()) == 3, "the loser has made no key, or it is gone"

    async def test_who_prepares_anew_is_not_activated_by_who_had_seen_the_first(self, bench: Bench) -> None:
        first = await bench.authority.prepare(X509)
        guard = Meanwhile(lambda: bench.authority.prepare(X509))
        bench.authority.guard = guard
        await refused(bench.authority.activate(X509, first.authority_id), f"`{first.authority_id}` is old")

    async def test_what_was_decided_on_another_state_is_decided_again(self, bench: Bench) -> None:
        """The step would fit all the same, but what the operator saw, and the guard looked at, is not what is there."""
        old, _ = await bench.renew(X509)
        other, _ = await bench.renew(X509)
        bench.authority.guard = Meanwhile(lambda: bench.authority.taint(X509, other.authority_id))
        await refused(
            bench.authority.prune(X509, old.authority_id),
            "were changed meanwhile",
            f"`{other.authority_id}` is old and tainted since",
        )
        assert bench.row(old).status == OLD

    @pytest.mark.real("PostgreSQL")
    async def test_two_servers(self, tmp_path: Path) -> None:
        """Each has its own; what is old can be tainted from the other, which hears of it at once."""
        with url_of("postgresql", tmp_path) as url:
            one = Bench(tmp_path, MemoryKeyManager(), url=url, server="one")
            two = Bench(tmp_path, MemoryKeyManager(), url=url, server="two", clock=one.clock)
            await one.start()
            await two.start()
            try:
                await one.follower.catch_up()
                assert set(one.roots) == {one.signing[0], two.signing[0]}
                old, _ = await one.renew(X509)
                await refused(two.authority.activate(X509, one.active(X509).authority_id), "is that of server `one`")
                outcomes = await asyncio.gather(
                    one.authority.taint(X509, old.authority_id),
                    two.authority.taint(X509, old.authority_id),
                    return_exceptions=True,
                )
                assert sum(isinstance(outcome, FailedPrecondition) for outcome in outcomes) == 1
                await two.authority.revoke(X509, old.authority_id)
                await one.follower.catch_up()
                assert old.authority_id not in one.roots
                assert await one.keys.get(old.key_id) is not None
                await one.authority.tick()
                assert await one.keys.get(old.key_id) is None, "its owner deletes the key"
            finally:
                await one.stop()
                await two.stop()

    @pytest.mark.real("PostgreSQL")
    async def test_what_a_server_left_that_never_came_back_is_cleared_away_by_another(self, tmp_path: Path) -> None:
        with url_of("postgresql", tmp_path) as url:
            one = Bench(tmp_path, MemoryKeyManager(), url=url, server="one")
            two = Bench(tmp_path, MemoryKeyManager(), url=url, server="two", clock=one.clock)
            await one.start()
            await two.start()
            left = one.active(X509)
            await one.stop()
            try:
                await two.after(TTL + 86_399)
                assert left.authority_id in {a.authority_id for a in two.authority.journal.authorities}
                await two.after(1)
                assert {a.server for a in two.authority.journal.authorities} == {"two"}
                await one.start()
                assert left.authority_id not in one.signing
                assert await one.keys.get(left.key_id) is None, "it came back after all"
            finally:
                await two.stop()
                await one.stop()


class Meanwhile:
    """A guard during whose answer somebody does something, once."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        self._work: Callable[[], Awaitable[object]] | None = work

    async def before_activation(self, authority: Authority) -> Sequence[Blocker]:
        work, self._work = self._work, None
        if work is not None:
            await work()
        return ()

    before_removal = before_activation


class TestGuard:
    @KINDS
    async def test_who_would_be_cut_off_is_named_and_force_does_it(
        self, bench: Bench, kind: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old, _ = await bench.renew(kind)
        await bench.authority.taint(kind, old.authority_id)
        new = await bench.authority.prepare(kind)
        many = [replace(BEHIND, who=f"agent-{number}") for number in range(5)]
        bench.authority.guard = SomebodyBehind(*many)
        for step, target in (("activate", new), ("revoke", old)):
            before = count(kind, step, "refused"), count(kind, step, "forced")
            act = getattr(bench.authority, step)
            await refused(
                act(kind, target.authority_id),
                "would cut off 5: agent `agent-0`: has bundle 1 (AGENT_BEHIND); agent `agent-1`",
                "and 2 more",
                f"`caadmin ca {step} {kind} {target.authority_id} --force`",
                reason="ROTATION_BLOCKED",
            )
            capsys.readouterr()
            await act(kind, target.authority_id, force=True)
            assert (count(kind, step, "refused"), count(kind, step, "forced")) == (before[0] + 1, before[1] + 1)
            said = "".join(capsys.readouterr())  # wherever tests before this one sent the log
            assert "ROTATION_FORCED" in said
            assert "agent-4" in said

    async def test_a_guard_that_cannot_tell_stops_the_step(self, bench: Bench) -> None:
        new = await bench.authority.prepare(X509)
        guard = SomebodyBehind()
        guard.error = Unavailable("the store is away", reason="STORE_UNAVAILABLE")
        bench.authority.guard = guard
        await refused(bench.authority.activate(X509, new.authority_id), reason="STORE_UNAVAILABLE")
        assert bench.row(new).status == PREPARED

    async def test_taints_ask_nobody(self, bench: Bench) -> None:
        old, _ = await bench.renew(X509)
        bench.authority.guard = SomebodyBehind(BEHIND)
        await bench.authority.taint(X509, old.authority_id)

    async def test_what_has_ended_is_removed_without_asking(self, bench: Bench) -> None:
        old, _ = await bench.renew(X509)
        bench.authority.guard = SomebodyBehind(BEHIND)
        await refused(bench.authority.prune(X509, old.authority_id), reason="ROTATION_BLOCKED")
        await bench.clock.advance(TTL + 1)
        assert (await bench.authority.plan(Prune(old.authority_id))).blockers == ()


async def test_who_goes_away_does_not_leave_half_a_step(bench: Bench) -> None:
    new = await bench.authority.prepare(X509)
    calling = asyncio.create_task(bench.authority.activate(X509, new.authority_id))
    await asyncio.sleep(0)
    calling.cancel()
    await eventually(lambda: bench.signing[0] == new.authority_id)
    assert bench.row(new).status == ACTIVE


async def test_an_authority_whose_key_is_gone_is_not_activated(bench: Bench) -> None:
    new = await bench.authority.prepare(X509)
    await bench.keys.delete(new.key_id)
    bench.authority._keys.signers.clear()  # as after a restart
    await refused(bench.authority.activate(X509, new.authority_id), reason="KEY_MISSING")
    assert bench.row(new).status == OLD
    await bench.authority.tick()
    assert bench.authority.check() is None


async def test_a_key_that_cannot_be_deleted_now_is_deleted_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    old, _ = await bench.renew(X509)
    delete = bench.keys.delete

    async def sealed(key_id: str) -> None:
        raise Unavailable("sealed", reason="VAULT_SEALED")

    monkeypatch.setattr(bench.keys, "delete", sealed)
    await bench.authority.prune(X509, old.authority_id)
    assert old.authority_id not in bench.roots
    assert [note.key_id for note in bench.authority.journal.keys] == [old.key_id]
    monkeypatch.setattr(bench.keys, "delete", delete)
    await bench.restart()
    assert (await bench.keys.get(old.key_id), bench.authority.journal.keys) == (None, ())


async def test_keys_that_nobody_noted_are_left_alone(tmp_path: Path) -> None:
    keys = DiskKeyManager(tmp_path / "keys")
    from ca.ports import KeyType

    await keys.generate("x509-00000000000000aa", KeyType.EC_P256)
    await keys.generate("somebody-elses", KeyType.EC_P256)
    bench = Bench(tmp_path, keys)
    await bench.start()
    await bench.after(TTL / 2 + 1)
    assert {"x509-00000000000000aa", "somebody-elses"} <= set(await keys.list())
    await bench.stop()


async def test_a_jwt_authority_is_public_for_the_refresh_hint_before_it_signs(bench: Bench) -> None:
    def hinted(bundle: TrustBundle) -> TrustBundle:
        return replace(bundle, refresh_hint_seconds=300)

    await bench.store.bundles.update(TD, hinted)
    await bench.follower.catch_up()
    new = await bench.authority.prepare(JWT)
    await bench.clock.advance(299)
    await refused(
        bench.authority.activate(JWT, new.authority_id),
        "asks once in 300 s, the bundle's refresh hint (CONSUMERS_WAITED_FOR, until 2026-01-01T00:05:00Z)",
        reason="ROTATION_BLOCKED",
    )
    await bench.clock.advance(1)
    await bench.authority.activate(JWT, new.authority_id)
    x509 = await bench.authority.prepare(X509)
    await bench.authority.activate(X509, x509.authority_id)


@KINDS
async def test_nothing_is_signed_with_a_tainted_authority_and_another_takes_its_place(bench: Bench, kind: str) -> None:
    """An operator cannot taint what signs; an upstream can, or whoever has the database."""
    active = bench.active(kind)

    def mark(one: Authority) -> Authority:
        return replace(one, tainted=True) if one.authority_id == active.authority_id else one

    keeper = bench.authority._journal
    await keeper.change(lambda fresh: replace(fresh, authorities=tuple(mark(one) for one in fresh.authorities)))
    with pytest.raises(Unavailable) as caught:
        _ = bench.authority.x509() if kind == X509 else bench.authority.jwt()
    assert caught.value.reason == "AUTHORITY_TAINTED"
    problem = bench.authority.check()
    assert problem is not None
    assert problem.reason == "AUTHORITY_TAINTED"
    bench.authority.guard = SomebodyBehind(BEHIND)
    await bench.authority.tick()
    assert active.authority_id not in bench.signing
    assert bench.authority.check() is None
    assert bench.row(active).status == OLD


async def test_old_keys_stay_until_the_last_token_has_lapsed(bench: Bench) -> None:
    old, _ = await bench.renew(JWT)
    last_token = old.not_after  # tokens may not outlive their key
    await bench.after((last_token - bench.clock.now() + timedelta(seconds=59)).total_seconds())
    assert old.authority_id in bench.kids
    await bench.after(1)
    assert old.authority_id not in bench.kids
