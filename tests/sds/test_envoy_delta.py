"""The rules of an incremental SDS stream, one by one, without a network; then over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from ca.errors import InvalidArgument
from sds.envoy_delta import MAX_OUTSTANDING, DeltaStream
from sds.envoy_stream import SdsStream
from sds.feed import BUNDLE, ENTRY, Consumers
from sds.secrets import Form
from sds.views import BundleForms
from tests.sds.lab import Authority, Lab, entry, eventually, quiet, status_of
from tests.sds.test_envoy_stream import NOW, A, B, content, node, secrets_of
from tests.support.workload_client import SDS, WorkloadClient

OWN_ID, FED_ID = "spiffe://example.org", "spiffe://fed.org"
Answer = tuple[list[str], list[str]]


class Peer:
    """An Envoy's half of an incremental stream; answers are (names of the secrets, removed names)."""

    def __init__(self, **fields: Any) -> None:
        self.stream = DeltaStream(**fields)
        self.now = content("a", "b")
        self.settled = True
        self.last = discovery_pb2.DeltaDiscoveryResponse()

    def ask(self, *names: str, drop: tuple[str, ...] = (), **fields: Any) -> Answer | None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            resource_names_subscribe=names, resource_names_unsubscribe=drop, **fields
        )
        self.stream.take_in(request.SerializeToString(), NOW)
        return self.see()

    def ack(self, **fields: Any) -> Answer | None:
        return self.ask(response_nonce=self.last.nonce, **fields)

    def nack(self, words: str) -> Answer | None:
        return self.ack(error_detail=status_pb2.Status(code=13, message=words))

    def see(self, **changed: Any) -> Answer | None:
        raw = self.stream.respond(secrets_of(self.stream, changed.get("content", self.now), settled=self.settled), NOW)
        self.now = changed.get("content", self.now)
        if raw is None:
            return None
        self.last = discovery_pb2.DeltaDiscoveryResponse.FromString(raw)
        for resource in self.last.resources:
            assert secret_pb2.Secret.FromString(resource.resource.value).name == resource.name
        return [resource.name for resource in self.last.resources], list(self.last.removed_resources)

    def versions(self) -> dict[str, str]:
        return {resource.name: resource.version for resource in self.last.resources}

    def states(self) -> dict[str, str]:
        return {name: status.state.value for name, status in self.stream.statuses.items()}


def test_names_are_answered_roots_first_and_an_ack_is_not():
    peer = Peer()
    assert peer.ask("default", "ROOTCA") == (["ROOTCA", "default"], [])
    assert peer.states() == {"ROOTCA": "SENT", "default": "SENT"}
    assert peer.ack() is None
    assert peer.states() == {"ROOTCA": "ACKED", "default": "ACKED"}


def test_the_secrets_are_the_bytes_of_state_of_the_world():
    peer, sotw = Peer(), SdsStream()
    peer.ask("default", "ROOTCA")
    sotw.request(discovery_pb2.DiscoveryRequest(resource_names=["default", "ROOTCA"]), NOW)
    raw = sotw.respond(secrets_of(sotw, peer.now), NOW)
    assert raw is not None
    whole = discovery_pb2.DiscoveryResponse.FromString(raw)
    assert [resource.resource for resource in peer.last.resources] == list(whole.resources)


def test_only_what_changed_is_sent():
    peer = Peer()
    peer.ask("default", "ROOTCA", B)
    before = peer.versions()
    peer.ack()
    assert peer.see(content=content("a", "b")) is None
    root = BundleForms(Authority(now=NOW).bundle())
    assert peer.see(content=content("a", "b", own=root)) == (["ROOTCA"], [])
    assert peer.versions()["ROOTCA"] != before["ROOTCA"]
    assert peer.see(content=content("a", "b", own=root, serial=b"2")) == (["default", B], [])


def test_a_version_is_a_hash_of_the_content():
    first, again, other = Peer(), Peer(), Peer(validator=Form.TRUSTED_CA)
    for peer in (first, again, other):
        peer.now = content("a")
        peer.ask("default", "ROOTCA")
    assert first.versions() == again.versions()
    assert first.last.nonce != again.last.nonce
    assert first.versions()["ROOTCA"] != other.versions()["ROOTCA"]
    assert first.versions()["default"] == other.versions()["default"]


def test_names_are_added_and_dropped():
    peer = Peer()
    assert peer.ask("default") == (["default"], [])
    assert peer.ask("ROOTCA") == (["ROOTCA"], [])
    assert peer.stream.subscribed == {"default", "ROOTCA"}
    assert peer.ask(drop=("default", "never asked for")) is None
    assert peer.see(content=content("a", "b", serial=b"2")) is None
    assert peer.states() == {"ROOTCA": "SENT"}
    assert peer.stream.roots_only


def test_a_name_that_is_asked_for_again_is_answered_at_an_unchanged_version():
    peer = Peer()
    peer.ask("default")
    version = peer.versions()
    peer.ack()
    assert peer.ask("default") == (["default"], [])
    assert peer.versions() == version
    assert peer.ask("default", drop=("default",)) is None


def test_unknown_names_are_removed_resources_once_and_come_when_there_is_one():
    peer = Peer()
    peer.now = content("a")
    assert peer.ask("default", B, "file-root:system", FED_ID) == (["default"], ["file-root:system", B, FED_ID])
    assert peer.states()["file-root:system"] == "UNKNOWN"
    assert "Istio" in peer.stream.statuses["file-root:system"].detail
    assert peer.ack() is None
    assert peer.see(content=content("a", "b", federated=True)) == ([FED_ID, B], [])
    assert peer.ask("file-root:system") == ([], ["file-root:system"])


def test_a_secret_that_goes_is_said_to_be_removed():
    peer = Peer()
    peer.ask("default", "ROOTCA")
    peer.ack()
    assert peer.see(content=content()) == ([], ["default"])
    assert "no longer given" in peer.stream.statuses["default"].detail
    assert peer.see() is None
    assert peer.see(content=content("a")) == (["default"], [])


def test_what_was_removed_is_not_kept_alive():
    peer = Peer(ttl_seconds=30)
    peer.ask("default", "ROOTCA")
    peer.ack()
    peer.see(content=content())
    raw = peer.stream.heartbeat()
    assert raw is not None
    assert [one.name for one in discovery_pb2.DeltaDiscoveryResponse.FromString(raw).resources] == ["ROOTCA"]


def test_an_svid_on_its_way_is_neither_sent_nor_removed():
    peer = Peer()
    peer.settled = False
    assert peer.ask("default", "ROOTCA") == (["ROOTCA"], [])
    assert "not been issued yet" in peer.stream.statuses["default"].detail
    peer.settled = True
    assert peer.see() == (["default"], [])
    peer.settled = False
    assert peer.see(content=content("a", "b")) is None


def test_what_the_client_holds_from_an_earlier_stream_is_not_sent_again():
    first = Peer()
    first.ask("default", "ROOTCA")
    held = first.versions()
    again = Peer()
    assert again.ask("default", "ROOTCA", initial_resource_versions=held) is None
    assert again.states() == {"default": "ACKED", "ROOTCA": "ACKED"}
    stale = Peer()
    stale.now = content("a", "b", serial=b"2")
    assert stale.ask("default", "ROOTCA", B, initial_resource_versions=held) == (["default", B], [])
    lost = Peer()
    lost.now = content()
    assert lost.ask("default", initial_resource_versions={**held, "not asked for": "1"}) == ([], ["default"])
    late = Peer()
    late.ask("ROOTCA")
    assert late.ask("default", initial_resource_versions=held) == (["default"], [])  # counts in the first alone


def test_no_names_mean_everything():
    peer = Peer()
    peer.now = content("a", "b", federated=True)
    assert peer.ask() == ([OWN_ID, FED_ID, A, B], [])
    assert not peer.stream.roots_only
    assert peer.ack() is None
    assert peer.see(content=content("a")) == ([], [FED_ID, B])
    assert set(peer.states()) == {OWN_ID, A}
    assert peer.ask("default") == (["default"], [])  # a name beside everything
    assert peer.ask(drop=(A,)) == ([A], [])  # still part of everything: the client may have dropped it
    assert peer.ask(drop=("default",)) == ([], ["default"])
    assert peer.ask(drop=("*",)) is None
    assert peer.see(content=content("a", "b", serial=b"2")) is None
    assert peer.states() == {}


def test_a_star_means_everything_at_any_time():
    peer = Peer()
    assert peer.ask("ROOTCA") == (["ROOTCA"], [])
    assert peer.ask("*") == ([OWN_ID, A, B], [])
    assert peer.ask(drop=("*",)) is None
    assert peer.states() == {"ROOTCA": "SENT"}
    resumed = Peer()
    assert resumed.ask("*", initial_resource_versions={OWN_ID: "old", FED_ID: "old"}) == ([OWN_ID, A, B], [FED_ID])


def test_a_nack_is_kept_with_its_words_and_not_answered_until_something_differs():
    peer = Peer()
    peer.ask("default", "ROOTCA")
    assert peer.nack("Failed to load private key") is None
    assert peer.states() == {"default": "NACKED", "ROOTCA": "NACKED"}
    assert peer.stream.statuses["default"].detail == "Failed to load private key"
    assert peer.see() is None
    assert peer.see(content=content("a", "b", serial=b"2")) == (["default"], [])
    assert peer.states() == {"default": "SENT", "ROOTCA": "NACKED"}


def test_each_answer_is_acknowledged_by_itself():
    peer = Peer()
    peer.ask("ROOTCA")
    first = peer.last.nonce
    peer.ask("default")
    second = peer.last.nonce
    assert peer.ask(response_nonce=first) is None
    assert peer.states() == {"ROOTCA": "ACKED", "default": "SENT"}
    peer.see(content=content("a", "b", serial=b"2"))
    assert peer.ask(response_nonce=second) is None  # of a version that has been replaced
    assert peer.states()["default"] == "SENT"
    assert peer.ask(B, response_nonce="of an earlier stream") == ([B], [])
    assert peer.ask(response_nonce=peer.last.nonce) is None
    assert peer.states() == {"ROOTCA": "ACKED", "default": "SENT", B: "ACKED"}


def test_a_client_that_never_acknowledges_costs_nothing():
    peer = Peer()
    for number in range(3 * MAX_OUTSTANDING):
        peer.now = content("a", serial=b"%d" % number)
        assert peer.ask("default") == (["default"], [])
    assert len(peer.stream._outstanding) == MAX_OUTSTANDING
    assert peer.ack() is None
    assert peer.states() == {"default": "ACKED"}


def test_the_node_decides_on_the_form_and_the_type_url_is_echoed():
    peer = Peer()
    peer.now = content("a")
    peer.ask("ROOTCA", node=node(1, 17), type_url="type.googleapis.com/some.Other")
    secret = secret_pb2.Secret.FromString(peer.last.resources[0].resource.value)
    assert secret.validation_context.trusted_ca.inline_bytes
    assert (peer.last.type_url, peer.stream.user_agent) == ("type.googleapis.com/some.Other", "envoy 1.17.0")


def test_a_request_out_of_bounds_is_refused():
    peer = Peer()
    peer.ask(*[f"n{i}" for i in range(600)])
    with pytest.raises(InvalidArgument):
        peer.ask(*[f"m{i}" for i in range(600)])  # names add up
    with pytest.raises(InvalidArgument):
        Peer().ask("x" * 2049)
    with pytest.raises(InvalidArgument):
        Peer().ask("default", initial_resource_versions={f"n{i}": "1" for i in range(1001)})
    with pytest.raises(InvalidArgument):
        Peer().stream.take_in(b"\xff\xff", NOW)


def test_nothing_is_said_before_the_first_request():
    assert Peer().see() is None


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab() as lab:
        yield lab


@pytest.fixture
async def client(lab: Lab) -> AsyncIterator[WorkloadClient]:
    async with lab.client() as client:
        yield client


def sent(answer: discovery_pb2.DeltaDiscoveryResponse) -> Answer:
    return [resource.name for resource in answer.resources], list(answer.removed_resources)


async def test_rotation_and_new_entries_are_pushed(lab: Lab, client: WorkloadClient):
    lab.server.ttl_seconds = 2
    await lab.issued(entry("a"))
    call = client.delta()
    await call.ask("default", "ROOTCA", "spiffe://example.org/later")
    assert sent(await call.read()) == (["ROOTCA", "default"], ["spiffe://example.org/later"])
    await call.ack()
    assert sent(await asyncio.wait_for(call.read(), 3)) == (["default"], [])
    await call.ack()
    lab.server.ttl_seconds = 3600
    lab.put(entry("z", "/later"))
    while "spiffe://example.org/later" not in sent(await asyncio.wait_for(call.read(), 5))[0]:
        await call.ack()


async def test_a_stream_that_comes_back_is_told_what_changed_meanwhile(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    first = client.delta()
    await first.ask("default", "ROOTCA")
    held = {resource.name: resource.version for resource in (await first.read()).resources}
    first.call.cancel()
    await eventually(lambda: len(lab.clients) == 0)
    same = client.delta()
    await same.ask("default", "ROOTCA", initial_resource_versions=held)
    await eventually(lambda: lab.clients.consumers(BUNDLE) == Consumers(1, 1))
    assert lab.clients.consumers(ENTRY) == Consumers(1, 1)
    lab.put(bundles=(lab.authority.bundle(Authority()),))
    assert sent(await asyncio.wait_for(same.read(), 5)) == (["ROOTCA"], [])
    await quiet(same.call)


async def test_a_nack_reaches_the_operator(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    call = client.delta()
    await call.ask("default")
    await call.read()
    (shown,) = lab.clients.all()
    told: list[str] = []
    lab.clients.on_answer.append(lambda: told.append(shown.stream.statuses["default"].state))
    await call.ack(error_detail=status_pb2.Status(code=13, message="bad key"))
    await eventually(lambda: told[-1:] == ["NACKED"])
    assert shown.stream.statuses["default"].detail == "bad key"


async def test_a_malformed_request_ends_the_stream_alone(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    call = client.channel.stream_stream(f"{SDS}/DeltaSecrets")()
    await call.write(b"\xff\xff\xff")
    assert (await status_of(call))[0] == grpc.StatusCode.INVALID_ARGUMENT.name


async def test_streams_share_the_serialized_secrets(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    calls = [client.delta() for _ in range(50)]
    for call in calls:
        await call.ask("default")
    answers = await asyncio.gather(*(call.read() for call in calls))
    assert len({answer.nonce for answer in answers}) == 50
    (view,) = lab.cache._live.values()
    made = lab.cache.content(view)._chosen
    assert len([key for key in made if key[0] == "delta"]) == 1


def test_the_names_of_one_stream_are_bounded_together() -> None:
    """Each request is small, and no name is longer than one may be: the stream keeps them all."""
    stream = DeltaStream()

    def ask(number: int) -> None:
        names = [f"{number}/".ljust(2048, "x")]
        stream.request(discovery_pb2.DeltaDiscoveryRequest(resource_names_subscribe=names), NOW)

    for number in range(64):
        ask(number)
    with pytest.raises(InvalidArgument) as caught:
        ask(64)
    assert caught.value.reason == "SDS_TOO_MANY_NAMES"
    assert len(stream.subscribed) == 64
