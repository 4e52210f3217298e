"""What an agent tells of itself is never ahead of what its Envoys took over."""

from __future__ import annotations

import asyncio
import os

import pytest
from envoy.config.core.v3 import base_pb2

from ca.identity.bundle import authority_id
from sds.envoy_status import NAMED
from sds.feed import BUNDLE, ENTRY, Consumers
from sds.holdings import holdings
from tests.sds.lab import Authority, Lab, entry, eventually
from tests.support.workload_client import WorkloadClient

ME = f"pid {os.getpid()}"


@pytest.fixture
async def lab():
    async with Lab() as lab:
        yield lab


@pytest.fixture
async def client(lab: Lab):
    async with lab.client() as client:
        yield client


async def test_the_bundle_is_told_with_its_authorities_and_number(lab: Lab):
    assert holdings(BUNDLE, lab.cache, lab.clients).authorities == ()
    lab.snapshot()
    held = holdings(BUNDLE, lab.cache, lab.clients)
    assert held.authorities == (authority_id(lab.authority.der), lab.authority.kid)
    assert (held.sequence, held.svids, held.workload_streams) == (0, (), 0)


async def test_an_envoy_that_has_not_answered_for_a_new_bundle_does_not_count_as_having_it(
    lab: Lab, client: WorkloadClient
):
    """Also not in the moment between the push and the word to the Envoy, when all it was sent is accepted."""
    await lab.issued(entry("a"))
    call = client.sds()
    await call.ask("ROOTCA", "default")
    await call.read()
    await call.ack("ROOTCA", "default")
    await eventually(lambda: holdings(BUNDLE, lab.cache, lab.clients).consumers == Consumers(1, 1))
    new = Authority()
    lab.put(bundles=(lab.authority.bundle(new),))
    assert holdings(BUNDLE, lab.cache, lab.clients).consumers == Consumers(1, 0, (ME,))
    await asyncio.wait_for(call.read(), 5)
    assert holdings(BUNDLE, lab.cache, lab.clients).consumers == Consumers(1, 0, (ME,))
    await call.ack("ROOTCA", "default")
    await eventually(lambda: holdings(BUNDLE, lab.cache, lab.clients).consumers == Consumers(1, 1))
    assert authority_id(new.der) in holdings(BUNDLE, lab.cache, lab.clients).authorities


async def test_nor_one_that_has_not_taken_over_a_new_svid(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    call = client.sds()
    await call.ask("default")
    await call.read()
    await call.ack("default")
    await eventually(lambda: holdings(ENTRY, lab.cache, lab.clients).consumers == Consumers(1, 1))
    old, new = lab.authority, Authority()
    lab.server.authority = new
    lab.put(bundles=(old.bundle(new, tainted=[old]),))
    await asyncio.wait_for(call.read(), 5)
    assert holdings(ENTRY, lab.cache, lab.clients).svids == ((authority_id(new.der), 1),)
    assert holdings(ENTRY, lab.cache, lab.clients).consumers == Consumers(1, 0, (ME,))
    await call.ack("default")
    await eventually(lambda: holdings(ENTRY, lab.cache, lab.clients).consumers == Consumers(1, 1))


async def test_an_envoy_that_went_counts_no_more_and_its_going_is_told(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    told = []
    lab.clients.on_answer.append(lambda: told.append(holdings(ENTRY, lab.cache, lab.clients).consumers))
    call = client.sds()
    await call.ask("default")
    await call.read()
    await eventually(lambda: told[-1:] == [Consumers(1, 0, (ME,))])
    call.call.cancel()
    await eventually(lambda: told[-1] == Consumers(0, 0))


async def test_workload_api_streams_are_counted_and_few_laggards_are_named(lab: Lab, client: WorkloadClient):
    await lab.issued(entry("a"))
    subscription = lab.cache.subscribe(entry("a").selectors, needs_svid=False)
    assert holdings(BUNDLE, lab.cache, lab.clients).workload_streams == 1
    lab.cache.unsubscribe(subscription)
    calls = [client.sds() for _ in range(NAMED + 2)]
    for call in calls:
        await call.ask("default", node=base_pb2.Node(id="sidecar~web"))
        await call.read()
    held = holdings(ENTRY, lab.cache, lab.clients)
    assert (held.consumers.total, held.consumers.acked) == (NAMED + 2, 0)
    assert held.consumers.waiting == (f"{ME} (sidecar~web)",) * NAMED
    assert holdings(BUNDLE, lab.cache, lab.clients).workload_streams == 0
