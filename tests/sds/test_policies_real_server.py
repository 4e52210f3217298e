"""Policies from the book of a real server to the agent's node side, and the agent's word on them back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from policy.book_values import Change
from policy.model import Request
from sds.feed import Change as FeedChange
from sds.feed import Held, Snapshot
from sds.policy_held import HeldPolicies
from tests.ca.identity.forge import TD
from tests.ca.policy.lab import ADMIN, allow, body, gone, put
from tests.sds import node_lab
from tests.sds.node_lab import Node, RecordingFeed, until
from tests.sds.test_node_real_server import node_of, path_of
from tests.support.pair import free_port
from tests.support.server import RunningServer, entry, running_server

WEB = "spiffe://example.org/web"
OF_WEB = frozenset({Selector("k8s", "ns:shop"), Selector("k8s", "pod-label:app:web")})


class PolicyFeed(RecordingFeed):
    """Keeps policies, too, and says which are in force."""

    def __init__(self) -> None:
        super().__init__()
        self.policies = HeldPolicies()

    def on_snapshot(self, snapshot: Snapshot) -> None:
        super().on_snapshot(snapshot)
        if snapshot.policies is not None:
            self.policies.take(snapshot.policies)

    def on_change(self, change: FeedChange) -> None:
        super().on_change(change)
        if change.policies is not None:
            self.policies.take(change.policies)

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*super().kinds, "policy")

    def held(self, kind: str) -> Held:
        return Held(revision=self.policies.revision) if kind == "policy" else super().held(kind)


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server(bind_port=free_port()) as started:
        yield started


@pytest.fixture
async def node(tmp_path: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(node_lab, "RecordingFeed", PolicyFeed)
    (tmp_path / "token").write_text(await server.token())
    async with node_of(tmp_path, server) as started:
        held = policies(started)
        held.on_verdict.append(started.client.acknowledge)
        reading = asyncio.ensure_future(held.run())
        try:
            await until(lambda: started.feed.snapshots == 1)
            yield started
        finally:
            reading.cancel()


def policies(node: Node) -> HeldPolicies:
    assert isinstance(node.feed, PolicyFeed)
    return node.feed.policies


def allowed(node: Node, principal: str) -> bool:
    in_force = policies(node).in_force
    if in_force is None:
        return False
    snapshot = in_force.snapshot(in_force.matched(WEB, OF_WEB))
    return snapshot.decide(WEB, Request(principal=f"example.org/{principal}", method="GET")).allowed


async def write(server: RunningServer, *changes: Change) -> int:
    outcome = await server.server.policy.write(changes, actor="uid:0", rights=ADMIN)
    assert outcome.revision is not None
    return outcome.revision.number


async def test_what_is_written_is_in_force_at_the_agent_and_acknowledged(node: Node, server: RunningServer) -> None:
    await server.create(entry("/web", path_of(node), "k8s:ns:shop"))
    await until(lambda: policies(node).in_force is not None)
    assert not allowed(node, "a")
    await write(server, put(allow("one")))
    await until(lambda: allowed(node, "a"))
    agent = SpiffeId(TD, path_of(node))
    acks = server.server.feed.acks
    await until(lambda: "policy" in acks.of(agent) and acks.of(agent)["policy"].revision == 1)
    deny = body("no", action="DENY", selector={"matchLabels": {"app": "web"}}, rules=[{}])
    await write(server, put(deny), put(allow("two", "b")))
    await until(lambda: policies(node).revision == 2)
    assert not allowed(node, "a")
    assert not allowed(node, "b")
    await write(server, gone("no"))
    await until(lambda: allowed(node, "b"))


async def test_policies_of_other_namespaces_stay_at_the_server(node: Node, server: RunningServer) -> None:
    await server.create(entry("/web", path_of(node), "k8s:ns:shop"))
    await write(server, put(allow("theirs", namespace="bank")), put(allow("one")))
    await until(lambda: allowed(node, "a"))
    in_force = policies(node).in_force
    assert in_force is not None
    elsewhere = in_force.matched(WEB, frozenset({Selector("k8s", "ns:bank")}))
    decided = in_force.snapshot(elsewhere).decide(WEB, Request(principal="example.org/a", method="GET"))
    assert not decided.allowed  # whatever holds there, the agent was not told of it


async def test_over_a_restart_of_the_server(node: Node, server: RunningServer) -> None:
    await server.create(entry("/web", path_of(node), "k8s:ns:shop"))
    await write(server, put(allow("one")))
    await until(lambda: allowed(node, "a"))
    await server.stop()
    await until(lambda: node.reason == "SERVER_UNREACHABLE")
    assert allowed(node, "a")
    await server.start()
    await until(lambda: node.client.connected, seconds=25)
    await write(server, put(allow("two", "b")))
    await until(lambda: allowed(node, "b"))
    assert node.feed.snapshots == 1
