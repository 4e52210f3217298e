"""SDS over a real socket: streams, waiting, sharing, what the operator sees."""

from __future__ import annotations

import asyncio
import os

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from sds.feed import BUNDLE, ENTRY, Consumers
from tests.sds.lab import API, Authority, Lab, entry, eventually, quiet, refused, status_of
from tests.support.workload_client import SDS, WorkloadClient


@pytest.fixture
async def lab():
    async with Lab() as lab:
        yield lab


@pytest.fixture
async def client(lab: Lab):
    async with lab.client() as client:
        yield client


def names(response: discovery_pb2.DiscoveryResponse) -> list[str]:
    from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

    return [secret_pb2.Secret.FromString(resource.value).name for resource in response.resources]


async def test_envoy_waits_for_a_starting_agent(lab: Lab, client: WorkloadClient):
    call = client.sds()
    await call.ask("default")
    reading = asyncio.create_task(call.read())
    await asyncio.sleep(0.05)
    lab.snapshot(entry("a"))
    assert names(await reading) == ["default"]


async def test_no_header_is_asked_for_and_rotation_is_pushed(lab: Lab, client: WorkloadClient):
    lab.server.ttl_seconds = 2
    await lab.issued(entry("a"))
    call = client.sds()
    await call.ask("default", "ROOTCA")
    first = await call.read()
    await call.ack("default", "ROOTCA")
    second = await asyncio.wait_for(call.read(), 3)
    assert names(second) == ["ROOTCA", "default"]
    assert second.version_info != first.version_info
    assert second.resources[0] == first.resources[0]


async def test_unknown_names_never_end_the_stream(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    istio = client.sds()
    await istio.ask("default", "ROOTCA", "file-root:system")
    assert names(await istio.read()) == ["ROOTCA", "default"]
    unknown = client.sds()
    await unknown.ask("spiffe://example.org/later")
    await asyncio.sleep(0.05)
    lab.put(entry("z", "/later"))
    assert names(await unknown.read()) == ["spiffe://example.org/later"]
    lab.remove("z", "a")
    await quiet(unknown.call)


async def test_entries_that_go_and_come_back(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    call = client.sds()
    await call.ask("default")
    await call.read()
    await call.ack("default")
    lab.remove("a")
    lab.put(entry("b"))
    assert names(await call.read()) == ["default"]


async def test_the_operator_sees_what_was_answered(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    good, bad = client.sds(), client.sds()
    await good.ask("ROOTCA", "default")
    await good.read()
    await bad.ask("default", "nope")
    await bad.read()
    me = f"pid {os.getpid()}"
    assert lab.clients.consumers(BUNDLE) == Consumers(1, 0, (me,))
    assert lab.clients.consumers(ENTRY) == Consumers(2, 0, (me, me))
    answered = []
    lab.clients.on_answer.append(lambda: answered.append(1))
    await good.ack("ROOTCA", "default")
    await bad.ask(
        "default",
        "nope",
        response_nonce=bad.last.nonce,
        error_detail=status_pb2.Status(code=13, message="bad key"),
    )
    await eventually(lambda: len(answered) == 2)
    assert lab.clients.consumers(BUNDLE) == Consumers(1, 1)
    assert lab.clients.consumers(ENTRY) == Consumers(2, 1, (me,))
    second = next(c.stream for c in lab.clients.all() if "nope" in c.stream.statuses)
    assert second.statuses["default"].detail == "bad key"
    assert second.statuses["nope"].state == "UNKNOWN"
    good.call.cancel()
    bad.call.cancel()
    await eventually(lambda: len(lab.clients) == 0)


async def test_a_client_that_closes_its_half_is_let_go(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    call = client.sds()
    await call.ask("default")
    await call.read()
    await call.call.done_writing()
    assert (await status_of(call.call))[0] == "OK"
    await eventually(lambda: len(lab.clients) == 0)


async def test_streams_share_the_serialized_secrets(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    calls = [client.sds() for _ in range(50)]
    for call in calls:
        await call.ask("default")
    answers = await asyncio.gather(*(call.read() for call in calls))
    assert len({answer.nonce for answer in answers}) == 50
    assert len({answer.version_info for answer in answers}) == 1
    (view,) = lab.cache._live.values()
    content = lab.cache.content(view)
    assert len([key for key in content._chosen if key[0] == "response"]) == 1


async def test_fetch_secrets(lab: Lab, client: WorkloadClient):
    lab.snapshot(entry("a", disable_x509_svid_prefetch=True))
    response = await client.fetch_secrets("default", "ROOTCA", "nope")
    assert names(response) == ["ROOTCA", "default"]
    assert (response.version_info, response.nonce) == ("", "")
    assert names(await client.fetch_secrets()) == ["spiffe://example.org", "spiffe://example.org/a"]
    expected = 'workload is not authorized for the requested identities ["nope" "zz"]'
    assert await refused(client.fetch_secrets("zz", "nope")) == ("INVALID_ARGUMENT", expected)


async def test_fetch_secrets_without_an_identity(lab: Lab, client: WorkloadClient):
    lab.snapshot(entry("b", "", API))
    assert names(await client.fetch_secrets()) == ["spiffe://example.org"]
    assert (await refused(client.fetch_secrets("default")))[0] == "INVALID_ARGUMENT"


async def test_a_malformed_request_ends_the_stream_alone(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    call = client.channel.stream_stream(f"{SDS}/StreamSecrets")()
    await call.write(b"\xff\xff\xff")
    assert (await status_of(call))[0] == "INVALID_ARGUMENT"
    good = client.sds()
    await good.ask("default")
    assert names(await good.read()) == ["default"]


async def test_many_streams_are_told_of_a_change(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    calls = [client.sds() for _ in range(200)]
    for call in calls:
        await call.ask("ROOTCA")
    await asyncio.gather(*(call.read() for call in calls))
    lab.put(bundles=(lab.authority.bundle(Authority()),))
    await asyncio.wait_for(asyncio.gather(*(call.read() for call in calls)), 5)
