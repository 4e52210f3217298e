"""The status of a trust domain with a thousand agents, at a glance."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from ca.authority.state import AuthorityKind, AuthorityState, find
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.burgee import authority_pb2 as pb
from ca.proto.burgee.authority_pb2_grpc import AuthoritiesStub
from ca.service.acks import BUNDLE, ENTRY, Acknowledged
from ca.store.values import AttestedAgent, IssuanceRecord
from tests.support.server import TRUST_DOMAIN, RunningServer, running_server

TD = TrustDomain(TRUST_DOMAIN)
AGENTS, WORKLOADS, BEHIND = 1000, 10, 3
HOUR = timedelta(hours=1)


def record(agent: SpiffeId, path: str, entry: str, serial: int, authority: str, now: datetime) -> IssuanceRecord:
    return IssuanceRecord(
        kind="x509",
        serial_or_kid=str(serial),
        tbs_sha256=os.urandom(32),
        authority_id=authority,
        server="s",
        spiffe_id=path,
        not_before=now,
        not_after=now + HOUR,
        entry_id=entry,
        agent=str(agent),
        key_sha256=os.urandom(32),
    )


@pytest.fixture
async def crowded() -> AsyncIterator[RunningServer]:
    """A thousand agents with ten workloads each, who all but three have what is prepared."""
    async with running_server() as server:
        parts, now = server.server, server.server.clock.now()
        active = find(parts.authority.authorities, AuthorityState.ACTIVE, AuthorityKind.X509)
        assert active is not None
        prepared = await parts.authority.prepare(AuthorityKind.X509)
        for number in range(AGENTS):
            agent = SpiffeId(TD, f"/spire/agent/join_token/{number}")
            async with parts.agents.lock:
                parts.agents.adopt(
                    agent,
                    AttestedAgent(id=agent, attestation_type="t", serial=str(number + 1), not_after=now + HOUR),
                )
            records = [record(agent, str(agent), "", number + 1, active.authority_id, now)]
            for workload in range(WORKLOADS):
                path = f"spiffe://{TD}/ns/n{number}/sa/{workload}"
                records.append(record(agent, path, f"e{number}-{workload}", 10**6 + workload, active.authority_id, now))
            await parts.store.issuance.append(records)
            held = {active.authority_id, prepared.authority_id} if number >= BEHIND else {active.authority_id}
            for kind in (BUNDLE, ENTRY):
                parts.feed.acks.put(
                    agent,
                    kind,
                    Acknowledged(
                        revision=1,
                        error="",
                        consumers=2,
                        consumers_acked=2,
                        at=now,
                        authorities=frozenset(held),
                        svids={active.authority_id: WORKLOADS},
                    ),
                )
        yield server


async def test_a_thousand_agents_at_a_glance(crowded: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Must take at most a second, and aims at 0.3 s: the first look, which reads the log, and those after it."""
    stub = AuthoritiesStub(crowded.local.channel)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        status = await stub.GetStatus(pb.GetStatusRequest(named=20))
        seconds.append(time.perf_counter() - began)
    prepared = next(one for one in status.authorities if one.status == "prepared")
    active = next(one for one in status.authorities if one.status == "active" and one.kind == "x509")
    assert (prepared.agents_acked, prepared.behind_total, status.agents) == (AGENTS - BEHIND, BEHIND, AGENTS)
    assert active.hanging == active.alive == AGENTS * (WORKLOADS + 1) + 1
    with capsys.disabled():
        shown = ", ".join(f"{one * 1000:.0f}" for one in seconds)
        print(f"\nstatus with {AGENTS} agents and {AGENTS * WORKLOADS} workloads: {shown} ms (first look, then again)")
    assert seconds[0] <= 2.0  # on a machine that others use too
    assert min(seconds[1:]) <= 1.0
