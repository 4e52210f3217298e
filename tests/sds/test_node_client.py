"""Following the push, and the calls that an agent makes, against a server in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from ca.errors import BurgeeError, Code, Denied, Exhausted
from ca.identity.spiffe_id import SpiffeId
from ca.ports import KeyType
from ca.proto.burgee import node_pb2
from ca.runtime.clock import SystemClock
from sds.backoff import hurried
from sds.condition import State
from sds.feed import Consumers, ResumeToken
from sds.keys import certificate_request, generate
from sds.node_sync import ACK_PAUSE_SECONDS
from tests.ca.identity.forge import TD
from tests.sds.fake_server import FakeServer, entry, fresh_root
from tests.sds.node_lab import Node, Proof, config_for, running, serving, until
from tests.support.clock import FakeClock


@pytest.fixture
async def server() -> FakeServer:
    async with serving(FakeServer()) as fake:
        yield fake


@pytest.fixture
async def node(tmp_path: Path, server: FakeServer) -> Node:
    server.entries["e1"] = entry("e1")
    async with running(Node(config_for(tmp_path, server), Proof(b"t1"))) as started:
        yield started


def request() -> bytes:
    return certificate_request(generate(KeyType.EC_P256), SpiffeId(TD, "/web"))


async def test_a_new_agent_gets_a_snapshot_and_then_each_change(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    assert node.feed.entries == {"e1": server.entries["e1"]}
    assert node.feed.bundles == {TD: server.trust_bundle}
    assert node.feed.token == ResumeToken("epoch-1", 1)
    assert server.subscriptions[0].agent_version == "1.2.3"
    await server.push(upsert=(entry("e2", "/api", dns_names=("api",), hint="h", revision_number=7),))
    await until(lambda: "e2" in node.feed.entries)
    assert node.feed.entries["e2"] == server.entries["e2"]
    await server.push(removed=("e1",))
    await until(lambda: "e1" not in node.feed.entries)
    assert node.feed.token == ResumeToken("epoch-1", 3)
    assert node.feed.snapshots == 1
    assert node.condition.state is State.OK
    assert node.client.connected
    assert node.client.server_address == server.address
    assert node.client.last_sync_at is not None


async def test_after_an_outage_the_agent_resumes_where_it_was(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    await server.stop()
    await until(lambda: node.reason == "SERVER_UNREACHABLE")
    assert node.condition.state is State.DEGRADED
    assert not node.client.connected
    await server.push(upsert=(entry("e2"),))
    await server.start()
    await until(lambda: "e2" in node.feed.entries, seconds=20)
    assert node.condition.state is State.OK
    assert node.feed.snapshots == 1
    assert server.subscriptions[-1].store_epoch == "epoch-1"
    assert server.subscriptions[-1].revision == 1


async def test_recovery_is_quick_after_a_long_outage(node: Node, server: FakeServer) -> None:
    """However long it lasted, the pauses between tries stay below the cap."""
    pauses = [node.client._backoff.next(5.0) for _ in range(200)]
    assert max(pauses) <= 6.0
    await until(lambda: node.feed.snapshots == 1)


async def test_it_tries_often_while_an_svid_is_about_to_end(tmp_path: Path, server: FakeServer) -> None:
    """After four seconds its pauses would be three and five seconds long, and grpc's channel has pauses of its own."""
    server.entries["e1"] = entry("e1")
    node = Node(config_for(tmp_path, server), Proof(b"t1"))
    node.client._next_expiry = lambda: node.clock.now() + timedelta(seconds=8)
    async with running(node):
        await until(lambda: node.feed.snapshots == 1)
        await server.stop()
        await until(lambda: node.reason == "SERVER_UNREACHABLE")
        await asyncio.sleep(4)
        await server.push(upsert=(entry("e2"),))
        await server.start()
        began = time.monotonic()
        await until(lambda: "e2" in node.feed.entries, seconds=10)
        print(f"back after {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 2.0
        assert node.feed.snapshots == 1


async def test_a_server_that_answers_is_asked_again_on_the_same_connection(tmp_path: Path, server: FakeServer) -> None:
    """However near an SVID's end: a busy server must not be given handshakes on top."""
    server.entries["e1"] = entry("e1")
    node = Node(config_for(tmp_path, server), Proof(b"t1"))
    node.client._next_expiry = lambda: node.clock.now() + timedelta(seconds=2)
    server.denials["Sync"] = Exhausted("busy", reason="SERVER_BUSY", retry_after_seconds=0.1)
    async with running(node):
        await until(lambda: "Sync" in server.calls)
        assert node.client._link is not None
        channel = node.client._link.channel
        await until(lambda: list(server.calls).count("Sync") >= 4)
        assert node.client._link.channel is channel


@pytest.mark.parametrize(
    ("left", "cap"), [(None, 5.0), (3600.0, 5.0), (50.0, 5.0), (20.0, 2.0), (6.0, 0.6), (2.0, 0.5), (-1.0, 0.5)]
)
def test_the_longest_pause_is_a_tenth_of_what_is_left(left: float | None, cap: float) -> None:
    assert hurried(5.0, left) == pytest.approx(cap)


async def test_another_epoch_means_a_snapshot(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    await server.stop()
    server.epoch, server.entries = "epoch-2", {"e9": entry("e9")}
    await server.start()
    await until(lambda: node.feed.snapshots == 2, seconds=20)
    assert set(node.feed.entries) == {"e9"}
    assert node.feed.token.epoch == "epoch-2"


async def test_the_next_server_of_the_list_is_used(tmp_path: Path, server: FakeServer) -> None:
    config = config_for(tmp_path, server, servers=["127.0.0.1:1", server.address])
    async with running(Node(config, Proof(b"t1"))) as node:
        await until(lambda: node.feed.snapshots == 1)
        assert node.client.server_address == server.address


async def test_acknowledgements_carry_the_consumers(node: Node, server: FakeServer) -> None:
    await until(lambda: any(a.kind == "entry" for a in server.acks))
    first = next(a for a in server.acks if a.kind == "entry")
    assert (first.revision, first.error, first.consumers, first.consumers_acked) == (1, "", 0, 0)
    node.feed.numbers = Consumers(total=3, acked=2)
    node.client.acknowledge()
    await until(lambda: server.acks[-1].consumers == 3)
    assert server.acks[-1].consumers_acked == 2
    count = len(server.acks)
    node.client.acknowledge()
    await server.push(upsert=(entry("e2"),))
    await until(lambda: server.acks[-1].revision == 2)
    assert {a.kind for a in server.acks[count:]} == {"entry", "bundle"}, "an unchanged state is not sent again"
    assert len(server.acks) == count + 2


async def test_many_changes_in_a_row_make_few_acknowledgements(node: Node, server: FakeServer) -> None:
    """The server counts them, and must never have to refuse an agent that does as it should."""
    await until(lambda: bool(server.acks))
    count, began = len(server.acks), time.monotonic()
    for number in range(200):
        await server.push(upsert=(entry(f"e{number}"),))
        await until(lambda number=number: f"e{number}" in node.feed.entries)
    await until(lambda: server.acks[-1].revision == 201)
    rounds = 2 + (time.monotonic() - began) / ACK_PAUSE_SECONDS
    assert len(server.acks) - count <= 2 * rounds


async def test_one_malformed_entry_does_not_keep_the_others_out(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    bad = node_pb2.Resource(kind="entry", name="e1", payload=b"\xff\xff")
    await server.push(upsert=(entry("e2"),), raw=[bad])
    await until(lambda: "e2" in node.feed.entries)
    assert "e1" not in node.feed.entries, "its old version is no longer what the server means"
    await until(lambda: any("e1" in a.error for a in server.acks))


async def test_what_the_feed_cannot_apply_is_told_and_tried_again(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    node.feed.fail = True
    await server.push(upsert=(entry("e2"),))
    await until(lambda: "e2" in node.feed.entries)
    assert len(server.subscriptions) == 2
    assert server.subscriptions[1].revision == 1


async def test_the_bundle_of_the_push_is_the_one_trusted(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    server.bundle = server.trust_bundle
    second = fresh_root("second")
    server.bundle = type(server.bundle)(
        trust_domain=TD,
        x509_authorities=(*server.bundle.x509_authorities, *second.bundle().x509_authorities),
        sequence_number=2,
    )
    await server.push_bundle()
    await until(lambda: node.trust.bundle == server.bundle)
    assert node.store.load_bundle() == server.bundle


async def test_svids_come_in_the_order_of_the_requests(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    issued = await node.client.new_x509_svids([("e1", request()), ("nope", request()), ("e1", request())])
    assert [bool(i.chain) for i in issued] == [True, False, True]
    error = issued[1].error
    assert error is not None
    assert (error.code, error.detail) == (Code.NOT_FOUND, "entry not found or not authorized")


async def test_batches_hold_at_most_five_hundred(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    csr = request()
    issued = await node.client.new_x509_svids([("nope", csr)] * 501)
    assert len(issued) == 501
    assert server.calls.count("BatchNewX509SVID") == 2


async def test_jwt_and_bundle(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    issued = await node.client.new_jwt_svid("e1", ["a", "b"])
    assert issued.token == "a.b.a,b"
    assert issued.expires_at.timestamp() == 1300
    assert await node.client.get_bundle() == server.trust_bundle
    with pytest.raises(BurgeeError) as caught:
        await node.client.new_jwt_svid("nope", ["a"])
    assert caught.value.code is Code.NOT_FOUND


async def test_calls_without_a_server_fail_at_once_and_say_why(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    await server.stop()
    await until(lambda: node.reason == "SERVER_UNREACHABLE")
    async with asyncio.timeout(5):
        with pytest.raises(BurgeeError) as caught:
            await node.client.new_jwt_svid("e1", ["a"])
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "SERVER_UNREACHABLE")
    assert server.address in caught.value.detail


async def test_calls_before_attestation_are_unavailable(tmp_path: Path, server: FakeServer) -> None:
    node = Node(config_for(tmp_path, server), Proof(b"t1"))
    with pytest.raises(BurgeeError) as caught:
        await node.client.get_bundle()
    assert caught.value.reason == "AGENT_NOT_READY"


async def test_a_ban_on_the_stream_reaches_the_identity(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    server.denials["Sync"] = Denied("authorization denied", reason="AGENT_BANNED")
    await server.stop()
    await server.start()
    await until(lambda: node.condition.state is State.BANNED, seconds=20)
    assert node.identity.svid is None
    await until(lambda: node.store.load_agent() is None)
    await until(lambda: not node.client.connected and node.client._link is None)
    with pytest.raises(BurgeeError) as caught:
        await node.client.get_bundle()
    assert caught.value.reason == "AGENT_NOT_READY"
    del server.denials["Sync"]
    server.tokens.add("t1")
    proof = node.identity._prover
    assert isinstance(proof, Proof)
    proof.again = True
    node.feed.token = ResumeToken()  # as the agent's follower does
    await until(lambda: node.condition.state is State.OK, seconds=20)
    assert node.feed.snapshots == 2, "everything anew"


async def test_an_expired_svid_is_not_shown_to_a_server_and_that_is_said(tmp_path: Path, server: FakeServer) -> None:
    """A server ends the connection over it: what follows from that must not hide what is wrong."""
    clock = FakeClock(SystemClock().now())
    server.now = clock.now
    node = Node(config_for(tmp_path, server), Proof(b"t1"), clock=clock)
    async with running(node):
        await passes(clock, lambda: node.feed.snapshots == 1)
        await server.stop()
        await passes(clock, lambda: node.condition.problems.get("sync") is not None)
        svid = node.identity.svid
        assert svid is not None
        clock.jump((svid.not_after - clock.now()).total_seconds() + 1)
        await passes(clock, lambda: node.condition.problems["sync"].reason == "AGENT_EXPIRED")
        assert node.reason == "AGENT_EXPIRED"
        await passes(clock, lambda: "nothing left to prove" in node.detail)
        assert set(node.condition.problems) == {"sync", "identity"}, "the identity's words are the ones shown"
        with pytest.raises(BurgeeError) as caught:
            await node.client.get_bundle()
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "AGENT_EXPIRED")
        connections = len(server.client_chains)
        await server.start()
        for _ in range(50):
            await clock.advance(1)
            await asyncio.sleep(0.01)
        assert len(server.client_chains) == connections
        clock.jump((SystemClock().now() - clock.now()).total_seconds())
        await passes(clock, lambda: node.condition.state is State.OK)
        assert node.identity.svid == svid


async def passes(clock: FakeClock, reached: Callable[[], bool]) -> None:
    """Lets the fake time pass while real sockets are given real time."""
    for _ in range(2000):
        if reached():
            return
        await clock.advance(0.5)
        await asyncio.sleep(0.01)
    raise AssertionError("the awaited state did not come")


async def test_a_renewed_svid_gets_a_link_of_its_own(node: Node, server: FakeServer) -> None:
    await until(lambda: node.feed.snapshots == 1)
    before = node.identity.svid
    assert before is not None
    node.identity._due = node.clock.now()
    node.identity._poked.set()
    await until(lambda: node.identity.svid != before)
    await until(lambda: len(server.subscriptions) == 2)
    after = node.identity.svid
    assert after is not None
    assert after.id == before.id
    await until(lambda: server.client_chains[-1] == after.chain[0])
    await until(lambda: node.client.connected)
    assert node.feed.snapshots == 1
    assert (await node.client.new_jwt_svid("e1", ["a"])).token


async def test_a_busy_server_says_when_to_come_again_and_is_obeyed(tmp_path: Path, server: FakeServer) -> None:
    busy = Exhausted("busy", reason="SERVER_BUSY", retry_after_seconds=1.0)
    server.denials["AttestAgent"] = server.denials["Sync"] = busy
    node = Node(config_for(tmp_path, server), Proof(b"t1"))
    async with running(node):
        began = node.clock.monotonic()
        await until(lambda: node.reason == "SERVER_BUSY")
        del server.denials["AttestAgent"]
        await until(lambda: node.identity.svid is not None)
        attested = node.clock.monotonic()
        assert attested - began >= 1.0
        await until(lambda: "Sync" in server.calls)
        del server.denials["Sync"]
        await until(lambda: node.feed.snapshots == 1)
        assert node.clock.monotonic() - attested >= 1.0
