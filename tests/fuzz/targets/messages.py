"""Messages of the wire between agents, administrators and the server: entries, pushes, acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from typing import Any
from unittest.mock import patch

from google.protobuf.message import DecodeError, Message

from ca.api import node
from ca.api.convert import entries, filters
from ca.errors import AlreadyExists, BurgeeError, InvalidArgument
from ca.identity.entry import validate_entry
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.svid import X509Svid
from ca.proto.burgee import node_pb2
from ca.proto.spire import server_agent_pb2, server_entry_pb2, types_pb2
from ca.service.acks import Acknowledged
from ca.service.feed import Update
from sds import wire
from sds.cache import Cache
from sds.feed import Snapshot
from tests.fuzz import records, wire_mutator
from tests.fuzz.harness import Target, check_refusal, outcome
from tests.support.clock import FakeClock

TD = TrustDomain("example.org")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _message(kind: type[Message], data: bytes) -> Any:
    """None for bytes that are no such message: those never get past the transport."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


@contextmanager
def refusals(*families: type[BurgeeError]) -> Iterator[None]:
    try:
        yield
    except BurgeeError as error:
        check_refusal(error, *families)


# ---- what administrators send


def run_entry(data: bytes) -> None:
    message = _message(types_pb2.Entry, data)
    if message is None:
        return
    with refusals(InvalidArgument, AlreadyExists):
        entry = entries.entry_value(message)
        again = entries.entry_value(entries.entry_message(entry))
        assert sorted(again.dns_names) == sorted(entry.dns_names)
        assert again.selectors == entry.selectors
        assert again.spiffe_id == entry.spiffe_id
        assert again.expires_at == entry.expires_at
        validate_entry(entry, trust_domain=TD)
        assert entry.spiffe_id.trust_domain == TD
    with refusals(InvalidArgument, AlreadyExists):
        entries.entry_changes(message, None)


def run_filters(data: bytes) -> None:
    for kind, read in _FILTERS:
        message = _message(kind, data)
        if message is not None:
            outcome(read, message.filter, refusal=InvalidArgument)


def _read_entry_filter(message: Any) -> object:
    return filters.entry_filter(message, TD)


_FILTERS: tuple[tuple[type[Message], Callable[[Any], object]], ...] = (
    (server_entry_pb2.ListEntriesRequest, _read_entry_filter),
    (server_agent_pb2.ListAgentsRequest, filters.agent_filter),
)

# ---- what the server pushes to an agent


def run_push(data: bytes) -> None:
    cache = Cache(TD, clock=FakeClock())
    for letter, content in records.split(data):
        message = _message(node_pb2.SyncResponse, content)
        if message is None:
            continue
        with refusals(InvalidArgument):
            change, problems = wire.read_resources(message)
            assert set(problems) <= {"entry", "bundle"}
            for entry in change.entries:
                assert wire.entry_from_wire(wire.entry_to_wire(entry)) == entry
            for bundle in change.bundles:
                assert wire.bundle_from_wire(wire.bundle_to_wire(bundle)) == bundle
            whole = Snapshot(token=change.token, entries=change.entries, bundles=change.bundles)
            cache.apply(whole if letter == b"s" else change)
            assert {entry.id for entry in change.entries} <= {entry.id for entry in cache.entries()}


# ---- what an agent answers


class _Nothing:
    """Lets everybody in and keeps nothing: an AgentAuthorizer, a NodeAttestation, a Feed."""

    closing = False
    epoch = "epoch"

    def __init__(self) -> None:
        self.heard: list[tuple[str, Acknowledged]] = []
        self.open_sessions = 0

    async def authorize(self, svid: X509Svid) -> object:
        return object()

    def ack(self) -> None:
        """Implements ca.api.limits.Limits: as many as come."""

    def check(self, svid: X509Svid) -> None:
        return None

    async def post_status(self, agent: object, version: str) -> None:
        return None

    async def open(self, agent: SpiffeId, *, epoch: str, revision: int) -> tuple[_Session, Update]:
        self.open_sessions += 1
        return _Session(), Update(epoch="e", revision=1, snapshot=True)

    def close(self, session: object) -> None:
        self.open_sessions -= 1

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def acknowledge(self, agent: SpiffeId, kind: str, said: Acknowledged) -> None:
        self.heard.append((kind, said))


class _Session:
    superseded = False

    def __init__(self) -> None:
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def wait(self, timeout_seconds: float) -> None:
        await self._wake.wait()
        self._wake.clear()

    def take(self) -> Update:
        return Update(epoch="e", revision=1)


class _Context:
    """The server's side of a call whose client sends these requests and then closes its half."""

    def __init__(self, requests: list[node_pb2.SyncRequest]) -> None:
        self._requests = requests
        self.written: list[node_pb2.SyncResponse] = []

    async def read(self) -> object:
        await asyncio.sleep(0)
        return self._requests.pop(0) if self._requests else object()  # grpc.aio's EOF is no request either

    async def write(self, message: node_pb2.SyncResponse) -> None:
        self.written.append(message)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def run_ack(data: bytes) -> None:
    requests = [_message(node_pb2.SyncRequest, content) for _, content in records.split(data)]
    _loop().run_until_complete(_sync([request for request in requests if request is not None]))


async def _sync(requests: list[node_pb2.SyncRequest]) -> None:
    nothing: Any = _Nothing()
    service = node.NodeService(feed=nothing, authorizer=nothing, attestation=nothing, clock=FakeClock(), limits=nothing)
    context: Any = _Context(list(requests))
    svid = X509Svid(
        id=SpiffeId(TD, "/spire/agent/a"),
        chain=(),
        not_before=NOW,
        not_after=NOW.replace(year=2027),
        serial=1,
        authority_key_id="",
    )
    with patch.object(node, "current_svid", lambda: svid), refusals(InvalidArgument):
        await asyncio.wait_for(service.Sync(context, context), 5)
        assert len(context.written) == 1
        assert len(nothing.heard) == sum(request.WhichOneof("step") == "ack" for request in requests)
    assert nothing.open_sessions == 0
    assert all(kind in node.KINDS and len(said.error) <= 1024 for kind, said in nothing.heard)


TARGETS = (
    Target(
        name="entry",
        run=run_entry,
        mutate=wire_mutator.mutate,
        words=(b"example.org", b"/web", b"unix", b"*.example.org", b"\xff" * 9 + b"\x01"),
    ),
    Target(
        name="filter",
        run=run_filters,
        mutate=wire_mutator.mutate,
        words=(b"2026-01-31T12:00:00Z", b"9999-12-31 23:59:59 -2359 UTC", b"0001-01-01"),
    ),
    Target(
        name="push",
        run=run_push,
        mutate=records.mutating(wire_mutator.mutate),
        words=(b"entry", b"bundle", b"example.org", b"\xff" * 9),
    ),
    Target(
        name="acknowledgement",
        run=run_ack,
        mutate=records.mutating(wire_mutator.mutate),
        words=(b"entry", b"bundle", b"\xff" * 9),
    ),
)
