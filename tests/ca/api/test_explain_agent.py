"""ExplainAgent and the doctor's report over the wire: what really happened at a real server's listener."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import grpc
import pytest

from ca.proto.burgee import admin_pb2, doctor_pb2, node_pb2
from ca.proto.spire import server_agent_pb2, types_pb2
from ca.runtime.rpc_errors import error_of
from tests.support.server import RunningServer, make_csr


async def explained(server: RunningServer, name: str) -> admin_pb2.AgentExplanation:
    answer: admin_pb2.AgentExplanation = await server.local.admin.ExplainAgent(
        admin_pb2.ExplainAgentRequest(name=name), timeout=10
    )
    return answer


async def refused_attestation(server: RunningServer, kind: str, payload: bytes) -> str:
    """Gives the id that the agent was told."""
    call = (await server.caller()).agents.AttestAgent(timeout=10)
    params = server_agent_pb2.AttestAgentRequest.Params(
        data=types_pb2.AttestationData(type=kind, payload=payload),
        params=server_agent_pb2.AgentX509SVIDParams(csr=make_csr()),
    )
    await call.write(server_agent_pb2.AttestAgentRequest(params=params))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _ended(call)
    return error_of(error.value).request_id


async def _ended(call: Any) -> None:
    await call.read()
    await call.wait_for_connection()


async def test_a_refusal_is_found_by_the_id_that_was_told_and_by_the_address(server: RunningServer) -> None:
    told = await refused_attestation(server, "join_token", b"00000000-0000-0000-0000-000000000000")
    for name in (told, "127.0.0.1"):
        answer = await explained(server, name)
        assert answer.spiffe_id == ""
        assert answer.verdict.reason == "JOIN_TOKEN_UNKNOWN"
        assert answer.verdict.command == "caadmin token create"
        (attempt,) = answer.attempts
        assert (attempt.id, attempt.attestor, attempt.reason) == (told, "join_token", "JOIN_TOKEN_UNKNOWN")
        assert attempt.peer.startswith("127.0.0.1:")
        assert abs(attempt.at_micros / 1e6 - time.time()) < 60


async def test_an_attestor_that_is_not_configured_is_an_attempt_too(server: RunningServer) -> None:
    told = await refused_attestation(server, "made_up", b"x")
    (attempt,) = (await explained(server, told)).attempts
    assert (attempt.attestor, attempt.reason) == ("made_up", "NODE_ATTESTOR_UNKNOWN")


async def test_a_ban_is_what_matters(server: RunningServer) -> None:
    identity = await server.attest()
    name = identity.path.rpartition("/")[2]
    before = await explained(server, name)
    assert before.verdict.reason == "AGENT_SILENT", "it attested, and follows nobody"
    assert [one.reason for one in before.attempts] == ["OK"]
    wire = types_pb2.SPIFFEID(trust_domain="example.org", path=identity.path)
    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=wire))
    after = await explained(server, name)
    assert (after.verdict.reason, after.banned, after.svid_not_after) == ("AGENT_BANNED", True, 0)
    await server.local.agents.DeleteAgent(server_agent_pb2.DeleteAgentRequest(id=wire))
    gone = await explained(server, f"spiffe://example.org{identity.path}")
    assert gone.verdict.reason == "AGENT_NOT_FOUND"
    assert gone.attempts


@pytest.mark.parametrize(
    ("name", "code"), [("nobody", "NOT_FOUND"), ("", "INVALID_ARGUMENT"), ("///", "INVALID_ARGUMENT")]
)
async def test_what_is_nobody(server: RunningServer, name: str, code: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await explained(server, name)
    assert error.value.code().name == code


async def test_the_servers_time_is_told_to_anybody(server: RunningServer) -> None:
    told = await (await server.caller()).node.GetTime(node_pb2.GetTimeRequest(), timeout=10)
    assert abs(timedelta(microseconds=told.now_micros) - timedelta(seconds=time.time())) < timedelta(seconds=30)


async def test_a_server_that_is_well_says_so(server: RunningServer) -> None:
    answer = await server.local.admin.GetDoctorReport(doctor_pb2.DoctorRequest(), timeout=30)
    assert {finding.level for finding in answer.findings} == {"ok"}
    assert len(answer.findings) >= 8


async def test_of_nodes_that_share_an_address_the_troubled_come_first(server: RunningServer) -> None:
    well, banned = await server.attest(), await server.attest()
    alone = await explained(server, well.path.rpartition("/")[2])
    assert (alone.spiffe_id, list(alone.others)) == (f"spiffe://example.org{well.path}", [])
    wire = types_pb2.SPIFFEID(trust_domain="example.org", path=banned.path)
    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=wire))
    both = await explained(server, "127.0.0.1")
    assert (both.verdict.reason, both.spiffe_id) == ("AGENT_BANNED", f"spiffe://example.org{banned.path}")
    assert [one.spiffe_id for one in both.others] == [f"spiffe://example.org{well.path}"]
    assert [len(one.attempts) for one in (both, *both.others)] == [1, 1], "each its own"

    await refused_attestation(server, "join_token", b"00000000-0000-0000-0000-000000000000")
    found = await explained(server, "127.0.0.1")
    reasons = {one.spiffe_id: one.verdict.reason for one in (found, *found.others)}
    assert len(reasons) == 3
    assert reasons[""] == "JOIN_TOKEN_UNKNOWN"


async def test_a_node_that_is_well_does_not_hide_another_that_is_refused(server: RunningServer) -> None:
    identity, agent = await server.agent()
    stream = agent.node.Sync(timeout=30)
    await stream.write(node_pb2.SyncRequest(subscribe=node_pb2.Subscribe(agent_version="1")))
    await stream.read()
    assert (await explained(server, "127.0.0.1")).verdict.reason == "OK"
    told = await refused_attestation(server, "join_token", b"00000000-0000-0000-0000-000000000000")
    found = await explained(server, "127.0.0.1")
    assert (found.spiffe_id, found.verdict.reason) == ("", "JOIN_TOKEN_UNKNOWN")
    assert found.attempts[0].id == told
    assert [one.spiffe_id for one in found.others] == [f"spiffe://example.org{identity.path}"]
    stream.cancel()


async def test_a_crowd_at_one_address_is_counted(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.api.agent_explained.SHOWN_NODES", 1)
    for _ in range(4):
        await server.attest()
    found = await explained(server, "127.0.0.1")
    assert (len(found.others), found.more_others) == (1, 2)
