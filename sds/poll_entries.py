"""Which entries this agent may serve, kept in step by SPIRE's own calls: nothing is pushed, only asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc

from ca.errors import BurgeeError, Internal, Unavailable
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import TrustDomain
from ca.proto.spire import server_entry_pb2 as pb
from ca.proto.spire import server_entry_pb2_grpc, types_pb2
from ca.runtime.log import get
from sds.wire import polled_entry_from_wire

CALL_SECONDS = 30.0
PAGE = 500
"""Ids asked for in one message: a server answers with as many entries at a time."""

FIELDS = (
    "spiffe_id",
    "selectors",
    "federates_with",
    "admin",
    "downstream",
    "revision_number",
    "store_svid",
    "hint",
    "created_at",
    "additional_attributes",
)
"""What SPIRE's agents ask for, and so what every server is known to answer. Parent, TTLs and DNS names are not in it:
the server puts them into what it issues, and a new revision is the sign that they may have changed."""

Version = tuple[int, int]
"""Revision and creation time of an entry: while both stay, it is the same entry with the same content."""

Call = grpc.aio.StreamStreamCall[pb.SyncAuthorizedEntriesRequest, pb.SyncAuthorizedEntriesResponse]
log = get("sds.polling")


class EntryPoll:
    """`refresh` as often as wanted. `whole`: the server has only the call that sends every entry each time."""

    def __init__(self, trust_domain: TrustDomain) -> None:
        self._trust_domain = trust_domain
        self._versions: dict[str, Version] = {}
        self._entries: dict[str, RegistrationEntry] = {}
        self.whole = False

    async def refresh(self, channel: grpc.aio.Channel) -> dict[str, RegistrationEntry]:
        """All entries of this agent by id. Entries that did not change are the same objects as the last time.

        Nothing is taken over before the whole answer is here. Raises AioRpcError as the server answered, Unavailable
        (SYNC_INCOMPLETE) when it ended in the middle.
        """
        stub = server_entry_pb2_grpc.EntryStub(channel)
        if not self.whole:
            try:
                return self._take(*await self._sync(stub))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                self.whole = True
        request = pb.GetAuthorizedEntriesRequest(output_mask=mask())
        answer = await stub.GetAuthorizedEntries(request, timeout=CALL_SECONDS)
        return self._take(answer.entries, {})

    async def _sync(
        self, stub: server_entry_pb2_grpc.EntryAsyncStub
    ) -> tuple[list[types_pb2.Entry], dict[str, Version]]:
        """(entries sent in full, versions of those that were not sent because they are here already)."""
        call: Call = stub.SyncAuthorizedEntries(timeout=CALL_SECONDS)
        try:
            await _send(call, pb.SyncAuthorizedEntriesRequest(output_mask=mask()))
            first = await _answer(call)
            if not first.entry_revisions:
                await _end(call)
                return list(first.entries), {}
            versions = await _revisions(call, first)
            kept = {i: version for i, version in versions.items() if self._versions.get(i) == version}
            # What is asked for and not among the answers has gone meanwhile.
            sent = await _fetch(call, sorted(versions.keys() - kept.keys()))
            await _end(call)
            return sent, kept
        finally:
            call.cancel()

    def _take(self, sent: Iterable[types_pb2.Entry], kept: dict[str, Version]) -> dict[str, RegistrationEntry]:
        versions = dict(kept)
        entries = {i: self._entries[i] for i in kept if i in self._entries}
        for message in sent:
            version = versions[message.id] = _version(message)
            try:
                entry, known = polled_entry_from_wire(message, self._trust_domain), self._entries.get(message.id)
                entries[message.id] = known if known == entry else entry
            except BurgeeError as error:
                # It must not keep the others out, and its old version is no longer what the server means.
                if self._versions.get(message.id) != version:
                    log.error("entry is malformed", reason="ENTRY_MALFORMED", entry_id=message.id, detail=error.detail)
        self._versions, self._entries = versions, entries
        return entries


def mask() -> types_pb2.EntryMask:
    """The one that SPIRE's agents send with every call."""
    return types_pb2.EntryMask(**dict.fromkeys(FIELDS, True))


def _version(message: types_pb2.Entry | pb.EntryRevision) -> Version:
    return (message.revision_number, message.created_at)


async def _revisions(call: Call, answer: pb.SyncAuthorizedEntriesResponse) -> dict[str, Version]:
    """All pages of a large set's revisions, beginning with the one that is here."""
    versions: dict[str, Version] = {}
    while True:
        versions.update((revision.id, _version(revision)) for revision in answer.entry_revisions)
        if not answer.more:
            return versions
        answer = await _answer(call)


async def _fetch(call: Call, ids: list[str]) -> list[types_pb2.Entry]:
    entries: list[types_pb2.Entry] = []
    for start in range(0, len(ids), PAGE):
        await _send(call, pb.SyncAuthorizedEntriesRequest(ids=ids[start : start + PAGE]))
        more = True
        while more:
            answer = await _answer(call)
            entries += answer.entries
            more = answer.more
    return entries


async def _send(call: Call, message: pb.SyncAuthorizedEntriesRequest) -> None:
    try:
        await call.write(message)
    except asyncio.InvalidStateError:
        pass  # the server has ended the call: the next read says how


async def _answer(call: Call) -> pb.SyncAuthorizedEntriesResponse:
    answer = await call.read()  # raises the status that the server ended the call with, unless that was OK
    if isinstance(answer, pb.SyncAuthorizedEntriesResponse):
        return answer
    raise Unavailable("the server ended the list of entries in the middle", reason="SYNC_INCOMPLETE")


async def _end(call: Call) -> None:
    """Half-close, and the server's own end: only an OK makes what was read the truth."""
    await call.done_writing()
    if isinstance(await call.read(), pb.SyncAuthorizedEntriesResponse):
        raise Internal("the server sent more entries than it announced", reason="SYNC_MALFORMED")
