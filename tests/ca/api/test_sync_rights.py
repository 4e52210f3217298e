"""A SyncAuthorizedEntries stream that stays open answers as long as its agent's rights last, and no longer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ca.proto.spire import server_agent_pb2, types_pb2
from ca.proto.spire import server_entry_pb2 as pb
from tests.ca.api.refusals import Code, refused
from tests.support.server import Caller, Identity, RunningServer, entry, make_csr, running_server, spiffe_id

METHOD = "authorization denied for method /spire.api.server.entry.v1.Entry/SyncAuthorizedEntries"
Sync = pb.SyncAuthorizedEntriesRequest


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.api.entry.SYNC_PAGE", 2)


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


async def opened(server: RunningServer, identity: Identity, caller: Caller) -> tuple[Any, list[str]]:
    """A stream on which the agent has heard of three entries, and may ask for each."""
    made = await server.create(*(entry(f"/w/{n}", identity.path) for n in range(3)))
    call = caller.entries.SyncAuthorizedEntries()
    await call.write(Sync())
    heard: list[str] = []
    more = True
    while more:
        answer = await call.read()
        heard += [revision.id for revision in answer.entry_revisions]
        more = answer.more
    assert set(heard) == {e.id for e in made}
    return call, heard


async def answer(call: Any) -> list[types_pb2.Entry]:
    response = await call.read()
    if not isinstance(response, pb.SyncAuthorizedEntriesResponse):
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
    return list(response.entries)


async def test_a_renewed_agents_old_stream(server: RunningServer) -> None:
    identity, caller = await server.agent()
    call, ids = await opened(server, identity, caller)
    await call.write(Sync(ids=ids[:1]))
    assert [e.id for e in await answer(call)] == ids[:1]
    key = ec.generate_private_key(ec.SECP256R1())
    params = server_agent_pb2.AgentX509SVIDParams(csr=make_csr(key))
    svid = (await caller.agents.RenewAgent(server_agent_pb2.RenewAgentRequest(params=params))).svid
    renewed = await server.caller(Identity(path=identity.path, chain=tuple(svid.cert_chain), key=key))
    await renewed.entries.GetAuthorizedEntries(pb.GetAuthorizedEntriesRequest())
    await call.write(Sync(ids=ids))
    with refused(Code.PERMISSION_DENIED, METHOD, "AGENT_NOT_ACTIVE"):
        await answer(call)


async def test_a_banned_agents_stream(server: RunningServer) -> None:
    identity, caller = await server.agent()
    call, ids = await opened(server, identity, caller)
    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=spiffe_id(identity.path)))
    await call.write(Sync(ids=ids))
    with refused(Code.PERMISSION_DENIED, METHOD, "AGENT_BANNED"):
        await answer(call)


async def test_a_silent_stream_ends_with_the_agents_svid() -> None:
    async with running_server(agent_ttl_seconds=2, x509_svid_ttl_seconds=60) as server:
        identity, caller = await server.agent()
        call, _ = await opened(server, identity, caller)
        with refused(Code.PERMISSION_DENIED, METHOD, "AGENT_EXPIRED"):
            await answer(call)


async def test_what_was_deleted_meanwhile_is_not_given_out(server: RunningServer) -> None:
    identity, caller = await server.agent()
    call, ids = await opened(server, identity, caller)
    await server.local.entries.BatchDeleteEntry(pb.BatchDeleteEntryRequest(ids=ids[:1]))
    await call.write(Sync(ids=ids[:2]))
    assert [e.id for e in await answer(call)] == ids[1:2]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is Code.OK
