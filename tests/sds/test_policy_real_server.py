"""From a write into the book of a real server to a stream of a real agent, and back to what the server is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2

from ca.runtime.config import from_values
from ca.service.acks import POLICY, ProxyState
from ca.service.policy.grants import Rights
from policy.book_values import Change, Key
from sds.agent import Agent
from sds.config import AgentConfig
from tests.sds.lab import eventually, quiet
from tests.sds.test_agent import create, home, server, started, values
from tests.sds.test_policy_ecds import HTTP, filters
from tests.support.policy_node import Object, allowing, workload
from tests.support.server import RunningServer
from tests.support.workload_client import DeltaCall, WorkloadClient

__all__ = ["home", "server"]
ADMIN = Rights(is_admin=True, root_namespace="istio-system")
WEB = "spiffe://example.org/web"


@pytest.fixture
async def agent(home: Path, server: RunningServer) -> AsyncIterator[Agent]:
    (home / "token").write_text(await server.token())
    async with started(from_values(values(home, server), AgentConfig)) as running:
        await eventually(lambda: running.cache.ready)
        yield running


@pytest.fixture
async def client(agent: Agent) -> AsyncIterator[WorkloadClient]:
    async with WorkloadClient(str(agent.config.workload_socket)) as client:
        yield client


async def write(server: RunningServer, *objects: Object) -> int:
    names = [Key(kind=o["kind"], namespace=o["metadata"]["namespace"], name=o["metadata"]["name"]) for o in objects]
    changes = [Change(key=key, body=body) for key, body in zip(names, objects, strict=True)]
    outcome = await server.server.policy.write(changes, actor="test", rights=ADMIN)
    assert outcome.revision is not None
    return outcome.revision.number


async def answered(call: DeltaCall) -> str:
    found = filters(await asyncio.wait_for(call.read(), 10))
    await call.ack()
    return str(found[HTTP])


def told(server: RunningServer, agent: Agent) -> tuple[int, str, tuple[ProxyState, ...]]:
    """What the server knows of this agent's policies."""
    assert agent.identity.svid is not None
    ack = server.server.feed.acknowledged(agent.identity.svid.id).get(POLICY)
    return (0, "nothing", ()) if ack is None else (ack.revision, ack.error, ack.proxies)


async def test_a_write_reaches_the_proxies_that_it_is_for_and_the_server_hears_of_it(
    server: RunningServer, agent: Agent, client: WorkloadClient
) -> None:
    await create(agent, server, "/web")
    await eventually(lambda: len(agent.cache.entries()) == 1)
    call = client.policies()
    await call.ask(HTTP, node=base_pb2.Node(id="proxy"))
    first = await write(server, workload("web", "/web"), allowing("p", paths=["/p"]), allowing("other", "b"))
    while "a/p#0" not in (text := await answered(call)):
        pass
    assert "b/other" not in text

    def acked(revision: int) -> bool:
        number, error, proxies = told(server, agent)
        states = [(p.proxy, p.pid, p.spiffe_id, p.resource, p.revision, p.state) for p in proxies]
        return (number, error, states) == (revision, "", [("proxy", os.getpid(), WEB, HTTP, revision, "acked")])

    await eventually(lambda: acked(first))
    second = await write(server, allowing("q", paths=["/q"]))
    text = await answered(call)
    assert "a/p#0" in text
    assert "a/q#0" in text
    await eventually(lambda: acked(second))
    await write(server, allowing("more", "b"))  # which is for nobody here
    reading: Any = asyncio.ensure_future(quiet(call.call))
    await reading
    assert acked(second)
