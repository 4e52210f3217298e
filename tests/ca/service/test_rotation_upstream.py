"""Authorities below an upstream: proved before use, its roots followed, its failures survived to the last second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from ca.authority.state import AuthorityState
from ca.errors import BurgeeError, Denied, FailedPrecondition, Unavailable
from ca.identity.bundle import JwtAuthority, authority_id
from ca.keys.memory import MemoryKeyManager
from ca.ports import UpstreamCa
from ca.runtime import metrics
from tests.ca.service.rotation_lab import BEHIND, JWT, TTL, X509, Bench, FakeUpstream, SomebodyBehind
from tests.support.clock import FakeClock

MINUTE = 60


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    clock = FakeClock()
    made = Bench(tmp_path, MemoryKeyManager(), clock=clock, upstream=FakeUpstream(clock))
    made.longest_seconds = TTL / 12
    await made.start()
    yield made
    await made.stop()


def above(bench: Bench) -> FakeUpstream:
    assert bench.upstream is not None
    return bench.upstream


async def poll(bench: Bench) -> None:
    await bench.authority.follow_upstream.once()


class Running:
    """The background task, with time that passes."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    async def __aenter__(self) -> Running:
        self._task = asyncio.create_task(self.bench.authority.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert not self._task.done()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def pass_seconds(self, seconds: float, *, step: float = 0.5, pause: float = 0.005) -> None:
        for _ in range(round(seconds / step)):
            await self.bench.clock.advance(step)
            await asyncio.sleep(pause)


class TestChain:
    async def test_the_root_is_in_the_bundle_and_the_intermediate_in_the_chain(self, bench: Bench) -> None:
        active, signing = bench.active(X509), bench.authority.x509()
        assert bench.roots == [above(bench).id_of("r1")]
        assert active.upstream_authority_id == above(bench).id_of("r1")
        assert signing.chain == (active.certificate,)
        sequence = bench.bundle.sequence_number
        await bench.renew(X509)
        assert bench.bundle.sequence_number == sequence, "another intermediate is no change of the bundle"

    async def test_what_leads_to_the_root_comes_along(self, tmp_path: Path) -> None:
        clock = FakeClock()
        bench = Bench(tmp_path, MemoryKeyManager(), clock=clock, upstream=FakeUpstream(clock, between=True))
        await bench.start()
        active = bench.active(X509)
        assert bench.authority.x509().chain == (active.certificate, *active.chain)
        assert len(active.chain) == 1
        assert metrics.REGISTRY.get_sample_value("burgee_upstream_link_not_after_seconds", {"link": "intermediate-1"})
        await bench.restart()
        assert bench.row(active) == active
        await bench.stop()

    async def test_the_first_end_of_the_chain_is_the_authoritys(self, tmp_path: Path) -> None:
        clock = FakeClock()
        upstream = FakeUpstream(clock)
        upstream.days["r1"] = 0.5 / 24
        bench = Bench(tmp_path, MemoryKeyManager(), clock=clock, upstream=upstream)
        await bench.start()
        root = x509.load_der_x509_certificate(upstream.certificate("r1"))
        assert bench.active(X509).not_after == root.not_valid_after_utc
        assert bench.authority.x509().issuer.not_after == root.not_valid_after_utc
        links = {"authority", "root"}
        found = {
            link: metrics.REGISTRY.get_sample_value("burgee_upstream_link_not_after_seconds", {"link": link})
            for link in links
        }
        assert found["root"] == root.not_valid_after_utc.timestamp()
        await bench.stop()

    async def test_the_signature_of_our_request_is_that_of_the_new_key(self, bench: Bench) -> None:
        """FakeUpstream refuses others; here the issuance record says what was signed for us, and under whom."""
        active = bench.active(X509)
        (record,) = await bench.store.issuance.find(authority=above(bench).id_of("r1"))
        certificate = x509.load_der_x509_certificate(active.certificate)
        assert (record.kind, record.serial_or_kid) == ("ca", str(certificate.serial_number))

    async def test_from_roots_of_its_own_to_an_upstream_and_back(self, tmp_path: Path) -> None:
        clock = FakeClock()
        bench = Bench(tmp_path, MemoryKeyManager(), clock=clock)
        await bench.start()
        own = bench.active(X509)
        bench.upstream = FakeUpstream(clock)
        await bench.restart()
        assert bench.active(X509) == own, "nothing changes before its time"
        _, below = await bench.renew(X509)
        r1 = bench.upstream.id_of("r1")
        assert (set(bench.roots), below.upstream_authority_id) == ({own.authority_id, r1}, r1)
        await bench.authority.taint(X509, own.authority_id)
        await bench.authority.revoke(X509, own.authority_id)
        assert bench.roots == [r1]
        bench.upstream = None
        await bench.restart()
        await poll(bench)
        assert bench.active(X509) == below
        assert bench.roots == [r1]
        old, new = await bench.renew(X509)
        assert set(bench.roots) == {r1, new.authority_id}
        await bench.authority.prune(X509, old.authority_id)
        await poll(bench)
        assert bench.roots == [new.authority_id]
        await bench.stop()


class TestOutage:
    @pytest.mark.parametrize(
        ("fail", "reason"),
        [
            (lambda up: setattr(up, "hangs", True), "UPSTREAM_SILENT"),
            (lambda up: setattr(up, "error", Unavailable("sealed", reason="VAULT_SEALED")), "VAULT_SEALED"),
            (lambda up: setattr(up, "error", Denied("no", reason="UPSTREAM_DENIED")), "UPSTREAM_DENIED"),
            (lambda up: setattr(up, "error", ValueError("a bug")), "UPSTREAM_BROKEN"),
        ],
        ids=["hangs", "sealed", "denies", "breaks"],
    )
    async def test_signing_goes_on_to_the_last_second_and_after_its_return(
        self, bench: Bench, fail: Callable[[FakeUpstream], None], reason: str
    ) -> None:
        active = bench.active(X509)
        async with Running(bench) as running:
            fail(above(bench))
            await running.pass_seconds(TTL / 2 + MINUTE, step=30, pause=0.02)
            await running.pass_seconds(10, pause=0.1)
            assert bench.authority.x509().issuer.authority_id == active.authority_id
            assert bench.authority.check() is None
            problem = bench.authority.warning()
            assert problem is not None
            assert problem.reason == reason
            assert problem.detail.endswith("this server can sign until 2026-01-01T01:00:00Z")
            link = bench.authority.upstream_warning()
            assert link is not None
            assert link.reason == reason
            end = metrics.REGISTRY.get_sample_value("burgee_signing_not_after_seconds", {"kind": "x509"})
            assert end == active.not_after.timestamp()
            assert len(await bench.keys.list()) <= 4, "keys of failed attempts do not pile up"
            left = (active.not_after - bench.clock.now()).total_seconds()
            await running.pass_seconds(left - 2, step=(left - 2) / 40, pause=0.02)
            assert bench.authority.x509().issuer.authority_id == active.authority_id, "to the last useful second"
            above(bench).hangs, above(bench).error = False, None
            await running.pass_seconds(10, pause=0.1)
            assert bench.active(X509).authority_id != active.authority_id
            assert bench.authority.check() is None
        assert bench.authority.upstream_warning() is None
        assert bench.authority.warning() is None

    async def test_jwt_authorities_rotate_while_the_upstream_hangs(self, bench: Bench) -> None:
        first = bench.active(JWT)
        async with Running(bench) as running:
            bench.upstream, upstream = None, above(bench)
            upstream.keeps_jwt, upstream.hangs = False, True
            upstream.publish_jwt_key = _no_jwt  # type: ignore[method-assign,assignment]
            await running.pass_seconds(TTL * 5 / 6 + MINUTE, step=30, pause=0.02)
            await running.pass_seconds(MINUTE, step=2, pause=0.05)
            assert bench.active(JWT).authority_id != first.authority_id

    async def test_operators_are_not_kept_waiting_by_an_upstream_that_hangs(self, bench: Bench) -> None:
        old, _ = await bench.renew(JWT)
        above(bench).hangs = True
        preparing = asyncio.create_task(bench.authority.prepare(X509))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(0.2):
            await bench.authority.taint(JWT, old.authority_id)
            _ = bench.authority.x509()
        with pytest.raises(Unavailable) as caught:
            await preparing
        assert caught.value.reason == "UPSTREAM_SILENT"

    async def test_a_first_start_without_the_upstream_says_why_and_can_be_tried_again(self, tmp_path: Path) -> None:
        clock = FakeClock()
        upstream = FakeUpstream(clock)
        upstream.error = Unavailable("sealed", reason="VAULT_SEALED")
        bench = Bench(tmp_path, MemoryKeyManager(), clock=clock, upstream=upstream)
        with pytest.raises(Unavailable) as caught:
            await bench.start()
        assert caught.value.reason == "VAULT_SEALED"
        upstream.error = None
        await clock.advance(1)
        await bench.authority.start()
        assert bench.authority.check() is None
        assert len(await bench.keys.list()) == 2
        await bench.stop()

    async def test_a_later_start_without_the_upstream_is_none_the_worse(self, bench: Bench) -> None:
        signing = bench.signing
        above(bench).hangs = True
        await bench.restart()
        assert bench.signing == signing


async def _no_jwt(key: JwtAuthority) -> tuple[JwtAuthority, ...]:
    return (key,)


class TestBadAnswers:
    async def refused(self, bench: Bench, reason: str) -> None:
        """By hand it is refused; by the schedule too, and what signs goes on."""
        before = bench.active(X509)
        with pytest.raises(BurgeeError) as caught:
            await bench.authority.prepare(X509)
        assert caught.value.reason == reason
        await bench.after(TTL / 2 + 1)
        assert bench.active(X509) == before
        problem = bench.authority.warning()
        assert problem is not None
        assert problem.reason == reason
        assert [a.status for a in bench.authority.authorities if a.kind == X509] == [AuthorityState.ACTIVE]
        await bench.after(0)
        assert len(await bench.keys.list()) <= 3, "keys of refused answers are gone"

    async def test_a_chain_that_leads_nowhere(self, bench: Bench) -> None:
        above(bench).root = "r2"
        await self.refused(bench, "UPSTREAM_ROOT_MISSING")

    async def test_a_certificate_for_another_key(self, bench: Bench) -> None:
        mint, upstream = above(bench).mint, above(bench)

        async def wrong(csr: bytes, ttl_seconds: int) -> UpstreamCa:
            answer = await mint(csr, ttl_seconds)
            return replace(answer, chain=(bench.active(X509).certificate,))

        upstream.mint = wrong  # type: ignore[method-assign]
        await self.refused(bench, "UPSTREAM_KEY_MISMATCH")

    async def test_one_that_does_not_last_for_an_svid(self, bench: Bench) -> None:
        above(bench).granted_seconds = 100
        await self.refused(bench, "UPSTREAM_TOO_SHORT")

    async def test_one_below_a_tainted_root(self, bench: Bench) -> None:
        above(bench).roots = {"r1": False, "r2": True}
        await poll(bench)
        above(bench).root = "r2"
        await self.refused(bench, "UPSTREAM_ROOT_CONDEMNED")

    async def test_one_that_ends_no_later_than_what_it_is_to_replace(self, tmp_path: Path) -> None:
        """The upstream's own end is near: each new one would live half as long as the last, faster and faster."""
        clock = FakeClock()
        upstream = FakeUpstream(clock)
        upstream.days["r1"] = 1 / 24 - 1 / 86400
        bench = Bench(tmp_path, MemoryKeyManager(), clock=clock, upstream=upstream)
        bench.longest_seconds = 60
        await bench.start()
        minted = upstream.minted
        async with Running(bench) as running:
            await running.pass_seconds(TTL / 2 + 5 * MINUTE, step=5, pause=0.005)
        assert len([a for a in bench.authority.authorities if a.kind == X509]) == 1
        problem = bench.authority.warning()
        assert problem is not None
        assert problem.reason == "UPSTREAM_ENDS"
        assert upstream.minted - minted < 150, "with pauses in between"
        await bench.stop()


class TestRoots:
    async def test_they_come_and_go_and_are_told_once(self, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
        upstream = above(bench)
        upstream.roots = {"r1": False, "r2": False}
        await poll(bench)
        assert set(bench.roots) == {upstream.id_of("r1"), upstream.id_of("r2")}
        revision = await bench.store.changes.revision()
        await poll(bench)
        assert await bench.store.changes.revision() == revision
        upstream.roots = {"r1": False}
        await poll(bench)
        await bench.clock.advance(61)
        await poll(bench)
        assert bench.roots == [upstream.id_of("r1")]
        assert "".join(capsys.readouterr()).count("upstream authority came") == 1  # r1 came with the first authority

    async def test_an_empty_answer_changes_nothing(self, bench: Bench) -> None:
        roots, upstream = bench.roots, above(bench)
        upstream.roots = {}
        await bench.clock.advance(300)
        await poll(bench)
        assert bench.roots == roots

    async def test_a_taint_from_above_first_has_a_successor_sign_and_then_is_shown(self, bench: Bench) -> None:
        """Whoever asks anew because of the taint must not get what is tainted."""
        old, upstream = bench.active(X509), above(bench)
        seen: list[tuple[bool, bool]] = []
        bench.trust.on_change(lambda _: seen.append((bool(bench.taints), bench.signing[0] == old.authority_id)))
        async with Running(bench) as running:
            upstream.roots, upstream.root = {"r1": True, "r2": False}, "r2"
            await running.pass_seconds(15, pause=0.02)
            assert bench.taints == {upstream.id_of("r1")}
            assert bench.active(X509).upstream_authority_id == upstream.id_of("r2")
            assert bench.row(old).tainted
        assert (True, True) not in seen
        upstream.roots = {"r2": False}
        await poll(bench)
        assert bench.roots == [upstream.id_of("r2")]
        assert bench.row(old).status == AuthorityState.REVOKED

    async def test_those_who_are_behind_are_waited_for_ten_seconds(self, bench: Bench) -> None:
        old, upstream = bench.active(X509), above(bench)
        bench.authority.guard = SomebodyBehind(BEHIND)
        async with Running(bench) as running:
            upstream.roots, upstream.root = {"r1": True, "r2": False}, "r2"
            await running.pass_seconds(8, pause=0.02)
            assert bench.signing[0] == old.authority_id
            await running.pass_seconds(12, pause=0.02)
            assert bench.signing[0] != old.authority_id

    async def test_a_taint_without_a_successor_is_shown_in_the_end_and_nothing_is_signed_below_it(
        self, bench: Bench
    ) -> None:
        upstream = above(bench)
        async with Running(bench) as running:
            upstream.roots = {"r1": True, "r2": False}  # and it goes on signing with r1
            await running.pass_seconds(20, pause=0.01)
            assert bench.taints == set()
            assert bench.authority.check() is None
            await running.pass_seconds(25, pause=0.01)
            assert bench.taints == {upstream.id_of("r1")}
            problem = bench.authority.check()
            assert problem is not None
            assert problem.reason == "AUTHORITY_TAINTED"
            upstream.root = "r2"
            await running.pass_seconds(10, pause=0.02)
            assert bench.authority.check() is None
            assert bench.active(X509).upstream_authority_id == upstream.id_of("r2")

    async def test_a_root_that_is_gone_for_a_minute_is_replaced_and_stays_while_it_is_needed(
        self, bench: Bench
    ) -> None:
        old, upstream = bench.active(X509), above(bench)
        async with Running(bench) as running:
            upstream.roots, upstream.root = {"r2": False}, "r2"
            await running.pass_seconds(45, pause=0.005)
            assert bench.active(X509) == old
            await running.pass_seconds(40, pause=0.02)
            assert bench.active(X509).authority_id != old.authority_id
            assert set(bench.roots) == {upstream.id_of("r1"), upstream.id_of("r2")}


class TestByHand:
    async def replaced(self, bench: Bench) -> tuple[str, str]:
        """Ids of two roots; what signs is below the second."""
        upstream = above(bench)
        upstream.roots, upstream.root = {"r1": False, "r2": False}, "r2"
        await bench.renew(X509)
        return upstream.id_of("r1"), upstream.id_of("r2")

    async def test_a_root_is_tainted_and_revoked_and_stays_so(self, bench: Bench) -> None:
        old = bench.active(X509)
        r1, r2 = await self.replaced(bench)
        (hung,) = await bench.authority.taint_upstream(r1)
        assert hung.authority_id == old.authority_id
        assert bench.taints == {r1}
        await bench.authority.revoke_upstream(r1)
        assert bench.roots == [r2]
        assert bench.row(old).status == AuthorityState.REVOKED
        await poll(bench)
        assert bench.roots == [r2], "what the upstream says does not bring it back"
        await bench.restart()
        await poll(bench)
        assert bench.roots == [r2]

    async def test_the_root_above_what_signs_is_not(self, bench: Bench) -> None:
        r1 = above(bench).id_of("r1")
        for act in (bench.authority.taint_upstream, bench.authority.revoke_upstream):
            with pytest.raises(FailedPrecondition) as caught:
                await act(r1)
            assert "which signs on server `one`" in caught.value.detail

    async def test_what_still_hangs_on_it_is_named(self, bench: Bench) -> None:
        r1, _ = await self.replaced(bench)
        await bench.authority.taint_upstream(r1)
        bench.authority.guard = SomebodyBehind(BEHIND)
        with pytest.raises(FailedPrecondition) as caught:
            await bench.authority.revoke_upstream(r1)
        assert caught.value.reason == "ROTATION_BLOCKED"
        await bench.authority.revoke_upstream(r1, force=True)

    async def test_without_an_upstream_there_is_none(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, MemoryKeyManager())
        await bench.start()
        with pytest.raises(FailedPrecondition) as caught:
            await bench.authority.taint_upstream("aa")
        assert caught.value.reason == "NO_UPSTREAM"
        await bench.stop()


class TestJwt:
    @pytest.fixture
    async def bench(self, tmp_path: Path) -> AsyncIterator[Bench]:
        clock = FakeClock()
        made = Bench(tmp_path, MemoryKeyManager(), clock=clock, upstream=FakeUpstream(clock, keeps_jwt=True))
        await made.start()
        yield made
        await made.stop()

    async def test_keys_are_published_above_before_they_are_here(self, bench: Bench) -> None:
        assert set(above(bench).jwt) == {bench.signing[1]}
        above(bench).error = Unavailable("away", reason="VAULT_SEALED")
        with pytest.raises(Unavailable):
            await bench.authority.prepare(JWT)
        assert bench.kids == [bench.signing[1]]
        above(bench).error = None
        new = await bench.authority.prepare(JWT)
        assert set(above(bench).jwt) == {bench.signing[1], new.authority_id}

    async def test_keys_of_others_come_down_and_go(self, bench: Bench) -> None:
        upstream = above(bench)
        upstream.jwt["other"] = JwtAuthority(key_id="other", public_key=bench.authority.jwt().key.public_key_der)
        await poll(bench)
        assert set(bench.kids) == {bench.signing[1], "other"}
        upstream.taint("other")
        await poll(bench)
        assert bench.taints == {"other"}
        del upstream.jwt["other"]
        await poll(bench)
        assert bench.kids == [bench.signing[1]]

    async def test_our_own_key_tainted_above_is_replaced(self, bench: Bench) -> None:
        old = bench.active(JWT)
        async with Running(bench) as running:
            above(bench).taint(old.authority_id)
            await running.pass_seconds(8, pause=0.02)
            assert bench.active(JWT).authority_id != old.authority_id
            assert bench.taints == {old.authority_id}

    async def test_keys_of_servers_below_are_handed_upwards(self, bench: Bench) -> None:
        key = JwtAuthority(key_id="below", public_key=bench.authority.jwt().key.public_key_der)
        assert {one.key_id for one in await bench.authority.publish_jwt(key)} == {"below", bench.signing[1]}
        assert "below" in above(bench).jwt
        above(bench).hangs = True
        with pytest.raises(Unavailable) as caught:
            await bench.authority.publish_jwt(key)
        assert caught.value.reason == "UPSTREAM_SILENT"


async def test_a_root_of_ours_in_the_bundle_is_the_certificate_itself(bench: Bench) -> None:
    """What verifiers get is what the upstream has, byte for byte."""
    assert [a.certificate for a in bench.bundle.x509_authorities] == [above(bench).certificate("r1")]
    assert authority_id(above(bench).certificate("r1")) == bench.active(X509).upstream_authority_id
