"""A whole agent answers checks on its workload socket, and its decision log on its admin socket alone."""

from __future__ import annotations

import stat
from typing import Any

import grpc
import pytest

from ca.proto.burgee import decisions_pb2, decisions_pb2_grpc
from ca.runtime.decision_log import FILE
from ca.runtime.rpc_errors import error_of
from policy.decision_record import DecisionRecord
from tests.ca.runtime.test_decision_log import record
from tests.policy.test_ext_authz import check
from tests.sds.test_agent import (  # noqa: F401 - with the fixtures of the whole agent and its server
    agent,
    home,
    server,
)
from tests.sds.test_authz import METHOD


async def reason(awaitable: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return error_of(caught.value).reason


async def test_an_agent_answers_checks_and_shows_its_decisions(agent: Any) -> None:  # noqa: F811
    config = agent.config
    async with grpc.aio.insecure_channel(f"unix:{config.workload_socket}") as channel:
        call = channel.unary_unary(METHOD)
        refused = await reason(call(check().SerializeToString(), timeout=20))
        assert refused in ("NO_IDENTITY", "POLICY_NOT_DELIVERED")
        theirs = decisions_pb2_grpc.DecisionsStub(channel)
        assert await reason(theirs.Get(decisions_pb2.GetRequest(id="x"))) == "UNKNOWN_METHOD"
    agent.decisions.log.add(record(1))
    async with grpc.aio.insecure_channel(f"unix:{config.admin_socket_path}") as channel:
        stub = decisions_pb2_grpc.DecisionsStub(channel)
        found = await stub.Get(decisions_pb2.GetRequest(id="p-1"))
        assert DecisionRecord.from_json(found.record).agent.startswith("spiffe://")
        assert await reason(stub.Get(decisions_pb2.GetRequest(id="p-2"))) == "DECISION_NOT_FOUND"
    file = config.data_dir / "decisions" / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not agent.decisions.logged(1, "x")
