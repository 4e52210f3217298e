"""An agent below a server that does not push: rhythm, failures, bundles, and the way back to the push."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import sds.polling
from ca.errors import BurgeeError, Denied, Internal, Unavailable
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.ports import KeyType
from sds.backoff import Backoff
from sds.condition import State
from sds.feed import Change, ResumeToken, Snapshot
from sds.keys import certificate_request, generate
from sds.node_client import POLL, PUSH
from sds.polling import FACTOR, INTERVAL_SECONDS, JITTER, RETRY_CAP_SECONDS, Poller
from sds.state import open_store
from sds.wire import entry_to_wire, polled_entry_from_wire
from tests.ca.identity.forge import TD
from tests.sds.fake_server import FakeServer, entry, fresh_root
from tests.sds.lab import Lab
from tests.sds.lab import entry as lab_entry
from tests.sds.node_lab import Node, Proof, RecordingFeed, config_for, running, serving, until
from tests.support.clock import FakeClock

FED, LATER = TrustDomain("fed.org"), TrustDomain("later.org")


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving(FakeServer(pushes=False)) as fake:
        yield fake


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rhythm in a fiftieth of the time."""
    monkeypatch.setattr(sds.polling, "INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(sds.polling, "RETRY_CAP_SECONDS", 0.3)


@pytest.fixture
async def node(tmp_path: Path, server: FakeServer, quick: None) -> AsyncIterator[Node]:
    server.entries["e1"] = entry("e1")
    async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as started:
        await until(lambda: started.feed.snapshots == 1)
        yield started


def foreign(domain: TrustDomain, name: str) -> TrustBundle:
    return TrustBundle(
        trust_domain=domain, x509_authorities=(X509Authority(certificate=fresh_root(name).der),), sequence_number=3
    )


class Polling:
    """A poller on a verified connection, whose clock the test moves."""

    def __init__(self, node: Node) -> None:
        self.clock = FakeClock()
        self.feed = RecordingFeed()
        self.synced = 0
        self._node = node
        self.poller = Poller(clock=self.clock, feed=self.feed, trust=node.trust, jitter=lambda: 0.0, synced=self._count)

    def _count(self) -> None:
        self.synced += 1

    async def poll(self) -> None:
        await self.poller.poll(self.channel)

    @property
    def channel(self):
        assert self._node.client._link is not None
        return self._node.client._link.channel


@pytest.fixture
async def polling(tmp_path: Path, server: FakeServer) -> AsyncIterator[Polling]:
    """The node gives trust and connection; its own polling stays at its first round for the test's length."""
    server.entries["e1"] = entry("e1", federates_with=(FED, LATER))
    server.federated["fed.org"] = foreign(FED, "fed")
    async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as node:
        await until(lambda: node.client.connected)
        server.calls.clear()
        yield Polling(node)


async def test_snapshot_then_changes_then_silence(polling: Polling, server: FakeServer) -> None:
    await polling.poll()
    feed = polling.feed
    assert (feed.snapshots, feed.changes, feed.token) == (1, 0, ResumeToken("", 1))
    assert server.calls[:2] == ["SyncAuthorizedEntries", "GetBundle"]
    assert server.calls.count("GetFederatedBundle") == 2
    assert feed.entries["e1"].spiffe_id == server.entries["e1"].spiffe_id
    server.entries["e2"] = entry("e2", "/api", hint="h", revision_number=7)
    await polling.poll()
    assert (feed.snapshots, feed.changes, feed.token) == (1, 1, ResumeToken("", 2))
    assert (feed.entries["e2"].hint, feed.entries["e2"].revision_number) == ("h", 7)
    before = dict(feed.entries)
    await polling.poll()
    assert (feed.entries, feed.token) == (before, ResumeToken("", 2))
    del server.entries["e1"]
    await polling.poll()
    assert set(feed.entries) == {"e2"}
    assert feed.token == ResumeToken("", 3)


async def test_bundles_that_entries_name_come_and_go(polling: Polling, server: FakeServer) -> None:
    await polling.poll()
    assert polling.feed.bundles == {TD: server.trust_bundle, FED: server.federated["fed.org"]}
    server.federated["later.org"] = foreign(LATER, "later")
    server.federated["fed.org"] = replace(foreign(FED, "fed-2"), sequence_number=4)
    await polling.poll()
    assert polling.feed.bundles[LATER] == server.federated["later.org"]
    assert polling.feed.bundles[FED].sequence_number == 4
    server.entries["e1"] = entry("e1", federates_with=(LATER, TD), revision_number=1)
    server.calls.clear()
    await polling.poll()
    assert set(polling.feed.bundles) == {TD, LATER}
    assert server.calls.count("GetFederatedBundle") == 1, "the own bundle is no federated one"
    del server.federated["later.org"]
    await polling.poll()
    assert set(polling.feed.bundles) == {TD}


async def test_what_is_not_that_domains_bundle_is_left_out(polling: Polling, server: FakeServer) -> None:
    server.federated["fed.org"] = foreign(LATER, "mixed up")
    await polling.poll()
    assert set(polling.feed.bundles) == {TD}


async def test_another_domains_bundle_is_never_the_own_one(polling: Polling, server: FakeServer) -> None:
    await polling.poll()
    server.bundle = foreign(FED, "fed")
    with pytest.raises(BurgeeError) as caught:
        await polling.poll()
    assert caught.value.reason == "BUNDLE_OF_ANOTHER"
    assert polling.feed.bundles[TD] != server.bundle


async def test_a_tainted_authority_is_told(polling: Polling, server: FakeServer) -> None:
    await polling.poll()
    old = X509Authority(certificate=server.root.der, tainted=True)
    new = X509Authority(certificate=fresh_root("next").der)
    server.bundle = replace(server.trust_bundle, x509_authorities=(old, new), sequence_number=2)
    await polling.poll()
    assert [a.tainted for a in polling.feed.bundles[TD].x509_authorities] == [True, False]


async def test_what_was_read_and_not_fed_is_fed_later(polling: Polling, server: FakeServer) -> None:
    await polling.poll()
    server.entries["e2"] = entry("e2")
    server.denials["GetBundle"] = Internal("broken")
    with pytest.raises(Exception, match=r"broken|internal"):
        await polling.poll()
    server.denials.clear()
    await polling.poll()
    assert set(polling.feed.entries) == {"e1", "e2"}
    assert polling.feed.snapshots == 1
    server.entries["e3"] = entry("e3")
    polling.feed.fail = True
    with pytest.raises(RuntimeError):
        await polling.poll()
    await polling.poll()
    assert set(polling.feed.entries) == {"e1", "e2", "e3"}
    assert polling.feed.snapshots == 2


async def test_every_five_seconds_and_back_after_ten_minutes(polling: Polling, server: FakeServer) -> None:
    running_poll = asyncio.create_task(polling.poller.run(polling.channel, lambda: 1))
    await until(lambda: polling.synced == 1)
    assert polling.poller.live
    await polling.clock.advance(4.9)
    assert polling.synced == 1
    await polling.clock.advance(0.2)
    await until(lambda: polling.synced == 2)
    await polling.clock.advance(600)
    await until(lambda: polling.synced == 3)
    await polling.clock.advance(5.1)
    await asyncio.wait_for(running_poll, 5)
    assert not polling.poller.live
    assert server.calls.count("SyncAuthorizedEntries") == 3


async def test_another_connection_may_lead_to_another_server(polling: Polling, server: FakeServer) -> None:
    numbers = iter((1, 1, 2))
    running_poll = asyncio.create_task(polling.poller.run(polling.channel, lambda: next(numbers)))
    await until(lambda: polling.synced == 1)
    await polling.clock.advance(5.1)
    await asyncio.wait_for(running_poll, 5)
    assert polling.synced == 2


def test_the_rhythm_is_spread_and_failures_slow_it_down_but_not_for_long() -> None:
    assert (INTERVAL_SECONDS, JITTER, FACTOR) == (5.0, 0.1, 1.5)

    def pauses(jitter: float) -> list[float]:
        backoff = Backoff(lambda: jitter, first_seconds=INTERVAL_SECONDS * FACTOR, factor=FACTOR, spread=JITTER)
        return [backoff.next(RETRY_CAP_SECONDS) for _ in range(6)]

    assert pauses(0.0) == [7.5, 11.25, 15.0, 15.0, 15.0, 15.0]
    assert max(pauses(1.0)) < 20, "with the dial it stays below half a minute"


async def test_a_server_without_push_is_polled(node: Node, server: FakeServer) -> None:
    assert node.client.sync_mode == POLL
    assert node.condition.state is State.OK
    assert node.client.connected
    assert server.versions == ["1.2.3"]
    assert node.feed.bundles == {TD: server.trust_bundle}
    server.entries["e2"] = entry("e2")
    await until(lambda: "e2" in node.feed.entries)
    del server.entries["e1"]
    await until(lambda: set(node.feed.entries) == {"e2"})
    csr = certificate_request(generate(KeyType.EC_P256), entry("e2").spiffe_id)
    (issued,) = await node.client.new_x509_svids([("e2", csr)])
    assert issued.error is None
    assert node.client.last_sync_at is not None


async def test_an_outage_is_told_and_overcome(node: Node, server: FakeServer) -> None:
    await server.stop()
    await until(lambda: node.reason == "SERVER_UNREACHABLE")
    assert not node.client.connected
    server.entries["e2"] = entry("e2")
    await server.start()
    await until(lambda: "e2" in node.feed.entries, seconds=20)
    assert node.condition.state is State.OK
    assert node.feed.snapshots == 1, "what is known is not read again"
    assert server.versions == ["1.2.3"], "the version is told once"


async def test_a_busy_server_is_asked_again(node: Node, server: FakeServer) -> None:
    server.denials["SyncAuthorizedEntries"] = Unavailable("try later", reason="BUSY")
    await until(lambda: node.reason == "BUSY")
    assert set(node.feed.entries) == {"e1"}
    server.denials.clear()
    await until(lambda: node.condition.state is State.OK)


async def test_the_version_is_told_later_when_no_server_answered(tmp_path: Path, quick: None) -> None:
    async with serving(FakeServer(pushes=False)) as server:
        server.denials["PostStatus"] = Unavailable("not now")
        async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as node:
            node.client._version = "v" * 300
            await until(lambda: node.feed.snapshots == 1 and "PostStatus" in server.calls)
            server.denials.clear()
            await server.stop()
            await server.start()
            await until(lambda: server.versions == ["v" * 255], seconds=20)


async def test_a_server_that_refuses_the_version_is_not_asked_again(tmp_path: Path, quick: None) -> None:
    async with serving(FakeServer(pushes=False)) as server:
        server.denials["PostStatus"] = Denied("no")
        async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as node:
            await until(lambda: node.client._posted)
            await until(lambda: node.feed.snapshots == 1)
            assert node.condition.state is State.OK


async def test_an_evicted_agent_hears_it_from_its_poll(node: Node, server: FakeServer) -> None:
    server.denials["SyncAuthorizedEntries"] = Denied("not attested", reason="AGENT_NOT_ATTESTED")
    await until(lambda: node.reason == "AGENT_NOT_ATTESTED")


async def test_a_banned_agent_hears_it_from_its_poll(node: Node, server: FakeServer) -> None:
    server.denials["SyncAuthorizedEntries"] = Denied("banned", reason="AGENT_BANNED")
    await until(lambda: node.condition.state is State.BANNED)


async def test_a_server_that_learned_to_push_is_noticed(node: Node, server: FakeServer) -> None:
    await server.stop()
    server.pushes = True
    server.entries["e2"] = entry("e2", dns_names=("api",))
    await server.start()
    await until(lambda: node.client.sync_mode == PUSH, seconds=20)
    await until(lambda: node.feed.snapshots == 2)
    assert node.feed.entries["e2"] == server.entries["e2"], "whole, with what polling does not show"
    assert node.feed.token == ResumeToken("epoch-1", 1)
    await server.stop()
    server.pushes = False
    await server.start()
    await until(lambda: node.feed.snapshots == 3, seconds=20)
    assert node.client.sync_mode == POLL
    assert node.feed.entries["e2"].dns_names == ()


async def test_the_push_is_asked_for_again_while_polling(
    tmp_path: Path, server: FakeServer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any failure or new connection, after some time."""
    monkeypatch.setattr(sds.polling, "PUSH_RETRY_SECONDS", 0.3)
    async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as node:
        refusals = 0
        follow = node.client._follow

        async def count() -> BurgeeError | None:
            nonlocal refusals
            refusals += 1
            return await follow()

        node.client._follow = count  # type: ignore[method-assign]
        await until(lambda: refusals >= 3)
        assert node.feed.snapshots == 1, "the polls go on where they were"
        assert node.condition.state is State.OK


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    made = Lab()
    yield made
    await made.keys.close()


async def test_any_new_revision_renews_the_svid(lab: Lab) -> None:
    """Of a polled entry a hint is all that can be seen to change; what the server signs may have, too."""

    def polled(**changes: object):
        message = entry_to_wire(lab_entry("a", **changes))
        message.ClearField("parent_id")
        return polled_entry_from_wire(message, TD)

    bundles = (lab.authority.bundle(),)
    lab.cache.apply(Snapshot(token=ResumeToken("", 1), entries=(polled(),), bundles=bundles))
    await lab.rotator.round()
    first = lab.cache.svid("a")
    assert first is not None
    lab.cache.apply(Change(token=ResumeToken("", 2), entries=(polled(hint="h", revision_number=1),)))
    await lab.rotator.round()
    second = lab.cache.svid("a")
    assert second is not None
    assert second.chain != first.chain
    await lab.rotator.round()
    assert lab.cache.svid("a") is second
    assert lab.server.asked == ["a", "a"]


def test_polled_entries_survive_a_restart(tmp_path: Path) -> None:
    server = FakeServer()
    store = open_store(config_for(tmp_path, server, servers=["127.0.0.1:1"]))
    message = entry_to_wire(entry("e1", revision_number=3))
    message.ClearField("parent_id")
    polled = polled_entry_from_wire(message, TD)
    agent = entry("x").parent_id
    saved = Snapshot(token=ResumeToken("", 9), entries=(polled,), bundles=(server.trust_bundle,))
    store.save_feed(agent, saved)
    assert store.load_feed(agent) == saved
