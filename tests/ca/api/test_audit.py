"""The audit log over the wire: every administrative call, its actor, items and results; nothing runs unrecorded."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from cryptography import x509

from ca.api.audit import DENIALS_BURST, administrative, reads
from ca.api.tiers import MANAGERS, TIERS, Tier
from ca.errors import Unavailable
from ca.identity.certificate import authority_id
from ca.proto.burgee import admin_pb2 as pb
from ca.proto.spire import server_agent_pb2, server_bundle_pb2, server_entry_pb2, server_svid_pb2, types_pb2
from ca.store.audit import AuditFilter
from tests.ca.api.test_own_bundle import a_root, jwk
from tests.support.server import TRUST_DOMAIN, RunningServer, entry, eventually, make_csr, running_server, spiffe_id

ID = f"spiffe://{TRUST_DOMAIN}"


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as made:
        yield made


async def listed(server: RunningServer, **fields: Any) -> list[pb.AuditRecord]:
    pages = server.local.admin.ListAudit(pb.ListAuditRequest(**fields), timeout=10)
    return [record async for page in pages for record in page.records]


def test_every_row_of_administrators_is_recorded_or_only_reads() -> None:
    """A new method is recorded unless its name says that it reads."""
    for method, allowed in TIERS.items():
        others = allowed & (Tier.ANYONE | Tier.AGENT | Tier.DOWNSTREAM)
        if allowed & MANAGERS and not others and not method.startswith(("/grpc.health", "/grpc.reflection")):
            assert administrative(method), method
    changing = {m.rpartition("/")[2] for m in TIERS if administrative(m) and not reads(m)}
    assert {"BatchCreateEntry", "BanAgent", "CreateJoinToken", "MintX509SVID", "TaintJWTAuthority", "Prune"} <= changing
    assert "SetLogLevel" in changing
    over_http = {m for m in TIERS if " " in m and administrative(m) and Tier.SVID not in TIERS[m]}
    assert all(reads(m) for m in over_http), "a writing route needs a record: gRPC and the book make their own"
    assert not {name for name in changing if name.startswith(("Get", "List", "Count", "Explain"))}


async def test_a_batch_is_one_record_with_a_result_for_each_item(server: RunningServer) -> None:
    made = entry("/web", "/spire/server")
    request = server_entry_pb2.BatchCreateEntryRequest(entries=[made, made, entry("/bad id", "/spire/server")])
    answer = await server.local.entries.BatchCreateEntry(request)
    entry_id = answer.results[0].entry.id
    (record,) = await listed(server)
    assert (record.actor, record.origin) == (f"uid:{os.getuid()}", f"pid:{os.getpid()}")
    assert record.call == "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
    assert (record.code, record.reason) == ("OK", "")
    assert record.request_id
    assert record.server == server.server.issuer.settings.server
    assert [(item.name, item.about, item.code) for item in record.items] == [
        (entry_id, f"{ID}/web", "OK"),
        (entry_id, f"{ID}/web", "AlreadyExists"),
        ("", f"{ID}/bad id", "InvalidArgument"),
    ]
    assert [r.id for r in await listed(server, item=entry_id)] == [record.id]
    assert await listed(server, item="nothing") == []


async def test_updates_deletions_agents_and_tokens(server: RunningServer) -> None:
    token = await server.token(agent_id=spiffe_id("/alias"))
    agent, _ = await server.agent()
    (made,) = await server.create(entry("/w", agent.path))
    await server.local.entries.BatchDeleteEntry(server_entry_pb2.BatchDeleteEntryRequest(ids=[made.id, "nope"]))
    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    with pytest.raises(grpc.aio.AioRpcError):
        await server.local.agents.DeleteAgent(server_agent_pb2.DeleteAgentRequest(id=spiffe_id("/spire/agent/x/none")))
    found = {record.call.rpartition("/")[2]: record for record in await listed(server)}
    assert [(i.name, i.code) for i in found["BatchDeleteEntry"].items] == [(made.id, "OK"), ("nope", "NotFound")]
    assert [(i.name, i.code) for i in found["BanAgent"].items] == [(f"{ID}{agent.path}", "OK")]
    gone = found["DeleteAgent"]
    assert (gone.code, gone.reason) == ("NotFound", "AGENT_NOT_FOUND")
    assert [i.name for i in gone.items] == [f"{ID}/spire/agent/x/none"]
    first = (await listed(server, call="CreateJoinToken"))[0]
    token_id = server.server.store.tokens.id_of(token)
    assert [(i.name, i.about, i.code) for i in first.items] == [(token_id, f"{ID}/alias", "OK")]
    assert token_id not in hashlib.sha256(token.encode()).hexdigest()
    assert token not in str(first)


async def test_mints_name_what_was_issued_and_no_secret(server: RunningServer) -> None:
    csr = make_csr(uris=[f"{ID}/minted"])
    svid = (await server.local.svids.MintX509SVID(server_svid_pb2.MintX509SVIDRequest(csr=csr))).svid
    token = await server.local.admin.MintJWTSVID(pb.MintJWTSVIDRequest(id=spiffe_id("/jwt"), audience=["a", "b"]))
    with pytest.raises(grpc.aio.AioRpcError):
        await server.local.admin.MintX509SVID(pb.MintX509SVIDRequest(csr=b"nonsense"))
    x509_record, jwt_record, refused = await listed(server)
    (item,) = x509_record.items
    assert item.name == f"{ID}/minted"
    issued = [r async for page in server.local.admin.ListIssued(pb.ListIssuedRequest()) for r in page.records]
    assert item.about.removeprefix("serial ") in {record.serial_or_kid for record in issued}
    assert svid.id.path == "/minted"
    assert [(i.name, i.about) for i in jwt_record.items] == [(f"{ID}/jwt", "audience a b")]
    assert token.svid.token not in str(jwt_record)
    assert (refused.code, refused.items) == ("InvalidArgument", [])


async def test_authorities_that_are_added_are_named_whoever_adds_them(server: RunningServer) -> None:
    await server.create(entry("/down", "/spire/agent/join_token/x", downstream=True))
    caller = await server.caller(await server.mint("/down"))
    answer = await caller.svids.NewDownstreamX509CA(server_svid_pb2.NewDownstreamX509CARequest(csr=make_csr()))
    await caller.bundles.PublishJWTAuthority(server_bundle_pb2.PublishJWTAuthorityRequest(jwt_authority=jwk("its-key")))
    with pytest.raises(grpc.aio.AioRpcError):
        await caller.svids.NewDownstreamX509CA(server_svid_pb2.NewDownstreamX509CARequest(csr=b"nonsense"))
    issued, published, refused = await listed(server, actor=f"{ID}/down")
    serial = x509.load_der_x509_certificate(answer.ca_cert_chain[0]).serial_number
    assert [(i.name, i.about, i.code) for i in issued.items] == [(f"serial {serial}", "", "OK")]
    assert [(i.name, i.about, i.code) for i in published.items] == [("its-key", "JWT authority", "OK")]
    assert (refused.code, list(refused.items)) == ("InvalidArgument", [])
    added = types_pb2.X509Certificate(asn1=a_root())
    request = server_bundle_pb2.AppendBundleRequest(x509_authorities=[added], jwt_authorities=[jwk("another")])
    await server.local.bundles.AppendBundle(request)
    (record,) = await listed(server, call="AppendBundle")
    assert [(i.name, i.about) for i in record.items] == [
        (authority_id(added.asn1), "X.509 authority"),
        ("another", "JWT authority"),
    ]


async def test_reads_are_recorded_on_request(server: RunningServer) -> None:
    request = server_agent_pb2.CountAgentsRequest()
    await server.local.agents.CountAgents(request)
    assert await listed(server) == []
    server.server.auditor.reads = True
    await server.local.agents.CountAgents(request)
    await listed(server)
    assert [r.call.rpartition("/")[2] for r in await listed(server)] == ["CountAgents", "ListAudit", "ListAudit"]


async def test_who_is_denied_is_recorded_and_bounded(server: RunningServer) -> None:
    identity, agent = await server.agent()
    anonymous = await server.caller()
    for caller in (agent, anonymous):
        with pytest.raises(grpc.aio.AioRpcError):
            await caller.agents.BanAgent(server_agent_pb2.BanAgentRequest())
    with pytest.raises(grpc.aio.AioRpcError):
        await anonymous.svids.BatchNewX509SVID(server_svid_pb2.BatchNewX509SVIDRequest())  # not an administrator's
    denied = await listed(server, call="BanAgent")
    assert [(r.actor, r.code, r.reason) for r in denied] == [
        (f"{ID}{identity.path}", "PermissionDenied", "TIER"),
        ("anonymous", "PermissionDenied", "TIER"),
    ]
    assert denied[1].origin.startswith("127.0.0.1:")
    for _ in range(DENIALS_BURST + 20):
        with pytest.raises(grpc.aio.AioRpcError):
            await anonymous.agents.CountAgents(server_agent_pb2.CountAgentsRequest())
    assert len(await listed(server, call="CountAgents")) < DENIALS_BURST + 20


async def test_an_administrator_from_the_network_is_named(server: RunningServer) -> None:
    await server.create(entry("/boss", "/spire/server", admin=True))
    boss = await server.caller(await server.mint("/boss"))
    await boss.agents.CreateJoinToken(server_agent_pb2.CreateJoinTokenRequest(ttl=60))
    (record,) = await listed(server, actor=f"{ID}/boss")
    assert (record.code, record.origin.startswith("127.0.0.1:")) == ("OK", True)


async def test_a_call_that_cannot_be_recorded_is_not_made(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object, **__: object) -> int:
        raise Unavailable("the store cannot be reached or written now")

    with monkeypatch.context() as broken:
        broken.setattr(server.server.store.audit, "append", lost)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.create(entry("/web", "/spire/server"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "was not made" in (refused.value.details() or "")
    assert await server.server.store.entries.count() == 0
    with monkeypatch.context() as broken:
        broken.setattr(server.server.store.audit, "finish", lost)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.create(entry("/web", "/spire/server"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "was made" in (refused.value.details() or "")
    (record,) = await listed(server)
    assert record.code == "Unfinished"
    assert [item.about for item in record.items] == [f"{ID}/web"]


async def test_a_call_whose_caller_went_away_is_recorded_as_such(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = asyncio.Event()

    async def slow(*_: object) -> None:
        started.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(server.server.store.agents, "ban", slow)
    identity = await server.attest()
    call = server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=spiffe_id(identity.path)))
    await asyncio.wait_for(asyncio.shield(started.wait()), 10)
    call.cancel()

    async def noted() -> bool:
        records = await server.server.store.audit.find(AuditFilter(call="BanAgent"))
        return [(r.code, r.reason) for r in records] == [("Cancelled", "CALLER_GONE")]

    await eventually(noted)


async def test_following_shows_calls_as_they_end(server: RunningServer) -> None:
    await server.token()
    stream = server.local.admin.ListAudit(pb.ListAuditRequest(follow=True, call="CreateJoinToken"))
    first = await asyncio.wait_for(stream.read(), 10)
    assert len(first.records) == 1
    await server.create(entry("/other", "/spire/server"))
    await server.token()
    second = await asyncio.wait_for(stream.read(), 10)
    assert [record.code for record in second.records] == ["OK"]
    stream.cancel()


async def test_limits_and_times(server: RunningServer) -> None:
    for _ in range(3):
        await server.token()
    everything = await listed(server)
    assert [r.id for r in await listed(server, limit=2)] == [r.id for r in everything[1:]]
    assert await listed(server, since=everything[0].at_micros // 1_000_000 + 3600) == []
    for wrong in ({"since": 2**62}, {"limit": 10_001}):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await listed(server, **wrong)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stop_ends_those_who_follow(server: RunningServer) -> None:
    stream = server.local.admin.ListAudit(pb.ListAuditRequest(follow=True))
    reading = asyncio.create_task(stream.read())
    await server.token()
    await asyncio.wait_for(reading, 10)
    server.server.admin.drain()
    assert await asyncio.wait_for(stream.read(), 10) is grpc.aio.EOF
