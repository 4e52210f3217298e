"""The schedule and the guard together: who is behind is waited for, who is gone drops out, and at the last safe second
it goes on over everybody's head, loudly."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from shutil import rmtree

import pytest

from ca.authority.state import AuthorityState, find
from ca.identity.spiffe_id import SpiffeId
from ca.keys.memory import MemoryKeyManager
from ca.runtime import metrics
from ca.service.acks import BUNDLE, Acknowledged
from ca.service.peers import AgentTable
from ca.service.rotation_guard_parts import GuardParts, guard_parts
from ca.store.authorized import AuthorizedIndex
from ca.store.values import AttestedAgent
from tests.ca.service.rotation_lab import TD, TTL, X509, Bench

LONGEST = 60.0
DUE = TTL * 5 / 6
LAST_SAFE = TTL - LONGEST - 60
"""The longest SVID still fits, with the margin that is kept."""


class Watched(Bench):
    """With a guard that knows agents, and their word."""

    agents: AgentTable
    parts: GuardParts

    async def open(self) -> None:
        await super().open()
        self.longest_seconds = LONGEST
        self.agents = AgentTable(self.store.agents)
        self.parts = guard_parts(
            store=self.store,
            trust=self.trust,
            agents=self.agents,
            index=AuthorizedIndex(TD, self.clock.now),
            clock=self.clock,
            authorities=lambda: self.authority.journal.authorities,
            server="one",
        )
        self.authority.guard = self.parts.guard

    async def agent(self, name: str, *, life: float) -> SpiffeId:
        """Its own SVID ends after so many seconds."""
        made = SpiffeId(TD, f"/spire/agent/x/{name}")
        end = self.clock.now() + timedelta(seconds=life)
        async with self.agents.lock:
            self.agents.adopt(made, AttestedAgent(id=made, attestation_type="x", serial="1", not_after=end))
        return made

    def acknowledge(self, agent: SpiffeId) -> None:
        """It holds whatever is in the bundle."""
        held = frozenset((*self.roots, *self.kids))
        ack = Acknowledged(revision=1, error="", consumers=0, consumers_acked=0, at=self.clock.now(), authorities=held)
        self.parts.acks.put(agent, BUNDLE, ack)

    @property
    def waiting(self) -> bool:
        return find(self.authority.authorities, AuthorityState.PREPARED, X509) is not None


@pytest.fixture
async def bench() -> AsyncIterator[Watched]:
    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    made = Watched(directory, MemoryKeyManager())
    await made.start()
    yield made
    await made.stop()
    rmtree(directory, ignore_errors=True)


def overdue() -> float:
    name = "burgee_rotations_total"
    labels = {"kind": "x509", "step": "activate", "result": "overdue"}
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_on_schedule_when_everybody_has_it(bench: Watched) -> None:
    agent = await bench.agent("here", life=2 * TTL)
    await bench.after(TTL / 2)
    bench.acknowledge(agent)
    await bench.after(DUE - TTL / 2)
    assert not bench.waiting
    assert bench.authority.warning() is None


async def test_it_goes_on_as_soon_as_the_last_one_has_it(bench: Watched) -> None:
    agent = await bench.agent("late", life=2 * TTL)
    await bench.after(TTL / 2)
    await bench.after(DUE - TTL / 2)
    assert bench.waiting
    problem = bench.authority.warning()
    assert problem is not None
    assert problem.reason == "ROTATION_HELD"
    bench.acknowledge(agent)
    await bench.after(15)
    assert not bench.waiting


async def test_an_agent_gone_for_ever_is_waited_for_until_its_svid_ends(bench: Watched) -> None:
    before = overdue()
    await bench.agent("gone", life=DUE + 100)
    await bench.after(TTL / 2)
    await bench.after(DUE - TTL / 2)
    await bench.after(85)
    assert bench.waiting
    await bench.after(30)
    assert not bench.waiting
    assert overdue() == before


async def test_at_the_last_safe_second_it_activates_and_says_whom_it_cut_off(
    bench: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    before, old = overdue(), bench.signing[0]
    await bench.agent("gone", life=2 * TTL)
    await bench.after(TTL / 2)
    await bench.after(LAST_SAFE - TTL / 2 - 1)
    assert bench.waiting
    assert bench.signing[0] == old
    capsys.readouterr()
    await bench.after(11)  # it looks again every ten seconds at least
    assert not bench.waiting
    assert bench.signing[0] != old
    assert overdue() == before + 1
    said = "".join(capsys.readouterr())
    assert "ROTATION_OVERDUE" in said
    assert "spiffe://example.org/spire/agent/x/gone" in said
    left = (bench.authority.x509().issuer.not_after - bench.clock.now()).total_seconds()
    assert left > LONGEST  # nobody's life is cut short
