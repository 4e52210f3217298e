"""What `burgee up` asks of the server and the agent, through the same admin APIs as any operator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from ca.errors import FailedPrecondition, Unavailable
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.burgee import (
    admin_pb2,
    admin_pb2_grpc,
    agent_pb2,
    agent_pb2_grpc,
    decisions_pb2,
    decisions_pb2_grpc,
)
from ca.proto.spire import server_agent_pb2, server_agent_pb2_grpc, server_entry_pb2, server_entry_pb2_grpc, types_pb2
from ca.runtime.rpc import connect, error_of

TOKEN_TTL_SECONDS = 600
_CALL_SECONDS = 5.0
_OK = 0
HINT = "burgee-up"
"""Marks the entries that are ours to correct; a person's own entry for the same ID is left alone."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An entry that must exist: which selectors under which parent earn which ID, for how long."""

    spiffe_id: SpiffeId
    parent_id: SpiffeId
    selectors: tuple[str, ...]
    ttl_seconds: int

    def entry(self) -> types_pb2.Entry:
        parsed = [Selector.parse(text) for text in self.selectors]
        return types_pb2.Entry(
            spiffe_id=_wire_id(self.spiffe_id),
            parent_id=_wire_id(self.parent_id),
            selectors=[types_pb2.Selector(type=s.type, value=s.value) for s in parsed],
            x509_svid_ttl=self.ttl_seconds,
            jwt_svid_ttl=self.ttl_seconds,
            hint=HINT,
        )

    def holds(self, entry: types_pb2.Entry) -> bool:
        """Whether `entry` already says this."""
        mine = self.entry()
        return (
            entry.parent_id == mine.parent_id
            and {(s.type, s.value) for s in entry.selectors} == {(s.type, s.value) for s in mine.selectors}
            and entry.x509_svid_ttl == mine.x509_svid_ttl
            and entry.jwt_svid_ttl == mine.jwt_svid_ttl
        )


@asynccontextmanager
async def _channel(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a Unix socket; RPC errors come out as the error family."""
    try:
        async with connect(socket) as channel:
            yield channel
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def server_status(socket: Path) -> admin_pb2.Status | None:
    """The server's status once it is ready, None before. Raises Unavailable while nobody answers."""
    async with _channel(socket) as channel:
        status = await admin_pb2_grpc.AdminStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=_CALL_SECONDS)
    if not status.ready and status.problems:
        raise Unavailable("; ".join(problem.detail for problem in status.problems))
    return status if status.ready else None


async def agent_status(socket: Path) -> agent_pb2.Status | None:
    """The agent's status once it is OK and has heard from the server in this life of its, None before.

    Right after a start it may be OK by what it remembers alone. Raises Unavailable with its reason while it is not.
    """
    async with _channel(socket) as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        status = await stub.GetStatus(agent_pb2.GetStatusRequest(), timeout=_CALL_SECONDS)
    if status.state != "OK" and status.detail:
        raise Unavailable(f"{status.detail} ({status.reason})")
    in_touch = status.last_sync_at >= status.started_at > 0
    return status if status.state == "OK" and in_touch else None


async def decision(socket: Path, decision_id: str) -> bytes:
    """What the agent's log has under that ID: JSON. Raises NotFound."""
    async with _channel(socket) as channel:
        stub = decisions_pb2_grpc.DecisionsStub(channel)
        found = await stub.Get(decisions_pb2.GetRequest(id=decision_id), timeout=_CALL_SECONDS)
    return found.record


async def known_agents(socket: Path, trust_domain: TrustDomain) -> set[str]:
    """The IDs of all agents that the server has attested."""
    async with _channel(socket) as channel:
        stub = server_agent_pb2_grpc.AgentStub(channel)
        listed = await stub.ListAgents(server_agent_pb2.ListAgentsRequest(), timeout=_CALL_SECONDS)
    return {f"spiffe://{trust_domain}{agent.id.path}" for agent in listed.agents}


async def create_token(socket: Path) -> str:
    """A fresh join token."""
    async with _channel(socket) as channel:
        stub = server_agent_pb2_grpc.AgentStub(channel)
        request = server_agent_pb2.CreateJoinTokenRequest(ttl=TOKEN_TTL_SECONDS)
        token = await stub.CreateJoinToken(request, timeout=_CALL_SECONDS)
    return token.value


async def ensure_entries(socket: Path, wanted: Sequence[Wanted]) -> None:
    """Create what is missing and correct what differs; raises FailedPrecondition when the server refuses one."""
    async with _channel(socket) as channel:
        stub = server_entry_pb2_grpc.EntryStub(channel)
        for want in wanted:
            await _ensure(stub, want)


async def _ensure(stub: server_entry_pb2_grpc.EntryAsyncStub, want: Wanted) -> None:
    by_id = server_entry_pb2.ListEntriesRequest.Filter(by_spiffe_id=_wire_id(want.spiffe_id))
    listed = await stub.ListEntries(server_entry_pb2.ListEntriesRequest(filter=by_id), timeout=_CALL_SECONDS)
    if any(want.holds(entry) for entry in listed.entries):
        return
    entry = want.entry()
    ours = next((known for known in listed.entries if known.hint == HINT), None)
    if ours is not None:
        entry.id = ours.id
        update = server_entry_pb2.BatchUpdateEntryRequest(entries=[entry])
        status = (await stub.BatchUpdateEntry(update, timeout=_CALL_SECONDS)).results[0].status
    else:
        create = server_entry_pb2.BatchCreateEntryRequest(entries=[entry])
        status = (await stub.BatchCreateEntry(create, timeout=_CALL_SECONDS)).results[0].status
    if status.code != _OK:
        raise FailedPrecondition(f"the server refused the entry for `{want.spiffe_id}`: {status.message}")


def _wire_id(spiffe_id: SpiffeId) -> types_pb2.SPIFFEID:
    return types_pb2.SPIFFEID(trust_domain=spiffe_id.trust_domain.name, path=spiffe_id.path)
