"""Join tokens over the wire: several uses make several agents, and never one more than was said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ca.proto.burgee import admin_pb2 as pb
from ca.proto.spire import server_agent_pb2, server_entry_pb2
from ca.runtime.rpc import error_of
from tests.support.server import Identity, RunningServer, entry, make_csr, running_server, spiffe_id

ID = "spiffe://example.org"


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


async def made(server: RunningServer, **fields: Any) -> pb.CreateJoinTokenResponse:
    request = pb.CreateJoinTokenRequest(ttl_seconds=600, **fields)
    return await server.local.admin.CreateJoinToken(request, timeout=10)


async def listed(server: RunningServer) -> list[pb.JoinTokenInfo]:
    pages = server.local.admin.ListJoinTokens(pb.ListJoinTokensRequest(), timeout=10)
    return [token async for page in pages for token in page.tokens]


async def reason(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return error_of(refusal.value).reason


async def test_of_twenty_nodes_at_once_five_join(server: RunningServer) -> None:
    token = await made(server, name="web-fleet", uses=5)
    caller = await server.caller()
    calls = (server.attest(token=token.token, caller=caller) for _ in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    joined = [outcome for outcome in outcomes if isinstance(outcome, Identity)]
    assert sorted(one.path for one in joined) == [f"/spire/agent/join_token/{token.id}/{n}" for n in range(1, 6)]
    assert all(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes if outcome not in joined)
    assert await server.server.store.agents.count() == 5
    [known] = await listed(server)
    assert (known.name, known.uses, known.used, known.state) == ("web-fleet", 5, 5, "used")
    assert known.used_by in {f"{ID}{one.path}" for one in joined}
    for one in joined:  # each is an agent of its own
        agent = await server.caller(one)
        await agent.agents.RenewAgent(
            server_agent_pb2.RenewAgentRequest(params=server_agent_pb2.AgentX509SVIDParams(csr=make_csr()))
        )


async def test_a_lost_answer_costs_no_other_use(server: RunningServer) -> None:
    token = await made(server, uses=2)
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    paths = {(await server.attest(token=token.token, csr=csr)).path for _ in range(3)}
    assert paths == {f"/spire/agent/join_token/{token.id}/1"}
    [known] = await listed(server)
    assert (known.used, known.state) == (1, "in use")
    assert token.token not in str(known), "it still serves"


async def test_an_alias_holds_for_every_use(server: RunningServer) -> None:
    token = await made(server, uses=2, agent_id=spiffe_id("/fleet"))
    await server.create(entry("/web", "/fleet"))
    for _ in range(2):
        agent = await server.caller(await server.attest(token=token.token))
        request = server_entry_pb2.GetAuthorizedEntriesRequest()
        found = (await agent.entries.GetAuthorizedEntries(request)).entries
        assert {one.spiffe_id.path for one in found} == {"/fleet", "/web"}


async def test_a_revoked_token_is_refused_with_a_reason_of_its_own(server: RunningServer) -> None:
    token = await made(server, name="web", uses=2)
    ended = await server.local.admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(name="web"))
    assert (ended.id, ended.state) == (token.id, "revoked")
    assert await reason(server.attest(token=token.token)) == "JOIN_TOKEN_REVOKED"
    again = server.local.admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(name=token.id))
    assert await reason(again) == "JOIN_TOKEN_NOT_FOUND"
    explained = await server.local.admin.ExplainAgent(pb.ExplainAgentRequest(name="127.0.0.1"))
    assert (explained.verdict.reason, explained.verdict.command) == ("JOIN_TOKEN_REVOKED", "caadmin token create")


async def test_what_cannot_be_asked_for(server: RunningServer) -> None:
    await made(server, name="web")
    for fields, expected in (
        ({"name": "web"}, "JOIN_TOKEN_NAME_TAKEN"),
        ({"name": "Web"}, "JOIN_TOKEN_NAME"),
        ({"name": "w" * 65}, "JOIN_TOKEN_NAME"),
        ({"name": "w\n"}, "JOIN_TOKEN_NAME"),
        ({"name": "0123456789abcdef"}, "JOIN_TOKEN_NAME"),
        ({"uses": 10_001}, "JOIN_TOKEN_USES"),
        ({"uses": 2, "token": "x" * 32}, "JOIN_TOKEN_USES"),
        ({"token": "short"}, "JOIN_TOKEN_TOO_SHORT"),
    ):
        assert await reason(made(server, **fields)) == expected, fields  # type: ignore[arg-type]
    assert await reason(server.local.admin.CreateJoinToken(pb.CreateJoinTokenRequest())) == "TTL_REQUIRED"
    assert await reason(server.local.admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(name="?"))) == "JOIN_TOKEN_NAME"


async def test_a_token_by_spires_call_serves_once_and_names_its_agent(server: RunningServer) -> None:
    token = await server.token()
    assert (await server.attest(token=token)).path == f"/spire/agent/join_token/{token}"
    assert await reason(server.attest(token=token)) == "JOIN_TOKEN_UNKNOWN"
    [known] = await listed(server)
    assert (known.uses, known.used, known.name) == (1, 1, "")


async def test_the_log_names_tokens_and_tells_none(server: RunningServer) -> None:
    token = await made(server, name="web", uses=3, agent_id=spiffe_id("/fleet"))
    await server.local.admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(name="web"))
    records = [r async for page in server.local.admin.ListAudit(pb.ListAuditRequest()) for r in page.records]
    seen = [(r.call.rpartition("/")[2], i.name, i.about, i.code) for r in records for i in r.items]
    assert seen == [
        ("CreateJoinToken", token.id, f"{ID}/fleet, name web, 3 uses", "OK"),
        ("RevokeJoinToken", token.id, "web", "OK"),
    ]
    assert token.token not in str(records)
