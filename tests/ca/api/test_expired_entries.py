"""An entry's rights end when it expires, not when it is forgotten."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from ca.proto.spire import server_agent_pb2, server_entry_pb2, server_svid_pb2, types_pb2
from ca.runtime.clock import SystemClock
from tests.ca.api.refusals import Code, refused
from tests.ca.api.test_node import Stream
from tests.support.server import Caller, RunningServer, entry, make_csr, running_server

Authorized = server_entry_pb2.GetAuthorizedEntriesRequest


class Clock(SystemClock):
    """The time of day can be put forward."""

    ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


CLOCK = Clock()
SOON = 300


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    CLOCK.ahead = timedelta()
    async with running_server(clock=CLOCK, prune={"entries_expired_for_seconds": 86400}) as running:
        yield running


def soon() -> int:
    return int(time.time()) + SOON


def expire() -> None:
    CLOCK.ahead = timedelta(seconds=SOON)


async def authorized(caller: Caller) -> set[str]:
    return {e.spiffe_id.path for e in (await caller.entries.GetAuthorizedEntries(Authorized())).entries}


async def test_an_administrator(server: RunningServer) -> None:
    await server.create(entry("/adm", "/spire/agent/join_token/x", admin=True, expires_at=soon()))
    caller = await server.caller(await server.mint("/adm"))
    await caller.agents.CountAgents(server_agent_pb2.CountAgentsRequest())
    expire()
    with refused(Code.PERMISSION_DENIED, reason="TIER"):
        await caller.agents.CountAgents(server_agent_pb2.CountAgentsRequest())


async def test_a_downstream_server(server: RunningServer) -> None:
    await server.create(entry("/down", "/spire/agent/join_token/x", downstream=True, expires_at=soon()))
    caller = await server.caller(await server.mint("/down"))
    request = server_svid_pb2.NewDownstreamX509CARequest(csr=make_csr())
    await caller.svids.NewDownstreamX509CA(request)
    expire()
    with refused(Code.PERMISSION_DENIED, reason="TIER"):
        await caller.svids.NewDownstreamX509CA(request)


async def test_svids_of_a_workload(server: RunningServer) -> None:
    identity, caller = await server.agent()
    (made,) = await server.create(entry("/w", identity.path, expires_at=soon()))
    x509 = server_svid_pb2.BatchNewX509SVIDRequest(
        params=[server_svid_pb2.NewX509SVIDParams(entry_id=made.id, csr=make_csr())]
    )
    jwt = server_svid_pb2.NewJWTSVIDRequest(entry_id=made.id, audience=["a"])
    assert (await caller.svids.BatchNewX509SVID(x509)).results[0].status.code == 0
    await caller.svids.NewJWTSVID(jwt)
    expire()
    (result,) = (await caller.svids.BatchNewX509SVID(x509)).results
    assert result.status.code == Code.NOT_FOUND.value[0]
    with refused(Code.NOT_FOUND, reason="ENTRY_NOT_AUTHORIZED"):
        await caller.svids.NewJWTSVID(jwt)


async def test_what_agents_that_poll_are_told(server: RunningServer) -> None:
    """What hangs below an expired entry goes with it."""
    identity, caller = await server.agent()
    await server.create(
        entry("/stays", identity.path),
        entry("/ends", identity.path, expires_at=soon()),
        entry("/below", "/ends"),
        entry("/ended", identity.path, expires_at=1),
    )
    assert await authorized(caller) == {"/stays", "/ends", "/below"}
    expire()
    assert await authorized(caller) == {"/stays"}
    call = caller.entries.SyncAuthorizedEntries()
    await call.write(server_entry_pb2.SyncAuthorizedEntriesRequest())
    assert {e.spiffe_id.path for e in (await call.read()).entries} == {"/stays"}
    call.cancel()


async def test_an_open_push_stream(server: RunningServer) -> None:
    identity, caller = await server.agent()
    ends, below = await server.create(entry("/ends", identity.path, expires_at=soon()), entry("/below", "/ends"))
    stream = Stream(caller)
    await stream.open()
    assert set(stream.entries) == {ends.id, below.id}
    expire()
    await stream.next()
    assert not stream.entries


async def test_the_push_comes_when_it_is_due(server: RunningServer) -> None:
    identity, caller = await server.agent()
    stream = Stream(caller)
    await stream.open()
    due = int(time.time()) + 2
    await server.create(entry("/ends", identity.path, expires_at=due))
    await stream.next()
    assert stream.entries
    await stream.next()
    assert not stream.entries
    assert due <= time.time() < due + 0.5


async def test_an_agent_that_was_away_when_it_happened(server: RunningServer) -> None:
    identity, caller = await server.agent()
    ends, below, stays = await server.create(
        entry("/ends", identity.path, expires_at=soon()), entry("/below", "/ends"), entry("/stays", identity.path)
    )
    before = Stream(caller)
    await before.open()
    before.cancel()
    expire()
    after = Stream(caller)
    first = await after.open(epoch=before.epoch, revision=before.revision)
    assert not first.snapshot
    assert {gone.name for gone in first.removed} == {ends.id, below.id}
    assert not {resource.name for resource in first.resources} & {ends.id, below.id, stays.id}


async def test_a_new_end_gives_everything_back(server: RunningServer) -> None:
    identity, caller = await server.agent()
    ends, below = await server.create(entry("/ends", identity.path, expires_at=soon()), entry("/below", "/ends"))
    stream = Stream(caller)
    await stream.open()
    expire()
    await stream.next()
    assert not stream.entries
    update = server_entry_pb2.BatchUpdateEntryRequest(
        entries=[types_pb2.Entry(id=ends.id)], input_mask=types_pb2.EntryMask(expires_at=True)
    )
    await server.local.entries.BatchUpdateEntry(update)
    await stream.next()
    assert set(stream.entries) == {ends.id, below.id}
