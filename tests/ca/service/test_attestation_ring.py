"""What the server remembers of attestations: exact, within bounds; strangers push out nobody who proved who he is."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from ca.errors import Denied, InvalidArgument, NotFound
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.runtime.gate import Peer, current_peer
from ca.runtime.notes import note
from ca.service.agent_explained import AgentSeen, agent_of, attempts_of, not_found, verdict
from ca.service.attestation_ring import Attempt, AttestationRing
from ca.store.values import AttestedAgent
from tests.support.clock import FakeClock

TD = TrustDomain("example.org")
AGENT = SpiffeId(TD, "/spire/agent/k8s_psat/c/n1")
OTHER = SpiffeId(TD, "/spire/agent/k8s_psat/d/n1")
REFUSED = Denied("wrong audience", reason="K8S_TOKEN_AUDIENCE", hint="mount another")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ring(clock: FakeClock) -> AttestationRing:
    return AttestationRing(clock)


def attempt(
    ring: AttestationRing,
    *,
    peer: str = "10.0.0.1:4000",
    agent: SpiffeId | None = None,
    error: Exception | None = None,
    notes: dict[str, str] | None = None,
) -> None:
    token = current_peer.set(Peer(transport="tls", listener="tcp", remote_address=peer))
    try:
        with ring.attempt("k8s_psat") as made:
            for what, value in (notes or {}).items():
                note(what, value)
            made.agent_id = agent
            if error is not None:
                raise error
    except Exception as raised:
        if raised is not error:
            raise
    finally:
        current_peer.reset(token)


class Evidence(bytearray):
    """Such as can be asked whether anybody holds it."""


def test_what_was_in_hand_when_an_attempt_failed_is_not_kept(ring: AttestationRing) -> None:
    """A payload has up to 4 MB, and may be a token: the way that an error took would hold it."""

    def attest(payload: Evidence) -> None:
        with ring.attempt("oidc"):
            try:
                raise ValueError(f"no text of {len(payload)} bytes")
            except ValueError as error:
                raise Denied("no", reason="TOKEN_REFUSED", hint="ask") from error

    def attest_twice() -> weakref.ref[Evidence]:
        payload = Evidence(4)
        for _ in range(2):
            with suppress(Denied):
                attest(payload)
        return weakref.ref(payload)

    held = attest_twice()
    gc.collect()
    assert held() is None
    made = newest(ring)
    assert made.error is not None
    assert (type(made.error), made.error.detail, made.error.reason, made.error.hint) == (
        Denied,
        "no",
        "TOKEN_REFUSED",
        "ask",
    )
    assert made.cause == "ValueError: no text of 4 bytes"


def newest(ring: AttestationRing) -> Attempt:
    return next(iter(ring))


class TestRing:
    def test_success_and_failure_are_kept_with_what_was_compared(self, ring: AttestationRing) -> None:
        attempt(ring, agent=AGENT, notes={"audience": "wanted a, has a"})
        cause = ValueError("inner\nthing")
        error = Denied("no", reason="X")
        error.__cause__ = cause
        attempt(ring, error=error, notes={"audience": "wanted a, has b"})
        failed, well = ring
        assert (well.agent_id, well.error, well.peer, well.attestor) == (AGENT, None, "10.0.0.1:4000", "k8s_psat")
        assert failed.error is not None
        assert (failed.agent_id, type(failed.error), failed.error.reason) == (None, Denied, "X")
        assert failed.notes[0].value == "wanted a, has b"
        assert failed.cause == r"ValueError: inner\nthing", "terminals obey nothing of it"

    async def test_one_that_is_cut_off_is_kept(self, ring: AttestationRing) -> None:
        async def hang() -> None:
            with ring.attempt("k8s_psat"):
                await asyncio.sleep(60)

        task = asyncio.create_task(hang())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        made = newest(ring)
        assert made.error is not None
        assert made.error.reason == "ATTESTATION_CUT_OFF"

    async def test_the_same_again_is_counted(self, ring: AttestationRing, clock: FakeClock) -> None:
        for number in range(5):
            await clock.advance(15)
            attempt(ring, peer=f"10.0.0.1:{4000 + number}", error=REFUSED)
        assert len(ring) == 1
        assert (newest(ring).again, newest(ring).newest_at) == (4, clock.now())
        attempt(ring, error=Denied("another", reason="OTHER"))
        assert len(ring) == 2

    def test_strangers_push_out_no_agent_and_no_address_all_others(self, ring: AttestationRing) -> None:
        attempt(ring, agent=AGENT)
        attempt(ring, peer="192.0.2.7:1", error=REFUSED)
        for number in range(5000):
            attempt(ring, peer=f"10.0.0.9:{number}", error=Denied("no", reason=f"R{number}"))
        for number in range(1000):
            attempt(ring, peer=f"[2001:db8::{number:x}]:1", error=Denied("no", reason=f"R{number}"))
        kept = list(ring)
        assert AGENT in {made.agent_id for made in kept}
        assert "192.0.2.7" in {made.host for made in kept}
        assert sum(made.host == "10.0.0.9" for made in kept) == 64
        assert sum(made.origin == "2001:db8::/64" for made in kept) == 64, "a network is one place"

    def test_many_addresses_are_bounded_as_well(self, ring: AttestationRing) -> None:
        for number in range(3000):
            attempt(ring, peer=f"10.{number >> 8}.{number & 255}.1:1", error=REFUSED)
        assert 500 < len(ring) <= 1024


def agent(agent_id: SpiffeId = AGENT, **changes: Any) -> AttestedAgent:
    values = {"attestation_type": "k8s_psat", "serial": "1", "not_after": FakeClock().now() + timedelta(hours=1)}
    return AttestedAgent(id=agent_id, **(values | changes))


class TestNames:
    def test_an_agent_is_found_by_its_id_the_end_of_its_path_or_its_address(self, ring: AttestationRing) -> None:
        attempt(ring, agent=AGENT)
        agents = {AGENT: agent()}
        for name in (str(AGENT), "n1", "c/n1", "/c/n1", "10.0.0.1", "10.0.0.1:4000"):
            assert agent_of(name, agents, list(ring)) == agents[AGENT], name
        for name in ("1", "n", "10.0.0.2", str(OTHER)):
            assert agent_of(name, agents, list(ring)) is None, name

    def test_two_agents_are_not_told_apart_by_guessing(self) -> None:
        agents = {AGENT: agent(), OTHER: agent(OTHER)}
        with pytest.raises(InvalidArgument) as ambiguous:
            agent_of("n1", agents)
        assert ambiguous.value.reason == "AGENT_NAME_AMBIGUOUS"
        assert str(AGENT) in ambiguous.value.hint
        with pytest.raises(InvalidArgument):
            agent_of("spiffe://", agents)

    def test_attempts_that_proved_nobody_are_found_by_place_note_and_id(self, ring: AttestationRing) -> None:
        attempt(ring, agent=AGENT)
        attempt(ring, peer="10.0.0.1:5000", error=REFUSED)
        attempt(ring, peer="10.0.0.2:1", error=REFUSED, notes={"node": "n1"})
        attempt(ring, peer="10.0.0.3:1", error=REFUSED)
        attempt(ring, peer="10.0.0.1:6000", agent=OTHER)
        every = list(ring)
        hosts = [made.host for made in attempts_of("n1", agent(), every)]
        assert hosts == ["10.0.0.2", "10.0.0.1", "10.0.0.1"], "neither another agent's nor another place's"
        assert [made.host for made in attempts_of("10.0.0.3", None, every)] == ["10.0.0.3"]
        assert attempts_of("nothing", None, every) == []
        assert isinstance(not_found("x"), NotFound)


class TestVerdict:
    def reason(self, held: AttestedAgent | None, *errors: Denied | None, heard: bool = True, entries: int = 1) -> str:
        now = FakeClock().now()
        attempts = [
            Attempt(id="i", at=now, attestor="k8s_psat", peer="10.0.0.1:1", agent_id=AGENT, error=error)
            for error in errors
        ]
        found = verdict(AgentSeen(agent=held, attempts=attempts, entries=entries, heard=heard), now)
        assert found.detail
        return found.reason

    def test_each_state_has_its_reason(self) -> None:
        past = FakeClock().now() - timedelta(hours=1)
        assert self.reason(agent(), None) == "OK"
        assert self.reason(agent(banned=True, serial=""), None) == "AGENT_BANNED"
        assert self.reason(agent(not_after=past), None) == "AGENT_EXPIRED"
        assert self.reason(agent(not_after=past), REFUSED) == "K8S_TOKEN_AUDIENCE"
        assert self.reason(agent(), None, heard=False) == "AGENT_SILENT"
        assert self.reason(agent(), REFUSED, heard=False) == "K8S_TOKEN_AUDIENCE"
        assert self.reason(agent(), REFUSED) == "OK", "another one was refused, and this one is well"
        assert self.reason(None, REFUSED) == "K8S_TOKEN_AUDIENCE"
        assert self.reason(None, None) == "AGENT_NOT_FOUND"

    def test_the_next_step_is_there(self) -> None:
        now = FakeClock().now()

        def command(error: Denied) -> str:
            made = Attempt(id="i", at=now, attestor="x", peer="10.0.0.1:1", agent_id=AGENT, error=error)
            return verdict(AgentSeen(agent=None, attempts=[made], entries=0, heard=False), now).command

        assert command(Denied("x", reason="AGENT_ALREADY_ATTESTED")) == f"caadmin agent evict {AGENT}"
        assert command(Denied("x", reason="JOIN_TOKEN_UNKNOWN")) == "caadmin token create"
        assert command(REFUSED) == ""
        banned = AgentSeen(agent=agent(banned=True), attempts=[], entries=0, heard=False)
        assert verdict(banned, now).command == f"caadmin agent evict {AGENT}"
