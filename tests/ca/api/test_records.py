"""Issued identities and pruning over the wire."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from typing import Any

import grpc
import pytest

from ca.api import records
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.burgee import admin_pb2 as pb
from ca.proto.spire import server_svid_pb2
from ca.runtime.clock import SystemClock
from ca.service.pruning import PrunePolicy
from ca.store.values import AttestedAgent
from tests.support.clock import FakeClock
from tests.support.server import TRUST_DOMAIN, RunningServer, entry, eventually, make_csr, running_server, spiffe_id

ID = f"spiffe://{TRUST_DOMAIN}"


async def issued(server: RunningServer, **fields: Any) -> list[pb.Issued]:
    pages = server.local.admin.ListIssued(pb.ListIssuedRequest(**fields), timeout=10)
    return [record async for page in pages for record in page.records]


async def test_who_got_which_identity() -> None:
    async with running_server() as server:
        agent, caller = await server.agent()
        (made,) = await server.create(entry("/w", agent.path))
        params = [server_svid_pb2.NewX509SVIDParams(entry_id=made.id, csr=make_csr()) for _ in range(3)]
        answer = await caller.svids.BatchNewX509SVID(server_svid_pb2.BatchNewX509SVIDRequest(params=params))
        assert {result.status.code for result in answer.results} == {0}
        jwt = server_svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a"])
        await caller.svids.NewJWTSVID(jwt)
        token, *certificates = await issued(server, spiffe_id=f"{ID}/w")
        assert (token.kind, token.key_sha256, token.authority_id) == ("jwt", b"", token.serial_or_kid)
        assert len(certificates) == 3
        for record in certificates:
            assert (record.kind, record.entry_id, record.agent_id) == ("x509", made.id, f"{ID}{agent.path}")
            assert (len(record.key_sha256), record.entry_revision) == (32, made.revision_number)
            assert record.not_before < record.not_after
        assert len({record.serial_or_kid for record in certificates}) == 3
        of_agent = await issued(server, agent_id=f"{ID}{agent.path}")
        assert {record.spiffe_id for record in of_agent} == {f"{ID}/w", f"{ID}{agent.path}"}
        assert await issued(server, authority_id=token.authority_id) == [token]
        assert [r.kind for r in await issued(server, limit=1)] == ["jwt"]
        assert {r.kind for r in await issued(server)} == {"jwt", "x509", "ca"}
        assert await issued(server, spiffe_id=f"{ID}/nobody") == []


async def test_only_what_is_valid_now() -> None:
    async with running_server() as server:
        csr = make_csr(uris=[f"{ID}/short"])
        await server.local.admin.MintX509SVID(pb.MintX509SVIDRequest(csr=csr, ttl_seconds=1))
        assert len(await issued(server, spiffe_id=f"{ID}/short")) == 1

        async def over() -> bool:
            return await issued(server, spiffe_id=f"{ID}/short", live=True) == []

        await eventually(over)
        assert len(await issued(server, spiffe_id=f"{ID}/short")) == 1


async def add_expired(server: RunningServer, name: str, age: timedelta, **fields: Any) -> str:
    agent = AttestedAgent(
        id=SpiffeId(TrustDomain(TRUST_DOMAIN), f"/spire/agent/join_token/{name}"),
        attestation_type="join_token",
        serial="1",
        not_after=server.server.clock.now() - age,
        selectors=frozenset({Selector("a", "b")}),
        **fields,
    )
    await server.server.store.agents.upsert(agent)
    return str(agent.id)


async def test_join_tokens_are_known_by_their_id_and_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PAGE", 2)
    async with running_server() as server:

        async def listed() -> list[pb.JoinTokenInfo]:
            pages = server.local.admin.ListJoinTokens(pb.ListJoinTokensRequest(), timeout=10)
            return [token async for page in pages for token in page.tokens]

        assert await listed() == []
        clock, store = server.server.clock, server.server.store
        alias = SpiffeId.parse(f"{ID}/my-node")
        values = {"expired": "a" * 16, "used": "b" * 16, "unused": "c" * 16}
        for hours, value in zip((-1, 1, 2), values.values(), strict=True):
            await store.tokens.create(value, clock.now() + timedelta(hours=hours), alias if hours == 2 else None)
        await server.attest(token=values["used"])
        found = await listed()
        assert [token.state for token in found] == list(values)
        assert [token.id for token in found] == [store.tokens.id_of(value) for value in values.values()]
        assert len({token.id for token in found}) == 3
        for value, token in zip(values.values(), found, strict=True):
            assert token.id not in sha256(value.encode()).hexdigest(), "who sees the list could try values"
        assert [token.spiffe_id for token in found] == ["", "", str(alias)]
        assert [token.used_at > 0 for token in found] == [False, True, False]
        assert [token.expires_at for token in found] == sorted(token.expires_at for token in found)
        by = f"{ID}/spire/agent/join_token/{values['used']}"
        assert [token.used_by for token in found] == ["", by, ""]  # its agent's name, and of no use any more
        secrets = [values["expired"], values["unused"]]
        assert not any(value.encode() in token.SerializeToString() for value in secrets for token in found)


async def test_pruning_by_hand() -> None:
    async with running_server() as server:
        agent, _ = await server.agent()
        old = await add_expired(server, "old", timedelta(days=31))
        week = await add_expired(server, "week", timedelta(days=7))
        await add_expired(server, "banned", timedelta(days=400), banned=True)
        renewed = server.server.clock.now() + timedelta(hours=1)
        await add_expired(server, "renewed", timedelta(days=31), pending_serial="2", pending_not_after=renewed)
        (over,) = await server.create(entry("/over", agent.path, expires_at=1_000_000_000))
        (kept,) = await server.create(entry("/kept", agent.path, expires_at=4_000_000_000))
        planned = await server.local.admin.Prune(pb.PruneRequest(dry_run=True))
        assert (list(planned.agents), list(planned.entries)) == ([old], [over.id])
        assert await server.server.store.agents.count() == 5
        done = await server.local.admin.Prune(pb.PruneRequest())
        assert done == planned
        shorter = await server.local.admin.Prune(pb.PruneRequest(agents_expired_for_seconds=86400))
        assert list(shorter.agents) == [week]
        assert {a.id.path.rpartition("/")[2] for a in await server.server.store.agents.all()} == {
            "banned",
            "renewed",
            agent.path.rpartition("/")[2],
        }
        assert [e.id for e in await server.server.store.entries.all()] == [kept.id]
        assert server.server.agents.get(SpiffeId.parse(old)) is None, "memory has followed"
        audited = [
            r async for page in server.local.admin.ListAudit(pb.ListAuditRequest(call="Prune")) for r in page.records
        ]
        assert [{item.name for item in r.items} for r in audited[:2]] == [{old, over.id}] * 2
        assert [{item.about for item in r.items} for r in audited[:2]] == [{"dry run"}, {""}]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.local.admin.Prune(pb.PruneRequest(agents_expired_for_seconds=-1))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_pruning_on_schedule() -> None:
    clock = FakeClock(SystemClock().now())
    async with running_server(clock=clock) as server:
        old = await add_expired(server, "old", timedelta(days=31))
        gone = SpiffeId.parse(old)
        await clock.advance(11)

        async def away() -> bool:
            return await server.server.store.agents.get(gone) is None

        await eventually(away)
        await add_expired(server, "old", timedelta(days=31))

        async def next_pass() -> bool:
            await clock.advance(600)
            return await away()

        await eventually(next_pass)


async def test_null_keeps_agents_for_ever() -> None:
    async with running_server(prune={"agents_expired_for_seconds": None}) as server:
        await add_expired(server, "old", timedelta(days=3000))
        assert list((await server.local.admin.Prune(pb.PruneRequest())).agents) == []
        assert server.server.pruner.policy == PrunePolicy(agents_expired_for=None)


async def test_the_report_is_for_administrators() -> None:
    from ca.proto.burgee import debug_pb2, debug_pb2_grpc

    async with running_server() as server:
        _, agent = await server.agent()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await debug_pb2_grpc.DebugStub(agent.channel).GetReport(debug_pb2.GetReportRequest())
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        report = await debug_pb2_grpc.DebugStub(server.local.channel).GetReport(debug_pb2.GetReportRequest(log_lines=3))
        assert report.program == "server"
        assert f"trust_domain: {TRUST_DOMAIN}" in report.config_yaml
        assert "burgee_issued_total" in report.metrics_text
        assert len(report.log) <= 3
        assert report.versions["burgee"]
        assert spiffe_id("/x").trust_domain == TRUST_DOMAIN
