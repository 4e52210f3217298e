"""An agent whose method is trusted on first use, with the real server: it stays up, says what to do, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path

import pytest

from ca.errors import Denied
from ca.ports import AttestedNode, Challenge
from ca.proto.burgee import admin_pb2
from ca.proto.spire import server_agent_pb2
from ca.runtime.notes import note
from sds.condition import State
from sds.node_identity import OPERATOR_CAP_SECONDS, NodeIdentity
from tests.sds.node_lab import Node, running, until
from tests.sds.test_node_real_server import configuration
from tests.support.pair import free_port
from tests.support.server import RunningServer, running_server, spiffe_id

METHOD = "first_use"
PATH = f"/spire/agent/{METHOD}/machine-1"


class FirstUse:
    """A verifier that believes whoever comes first."""

    def __init__(self) -> None:
        self.asked = 0

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        self.asked += 1
        note("machine", payload.decode())
        return AttestedNode(path=PATH, reattestable=False)


class Document:
    """Evidence that anybody on the node can read, again and again."""

    can_reattest = False
    evidence_lasts = True

    async def payload(self) -> bytes:
        return b"machine-1"

    async def answer(self, challenge: bytes) -> bytes:
        raise AssertionError("there is no challenge")


@pytest.fixture
def verifier() -> FirstUse:
    return FirstUse()


@pytest.fixture
async def server(verifier: FirstUse) -> AsyncIterator[RunningServer]:
    async with running_server(bind_port=free_port()) as started:
        started.server.attestation._verifiers = {METHOD: verifier}
        yield started


async def evict(server: RunningServer) -> None:
    await server.local.agents.DeleteAgent(server_agent_pb2.DeleteAgentRequest(id=spiffe_id(PATH)))


def lost(tmp_path: Path, server: RunningServer) -> Node:
    """The same machine, its state gone."""
    node = Node(configuration(tmp_path, server), Document())
    node.identity._attestor = METHOD
    return node


async def test_a_node_that_lost_its_state_stays_up_and_says_what_to_do(
    tmp_path: Path, server: RunningServer, verifier: FirstUse
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with running(lost(tmp_path / "first", server)) as node:
        await until(lambda: node.condition.state is State.OK)
    async with running(lost(tmp_path / "second", server)) as node:
        await until(lambda: node.condition.state is State.DEGRADED)
        problem = node.condition.problem
        assert problem is not None
        assert problem.reason == "AGENT_ALREADY_ATTESTED"
        assert f"caadmin agent evict spiffe://example.org{PATH}" in problem.hint
        asked = verifier.asked
        await asyncio.sleep(1)
        assert verifier.asked <= asked + 2, "it asks ever less often"
        await evict(server)
        await until(lambda: node.condition.state is State.OK, seconds=30)


async def test_an_agent_that_was_evicted_comes_back_by_itself(tmp_path: Path, server: RunningServer) -> None:
    """Its evidence does not run out: the operator need give it nothing new."""
    async with running(lost(tmp_path, server)) as node:
        await until(lambda: node.condition.state is State.OK)
        before = node.identity.svid
        await evict(server)
        await until(lambda: node.identity.svid is not before, seconds=30)
        await until(lambda: node.condition.state is State.OK, seconds=30)


async def test_an_expired_svid_of_such_a_node_is_refused_with_that_reason(
    tmp_path: Path, server: RunningServer
) -> None:
    """What helps is to evict the agent, and not that its SVID expired."""
    async with running(lost(tmp_path, server)) as node:
        await until(lambda: node.condition.state is State.OK)
        node.identity.denied(_verdict("AGENT_EXPIRED"))
        await until(lambda: node.reason == "AGENT_ALREADY_ATTESTED")
        assert node.condition.state is State.DEGRADED
        assert "has expired; attesting again:" in node.detail
        assert node.identity.svid is not None, "what it has is served on"


async def test_it_is_asked_about_once_a_minute_at_most(tmp_path: Path, server: RunningServer) -> None:
    """However long nobody acts."""
    async with running(lost(tmp_path, server)) as node:
        await until(lambda: node.condition.state is State.OK)
    identity: NodeIdentity = lost(tmp_path, server).identity
    pauses = [identity._failed(_verdict("AGENT_ALREADY_ATTESTED")) for _ in range(12)]
    assert pauses[-1] == OPERATOR_CAP_SECONDS
    assert pauses == sorted(pauses)


async def test_the_server_explains_the_same(tmp_path: Path, server: RunningServer) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with running(lost(tmp_path / "first", server)) as node:
        await until(lambda: node.condition.state is State.OK)
    async with running(lost(tmp_path / "second", server)) as node:
        await until(lambda: node.condition.state is State.DEGRADED)
    answer = await server.local.admin.ExplainAgent(admin_pb2.ExplainAgentRequest(name="machine-1"))
    assert answer.verdict.reason == "AGENT_ALREADY_ATTESTED"
    assert answer.verdict.command == f"caadmin agent evict spiffe://example.org{PATH}"
    refused, first = answer.attempts
    assert (refused.reason, first.reason) == ("AGENT_ALREADY_ATTESTED", "OK")
    assert [(note.what, note.value) for note in first.notes] == [("machine", "machine-1")]


def _verdict(reason: str) -> Denied:
    return Denied("no", reason=reason)


@pytest.mark.parametrize("name", ["aws_iid", "azure_imds", "gcp_iit", "http_challenge"])
def test_the_methods_that_are_trusted_on_first_use_say_that_their_evidence_lasts(name: str) -> None:
    """Else an agent that was evicted would wait for new evidence for ever."""
    module = import_module(f"attestor.node.{name}")
    assert [kind for kind in vars(module).values() if getattr(kind, "evidence_lasts", False) is True]
