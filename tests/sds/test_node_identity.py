"""The agent's identity through its life: attested, kept, renewed, attested again, degraded, banned."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestor.node.join_token import AgentConfig as JoinTokenConfig
from attestor.node.join_token import JoinTokenProver
from ca.errors import Denied, Unauthenticated
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.spiffe_id import SpiffeId
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from ca.runtime.log import configure
from sds.backoff import Backoff
from sds.condition import Condition, State
from sds.node_plan import Attest, Renew, Wait, is_tainted, plan, renew_at
from sds.rarely import Rarely
from sds.state import AgentSvid
from tests.ca.identity.forge import TD, key
from tests.sds.fake_server import FakeServer, fresh_root, leaf_of
from tests.sds.node_lab import Node, Proof, config_for, running, serving, until
from tests.support.clock import FakeClock

T0 = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
AGENT = SpiffeId(TD, "/spire/agent/join_token/t1")


def svid_of(chain: tuple[bytes, ...] = (b"x",), *, reattestable: bool = False, issued: datetime = T0) -> AgentSvid:
    return AgentSvid(
        id=AGENT, chain=chain, key_der=b"", issued_at=issued, not_after=issued + HOUR, reattestable=reattestable
    )


class TestPlan:
    def test_first_of_all_attest(self) -> None:
        assert plan(svid=None, bundle=None, verdict=None, due=T0, now=T0) == Attest()

    def test_then_wait_until_it_is_due(self) -> None:
        svid, due = svid_of(), T0 + HOUR / 2
        assert plan(svid=svid, bundle=None, verdict=None, due=due, now=T0) == Wait(1800.0)
        assert plan(svid=svid, bundle=None, verdict=None, due=due, now=due) == Renew()

    def test_a_reattestable_node_attests_instead_of_renewing(self) -> None:
        svid = svid_of(reattestable=True)
        assert plan(svid=svid, bundle=None, verdict=None, due=T0, now=T0) == Attest()

    def test_an_expired_svid_is_good_for_nothing(self) -> None:
        step = plan(svid=svid_of(), bundle=None, verdict=None, due=T0, now=T0 + HOUR)
        assert isinstance(step, Attest)
        assert step.why is not None
        assert step.why.reason == "AGENT_EXPIRED"
        ended = f"{T0 + HOUR:%Y-%m-%d %H:%M:%SZ}"
        assert f"expired at {ended}, the clock here says {ended}" in step.why.detail, (
            "is the SVID old or the clock wrong?"
        )

    def test_a_servers_verdict_comes_first(self) -> None:
        verdict = Denied("no", reason="AGENT_NOT_ATTESTED")
        assert plan(svid=svid_of(), bundle=None, verdict=verdict, due=T0 + HOUR, now=T0) == Attest(why=verdict)

    def test_an_svid_that_the_bundle_does_not_vouch_for(self) -> None:
        now = datetime.now(UTC)
        first, second = fresh_root("a", key=key("P-256", "a")), fresh_root("b", key=key("P-256", "b"))
        svid = svid_of((leaf_of(first, str(AGENT)),), issued=now)
        due = now + HOUR / 2
        assert isinstance(plan(svid=svid, bundle=first.bundle(TD), verdict=None, due=due, now=now), Wait)
        step = plan(svid=svid, bundle=second.bundle(TD), verdict=None, due=due, now=now)
        assert isinstance(step, Attest)
        assert step.why is not None
        assert step.why.reason == "AGENT_SVID_UNTRUSTED"

    def test_taint(self) -> None:
        now = datetime.now(UTC)
        first, second = fresh_root("a", key=key("P-256", "a")), fresh_root("b", key=key("P-256", "b"))
        svid = svid_of((leaf_of(first, str(AGENT)),), issued=now)
        old = X509Authority(certificate=first.der, tainted=True)
        new = X509Authority(certificate=second.der)
        assert is_tainted(svid, TrustBundle(trust_domain=TD, x509_authorities=(old, new)))
        assert not is_tainted(svid, TrustBundle(trust_domain=TD, x509_authorities=(old,))), "nothing to renew under"
        clean = TrustBundle(trust_domain=TD, x509_authorities=(X509Authority(certificate=first.der), new))
        assert not is_tainted(svid, clean)

    @given(jitter=st.floats(-1, 1), backdate=st.integers(0, 600))
    def test_renewal_is_counted_from_issue(self, jitter: float, backdate: int) -> None:
        """Whatever notBefore says: at half of what is left at issue, within a tenth of that half."""
        due = renew_at(svid_of(), jitter)
        assert timedelta(minutes=27) <= due - T0 <= timedelta(minutes=33)


@given(jitter=st.floats(-1, 1), failures=st.integers(1, 200))
def test_pauses_between_tries_are_bounded(jitter: float, failures: int) -> None:
    backoff = Backoff(lambda: jitter)
    for _ in range(failures):
        assert 0.19 <= backoff.next(5.0) <= 6.0
    backoff.reset()
    assert backoff.next(5.0) <= 0.31


def test_a_condition_shows_the_identitys_problem_first_then_the_oldest_and_counts_news_once() -> None:
    clock = FakeClock()
    condition = Condition(clock)
    assert condition.state is State.STARTING
    condition.started()
    assert condition.state is State.STARTING  # an identity from the disk says nothing about the server
    assert condition.problem is not None
    assert condition.problem.reason == "AGENT_STARTING"
    condition.in_touch()
    assert condition.state is State.OK
    assert condition.problem is None
    assert condition.report("sync", Unauthenticated("a", reason="A"))
    clock.jump(1)
    assert not condition.report("sync", Unauthenticated("b", reason="A"))
    assert condition.report("cache", Unauthenticated("c", reason="C"))
    problem = condition.problem
    assert problem is not None
    assert (problem.reason, problem.detail) == ("A", "b")
    assert problem.since < problem.last_seen
    assert condition.report("identity", Unauthenticated("i", reason="I"))
    assert condition.problem is not None
    assert condition.problem.reason == "I", "the cause, however young: what the others have follows from it"
    assert condition.state is State.DEGRADED
    assert set(condition.problems) == {"sync", "cache", "identity"}
    assert condition.clear("sync")
    assert not condition.clear("sync")
    condition.banned(Denied("out", reason="AGENT_BANNED"))
    assert condition.state is State.BANNED
    assert condition.problem is not None
    assert condition.problem.reason == "AGENT_BANNED"
    assert condition.no_identity == condition.problem
    condition.started()
    assert condition.state is State.DEGRADED
    assert condition.no_identity is None
    condition.clear("identity")
    condition.clear("cache")
    assert condition.state is State.STARTING, "of its new identity no server has said anything yet"


def test_the_same_is_said_rarely() -> None:
    clock = FakeClock()
    rarely = Rarely(clock, again_seconds=300)
    assert rarely.worth("A")
    assert not rarely.worth("A")
    assert rarely.worth("B")
    assert rarely.times == 1
    said = []
    for _ in range(100):
        clock._mono += 15
        said.append(rarely.worth("B"))
    assert said.count(True) == 5
    assert rarely.times == 101
    rarely.forget()
    assert rarely.worth("B")


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """The log, one JSON object a line."""
    stream = io.StringIO()
    configure("json", "info", stream)
    yield stream
    configure()


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving(FakeServer()) as fake:
        yield fake


class TestLife:
    async def test_attestation(self, tmp_path: Path, server: FakeServer) -> None:
        node = Node(config_for(tmp_path, server), Proof(b"t1"))
        async with running(node, client=False):
            svid = await node.identity.wait_svid()
            assert svid.id == AGENT
            assert node.condition.state is State.OK
            assert node.store.load_agent() == svid
            assert server.client_chains == [None]

    async def test_a_restart_needs_neither_server_nor_token(self, tmp_path: Path, server: FakeServer) -> None:
        config = config_for(tmp_path, server)
        first = Node(config, Proof(b"t1"))
        async with running(first, client=False):
            before = await first.identity.wait_svid()
        await server.stop()
        second = Node(config, Proof(b"t1"))
        async with running(second, client=False):
            assert await second.identity.wait_svid() == before
            assert second.condition.state is State.OK
        assert server.calls.count("AttestAgent") == 1

    async def test_challenges_are_answered(self, tmp_path: Path, server: FakeServer) -> None:
        server.challenges = [b"one", b"two"]
        node = Node(config_for(tmp_path, server), Proof(b"t1"))
        async with running(node, client=False):
            await node.identity.wait_svid()
        assert server.answers == [b"re:one", b"re:two"]

    async def test_an_unreachable_server_is_waited_for(self, tmp_path: Path, server: FakeServer) -> None:
        await server.stop()
        node = Node(config_for(tmp_path, server), Proof(b"t1"))
        async with running(node, client=False):
            await until(lambda: node.reason == "SERVER_UNREACHABLE")
            assert node.condition.state is State.DEGRADED
            await server.start()
            await node.identity.wait_svid()
            await until(lambda: node.condition.state is State.OK)

    async def test_a_used_token_says_what_to_do_and_a_new_one_heals(self, tmp_path: Path, server: FakeServer) -> None:
        (tmp_path / "token").write_text("used")
        prover = JoinTokenProver(from_values({"token_file": str(tmp_path / "token")}, JoinTokenConfig))
        node = Node(config_for(tmp_path, server), prover)
        async with running(node, client=False):
            await until(lambda: node.reason == "ATTESTATION_REFUSED")
            assert "already been used" in node.detail
            assert node.condition.problem is not None
            assert "join token" in node.condition.problem.hint
            (tmp_path / "token").write_text("t1")
            await node.identity.wait_svid()

    async def test_no_token_at_all(self, tmp_path: Path, server: FakeServer) -> None:
        prover = JoinTokenProver(from_values({"token_file": str(tmp_path / "token")}, JoinTokenConfig))
        node = Node(config_for(tmp_path, server), prover)
        async with running(node, client=False):
            await until(lambda: node.reason == "JOIN_TOKEN_MISSING")
        assert server.calls == []

    @pytest.mark.parametrize("path", ["/web", "/spire/server"])
    async def test_an_id_that_is_no_agents_is_not_taken(self, tmp_path: Path, server: FakeServer, path: str) -> None:
        server.agent_path, server.reattestable = path, True
        node = Node(config_for(tmp_path, server), Proof(b"t1"))
        async with running(node, client=False):
            await until(lambda: node.reason == "AGENT_SVID_UNUSABLE")
        assert node.identity.svid is None

    async def test_renewal_with_a_fresh_key(self, tmp_path: Path, server: FakeServer) -> None:
        clock = FakeClock(SystemClock().now())
        server.now = clock.now
        node = Node(config_for(tmp_path, server), Proof(b"t1"), clock=clock)
        async with running(node, client=False):
            before = await node.identity.wait_svid()
            await clock.advance(1700)
            assert node.identity.svid == before
            await self._passes(clock, lambda: node.identity.svid != before)
            after = node.identity.svid
            assert after is not None
            assert after.id == before.id
            assert after.key_der != before.key_der
            assert after.not_after > before.not_after
            assert node.store.load_agent() == after
            assert server.calls == ["AttestAgent", "RenewAgent"]
            assert server.client_chains == [None, before.chain[0]]

    async def test_a_failed_renewal_is_tried_again_and_shown(self, tmp_path: Path, server: FakeServer) -> None:
        clock = FakeClock(SystemClock().now())
        server.now = clock.now
        node = Node(config_for(tmp_path, server), Proof(b"t1"), clock=clock)
        async with running(node, client=False):
            before = await node.identity.wait_svid()
            await server.stop()
            await self._passes(clock, lambda: node.reason == "SERVER_UNREACHABLE", step=60)
            assert node.identity.svid == before
            await server.start()
            await self._passes(clock, lambda: node.condition.state is State.OK)
            assert node.identity.svid != before

    async def test_an_expired_agent_attests_again_in_place(self, tmp_path: Path, server: FakeServer) -> None:
        """The server is away until the SVID has lapsed; nobody touches the agent."""
        clock = FakeClock(SystemClock().now())
        server.now = clock.now
        server.reattestable = True
        node = Node(config_for(tmp_path, server), Proof(b"t1", again=True), clock=clock)
        async with running(node, client=False):
            before = await node.identity.wait_svid()
            await server.stop()
            await self._passes(clock, lambda: "expired" in node.detail, step=120)
            assert node.reason == "SERVER_UNREACHABLE"
            assert "attesting again" in node.detail
            await server.start()
            await self._passes(clock, lambda: node.identity.svid != before and node.condition.state is State.OK)

    async def test_an_expired_agent_that_cannot_says_so(self, tmp_path: Path, server: FakeServer) -> None:
        clock = FakeClock(SystemClock().now())
        server.now = clock.now
        proof = Proof(b"t1")
        node = Node(config_for(tmp_path, server), proof, clock=clock)
        async with running(node, client=False):
            before = await node.identity.wait_svid()
            await server.stop()
            await self._passes(clock, lambda: node.reason == "AGENT_EXPIRED", step=120)
            assert node.condition.state is State.DEGRADED
            # The renewal that was due may say so first; the attestation after it says what is missing.
            await self._passes(clock, lambda: "join token" in (((told := node.condition.problem) and told.hint) or ""))
            assert node.reason == "AGENT_EXPIRED"
            await server.start()
            server.tokens.add("t2")
            proof.payloads += [b"t2", b"t2"]
            proof.payloads.pop(0)
            await self._passes(clock, lambda: node.identity.svid != before and node.condition.state is State.OK)

    @pytest.mark.parametrize(
        "reason", ["AGENT_EXPIRED", "AGENT_NOT_ATTESTED", "AGENT_NOT_ACTIVE", "AGENT_MUST_REATTEST"]
    )
    async def test_a_verdict_leads_to_a_new_attestation(self, tmp_path: Path, server: FakeServer, reason: str) -> None:
        server.reattestable = True
        node = Node(config_for(tmp_path, server), Proof(b"t1", again=True))
        async with running(node, client=False):
            before = await node.identity.wait_svid()
            node.identity.denied(Denied("authorization denied", reason=reason))
            await until(lambda: node.identity.svid != before)
            assert node.condition.state is State.OK

    @pytest.mark.parametrize("reason", ["AGENT_NOT_ATTESTED", "AGENT_NOT_ACTIVE"])
    async def test_a_verdict_without_proof_degrades_by_name(
        self, tmp_path: Path, server: FakeServer, reason: str
    ) -> None:
        node = Node(config_for(tmp_path, server), Proof(b"t1"))
        async with running(node, client=False):
            before = await node.identity.wait_svid()
            node.identity.denied(Denied("authorization denied", reason=reason))
            await until(lambda: node.reason == reason)
            assert node.condition.state is State.DEGRADED
            assert "nothing left to prove" in node.detail
            assert node.identity.svid == before, "what it has keeps serving"

    async def test_other_denials_are_not_about_the_agent(self, tmp_path: Path, server: FakeServer) -> None:
        node = Node(config_for(tmp_path, server), Proof(b"t1", again=True))
        async with running(node, client=False):
            await node.identity.wait_svid()
            node.identity.denied(Denied("entry not authorized"))
            node.identity.denied(Unauthenticated("who", reason="AGENT_BANNED"))
            assert node.identity._verdict is None

    async def test_a_ban_erases_everything(self, tmp_path: Path, server: FakeServer) -> None:
        node = Node(config_for(tmp_path, server), Proof(b"t1"))
        told: list[bool] = []

        async def drop() -> None:
            told.append(node.store.load_agent() is None)

        node.identity.on_banned(drop)
        async with running(node, client=False):
            svid = await node.identity.wait_svid()
            node.store.save_svids(svid.id, ())
            node.identity.denied(Denied("authorization denied", reason="AGENT_BANNED"))
            await until(lambda: node.condition.state is State.BANNED)
            await until(lambda: told == [True])
            assert node.identity.svid is None
            assert not list(tmp_path.rglob("*.sealed"))
        assert server.calls == ["AttestAgent"]

    async def test_a_ban_is_obeyed_although_the_disk_refuses_and_the_disk_is_tried_again(
        self, tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node, dropped = Node(config_for(tmp_path, server), Proof(b"t1")), []

        async def drop() -> None:
            dropped.append(1)

        def refuse() -> None:
            raise OSError("read-only file system")

        node.identity.on_banned(drop)
        monkeypatch.setattr(node.store, "erase", refuse)
        first = asyncio.create_task(node.identity.run())
        await node.identity.wait_svid()
        node.identity.denied(Denied("authorization denied", reason="AGENT_BANNED"))
        with pytest.raises(OSError, match="read-only"):
            await first
        assert dropped == [1], "what is served ends all the same"
        monkeypatch.undo()
        again = asyncio.create_task(node.identity.run())  # as the agent's supervisor does
        try:
            await until(lambda: "nothing left to prove" in node.detail)
        finally:
            again.cancel()
        assert node.identity.svid is None
        assert node.condition.state is State.BANNED
        assert not list(tmp_path.rglob("*.sealed"))

    async def test_after_a_ban_it_attests_anew_once_it_has_proof(self, tmp_path: Path, server: FakeServer) -> None:
        clock = FakeClock(SystemClock().now())
        server.now = clock.now
        proof = Proof(b"t1")
        node = Node(config_for(tmp_path, server), proof, clock=clock)
        async with running(node, client=False):
            before = await node.identity.wait_svid()
            bundle = node.trust.bundle
            node.identity.denied(Denied("authorization denied", reason="AGENT_BANNED"))
            await self._passes(clock, lambda: "nothing left to prove" in node.detail, step=0.1)
            assert node.condition.state is State.BANNED
            assert node.condition.problem is not None
            assert "caadmin agent evict" in node.condition.problem.hint
            assert "join token" in node.condition.problem.hint
            for _ in range(20):
                await clock.advance(5)
            assert server.calls == ["AttestAgent"], "without proof nobody is asked"
            assert not list(tmp_path.rglob("*.sealed"))
            server.tokens.add("t2")
            proof.payloads = [b"t2", b"t2"]
            await self._passes(clock, lambda: node.identity.svid is not None)
            after = node.identity.svid
            assert after is not None
            assert after.id != before.id
            assert node.condition.state is not State.BANNED
            assert node.store.load_agent() == after
            assert node.store.load_bundle() == bundle, "the trust that it had is remembered again"

    async def test_while_the_server_says_banned_it_stays_so_and_asks_ever_less_often(
        self, tmp_path: Path, server: FakeServer
    ) -> None:
        clock = FakeClock(SystemClock().now())
        server.now, server.reattestable = clock.now, True
        node = Node(config_for(tmp_path, server), Proof(b"t1", again=True), clock=clock)
        async with running(node, client=False):
            await node.identity.wait_svid()
            server.denials["AttestAgent"] = Denied("failed to attest: agent is banned", reason="BANNED")
            node.identity.denied(Denied("authorization denied", reason="AGENT_BANNED"))
            await self._passes(clock, lambda: "agent is banned" in node.detail, step=0.1)
            for _ in range(60):
                await clock.advance(60)
                await asyncio.sleep(0.02)
            assert node.condition.state is State.BANNED
            assert node.reason == "AGENT_BANNED"
            assert 10 < len(server.calls) < 70, "once a minute in an hour"
            assert node.store.load_agent() is None
            node.identity.denied(Denied("authorization denied", reason="AGENT_BANNED"))
            server.denials["AttestAgent"] = Denied("authorization denied", reason="AGENT_BANNED")
            asked = len(server.calls)
            await self._passes(clock, lambda: len(server.calls) >= asked + 2)
            assert node.condition.state is State.BANNED
            server.denials.clear()
            await self._passes(clock, lambda: node.identity.svid is not None)
            assert node.store.load_agent() == node.identity.svid

    async def test_the_log_says_why_it_attests_where_there_is_a_why_and_each_failure_rarely(
        self, tmp_path: Path, server: FakeServer, said: io.StringIO
    ) -> None:
        clock = FakeClock(SystemClock().now())
        server.now = clock.now
        server.tokens.clear()
        node = Node(config_for(tmp_path, server), Proof(b"t1", again=True), clock=clock)
        async with running(node, client=False):
            await self._passes(clock, lambda: server.calls.count("AttestAgent") > 40)
            server.tokens.add("t1")
            await self._passes(clock, lambda: node.identity.svid is not None)
            server.tokens.add("t1")
            node.identity.denied(Denied("authorization denied", reason="AGENT_NOT_ATTESTED"))
            await self._passes(clock, lambda: said.getvalue().count("agent SVID issued") == 2)
        lines = [json.loads(line) for line in said.getvalue().splitlines()]
        attesting = [line for line in lines if line["event"] == "attesting"]
        assert "why" not in attesting[0]
        assert attesting[-1]["why"] == "AGENT_NOT_ATTESTED"
        refused = [line for line in lines if line.get("reason") == "ATTESTATION_REFUSED"]
        assert 2 <= len(refused) <= 5, "at first, and every five minutes of ten"
        assert refused[0]["event"] == "this agent has no identity"
        assert "tries" not in refused[0]
        assert refused[-1]["tries"] > 10

    async def test_a_ban_met_at_renewal(self, tmp_path: Path, server: FakeServer) -> None:
        clock = FakeClock(SystemClock().now())
        server.now = clock.now
        server.denials["RenewAgent"] = Denied("authorization denied", reason="AGENT_BANNED")
        node = Node(config_for(tmp_path, server), Proof(b"t1"), clock=clock)
        async with running(node, client=False):
            await node.identity.wait_svid()
            await self._passes(clock, lambda: node.condition.state is State.BANNED, step=60)

    async def test_a_taint_renews_at_once(self, tmp_path: Path, server: FakeServer) -> None:
        node = Node(config_for(tmp_path, server), Proof(b"t1"))
        async with running(node):
            before = await node.identity.wait_svid()
            await until(lambda: node.feed.snapshots == 1)
            old, server.root = server.root, fresh_root("next", key=key("P-256", "next"))
            tainted = X509Authority(certificate=old.der, tainted=True)
            fresh = X509Authority(certificate=server.root.der)
            server.bundle = TrustBundle(trust_domain=TD, x509_authorities=(tainted, fresh), sequence_number=2)
            await server.push_bundle()
            await until(lambda: node.identity.svid != before)
            assert "RenewAgent" in server.calls

    async def _passes(self, clock: FakeClock, reached: Callable[[], bool], *, step: float = 5.0) -> None:
        """Lets the fake time pass while real sockets are given real time."""
        for _ in range(2000):
            if reached():
                return
            await clock.advance(step)
            await asyncio.sleep(0.01)
        raise AssertionError("the awaited state did not come")
