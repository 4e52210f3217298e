"""spire.api.server.entry.v1.Entry: registration entries, and what of them an agent may serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from ca.api.access import current_agent, current_svid, denied
from ca.api.convert.entries import entry_changes, entry_message, entry_value, optional_mask
from ca.api.convert.filters import entry_filter, page_token
from ca.api.convert.status import failed, ok
from ca.api.entry_advice import advise
from ca.errors import BurgeeError, Denied, Exhausted, InvalidArgument, NotFound
from ca.identity.entry import RegistrationEntry, validate_entry
from ca.identity.spiffe_id import TrustDomain
from ca.identity.svid import X509Svid
from ca.ports import Clock
from ca.proto.spire import server_entry_pb2 as pb
from ca.proto.spire import server_entry_pb2_grpc, types_pb2
from ca.service.acks import Acks
from ca.service.follower import Follower
from ca.service.peers import AgentAuthorizer
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store

MAX_BATCH = 10_000
"""Entries or ids of one batch call."""
SYNC_PAGE = 500
"""Entries of one SyncAuthorizedEntries answer; up to so many come in full at once."""

Context = grpc.aio.ServicerContext[Any, Any]
_SYNC = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries"
_MOMENT_SECONDS = 0.01


class EntryService(server_entry_pb2_grpc.EntryServicer):
    """Writers return when agents can already use what they wrote: memory has followed the commit."""

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        store: Store,
        index: AuthorizedIndex,
        follower: Follower,
        authorizer: AgentAuthorizer,
        clock: Clock,
        acks: Acks | None = None,
    ) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._index = index
        self._follower = follower
        self._authorizer = authorizer
        self._clock = clock
        self._acks = acks or Acks()

    async def CountEntries(self, request: pb.CountEntriesRequest, context: Context) -> pb.CountEntriesResponse:
        count = await self._store.entries.count(entry_filter(request.filter, self._trust_domain))
        return pb.CountEntriesResponse(count=count)

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Context) -> pb.ListEntriesResponse:
        mask = optional_mask(request, "output_mask")
        page = await self._store.entries.find(
            entry_filter(request.filter, self._trust_domain),
            page_size=request.page_size,
            page_token=page_token(request.page_size, request.page_token),
        )
        return pb.ListEntriesResponse(
            entries=[entry_message(entry, mask) for entry in page.items], next_page_token=page.next_token
        )

    async def GetEntry(self, request: pb.GetEntryRequest, context: Context) -> types_pb2.Entry:
        if not request.id:
            raise InvalidArgument("missing ID", reason="ENTRY_ID_MISSING")
        entry = await self._store.entries.get(request.id)
        if entry is None:
            raise NotFound("entry not found", reason="ENTRY_NOT_FOUND")
        return entry_message(entry, optional_mask(request, "output_mask"))

    async def BatchCreateEntry(
        self, request: pb.BatchCreateEntryRequest, context: Context
    ) -> pb.BatchCreateEntryResponse:
        _bounded(len(request.entries))
        mask = optional_mask(request, "output_mask")
        wanted = [self._wanted(message) for message in request.entries]
        created = iter(await self._create([entry for entry in wanted if isinstance(entry, RegistrationEntry)]))
        results = [
            pb.BatchCreateEntryResponse.Result(status=failed(entry))
            if isinstance(entry, BurgeeError)
            else _created(next(created), mask)
            for entry in wanted
        ]
        return pb.BatchCreateEntryResponse(results=results)

    async def BatchUpdateEntry(
        self, request: pb.BatchUpdateEntryRequest, context: Context
    ) -> pb.BatchUpdateEntryResponse:
        _bounded(len(request.entries))
        input_mask = optional_mask(request, "input_mask")
        output_mask = optional_mask(request, "output_mask")
        results = [await self._update(message, input_mask, output_mask) for message in request.entries]
        await self._follower.catch_up()
        return pb.BatchUpdateEntryResponse(results=results)

    async def BatchDeleteEntry(
        self, request: pb.BatchDeleteEntryRequest, context: Context
    ) -> pb.BatchDeleteEntryResponse:
        _bounded(len(request.ids))
        named = [entry_id for entry_id in request.ids if entry_id]
        deleted = iter(await self._store.entries.delete(named)) if named else iter(())
        await self._follower.catch_up()
        return pb.BatchDeleteEntryResponse(
            results=[_deleted(entry_id, next(deleted) if entry_id else None) for entry_id in request.ids]
        )

    async def GetAuthorizedEntries(
        self, request: pb.GetAuthorizedEntriesRequest, context: Context
    ) -> pb.GetAuthorizedEntriesResponse:
        mask = optional_mask(request, "output_mask")
        agent_id = current_agent().id
        self._acks.polled(agent_id, self._clock.now())
        entries = self._index.authorized(agent_id)
        return pb.GetAuthorizedEntriesResponse(entries=[entry_message(entry, mask) for entry in entries])

    async def SyncAuthorizedEntries(
        self, request_iterator: AsyncIterator[pb.SyncAuthorizedEntriesRequest], context: Context
    ) -> AsyncIterator[pb.SyncAuthorizedEntriesResponse]:
        agent_id = current_agent().id
        self._acks.polled(agent_id, self._clock.now())
        requests = self._while_allowed(current_svid(), request_iterator)
        first = await anext(requests, None)
        if first is None:
            return
        mask = _sync_mask(first)
        entries = self._index.authorized(agent_id)
        if len(entries) <= SYNC_PAGE:
            yield pb.SyncAuthorizedEntriesResponse(entries=[entry_message(entry, mask) for entry in entries])
            return
        for page, more in _pages([_revision(entry) for entry in entries]):
            yield pb.SyncAuthorizedEntriesResponse(entry_revisions=page, more=more)
        async for request in requests:
            wanted = (self._index.get(agent_id, entry_id) for entry_id in sorted(set(request.ids)))
            found = [entry for entry in wanted if entry is not None]
            for some, more in _pages(found):
                yield pb.SyncAuthorizedEntriesResponse(entries=[entry_message(e, mask) for e in some], more=more)

    async def _while_allowed(
        self, svid: X509Svid, requests: AsyncIterator[pb.SyncAuthorizedEntriesRequest]
    ) -> AsyncIterator[pb.SyncAuthorizedEntriesRequest]:
        """An agent's requests; its rights are looked at for each, and waiting ends with its SVID. Raises Denied."""
        request: pb.SyncAuthorizedEntriesRequest | None
        while True:
            left = (svid.not_after - self._clock.now()).total_seconds()
            try:
                async with asyncio.timeout(max(left, 0.0) + _MOMENT_SECONDS):
                    request = await anext(requests)
            except StopAsyncIteration:
                return
            except TimeoutError:
                request = None
            try:
                self._authorizer.check(svid)
            except Denied as cause:
                raise denied(_SYNC, cause) from cause
            if request is None:
                return
            yield request

    def _wanted(self, message: types_pb2.Entry) -> RegistrationEntry | BurgeeError:
        """The value to store, or why it cannot be."""
        try:
            entry = entry_value(message)
            self._check(entry)
        except BurgeeError as error:
            return error
        return entry

    def _check(self, entry: RegistrationEntry) -> None:
        validate_entry(entry, trust_domain=self._trust_domain)

    async def _create(self, entries: list[RegistrationEntry]) -> Sequence[Any]:
        if not entries:
            return []
        results = await self._store.entries.create(entries)
        await self._follower.catch_up()
        advise(result.entry for result in results if result.status is None and result.entry is not None)
        return results

    async def _update(
        self, message: types_pb2.Entry, input_mask: types_pb2.EntryMask | None, output_mask: types_pb2.EntryMask | None
    ) -> pb.BatchUpdateEntryResponse.Result:
        try:
            changes = entry_changes(message, input_mask)
            entry = await self._store.entries.update(message.id, changes, check=self._check)
        except BurgeeError as error:
            return pb.BatchUpdateEntryResponse.Result(status=failed(error))
        if "selectors" in changes:
            advise([entry])
        return pb.BatchUpdateEntryResponse.Result(status=ok(), entry=entry_message(entry, output_mask))


def _created(result: Any, mask: types_pb2.EntryMask | None) -> pb.BatchCreateEntryResponse.Result:
    """An entry that was similar to an existing one comes back as that one."""
    status = ok() if result.status is None else failed(result.status)
    entry = None if result.entry is None else entry_message(result.entry, mask)
    return pb.BatchCreateEntryResponse.Result(status=status, entry=entry)


def _deleted(entry_id: str, found: bool | None) -> pb.BatchDeleteEntryResponse.Result:
    if found is None:
        missing = InvalidArgument("missing entry ID", reason="ENTRY_ID_MISSING")
        return pb.BatchDeleteEntryResponse.Result(status=failed(missing), id=entry_id)
    status = ok() if found else failed(NotFound("entry not found", reason="ENTRY_NOT_FOUND"))
    return pb.BatchDeleteEntryResponse.Result(status=status, id=entry_id)


def _bounded(count: int) -> None:
    if count > MAX_BATCH:
        raise Exhausted(f"{count} items in one call; at most {MAX_BATCH} are accepted", reason="BATCH_TOO_LARGE")


def _sync_mask(request: pb.SyncAuthorizedEntriesRequest) -> types_pb2.EntryMask | None:
    if request.ids:
        raise InvalidArgument("specifying IDs on initial request is not supported", reason="SYNC_IDS")
    mask: types_pb2.EntryMask | None = optional_mask(request, "output_mask")
    if mask is not None and not mask.revision_number:
        raise InvalidArgument("revision number cannot be masked", reason="SYNC_MASK")
    return mask


def _revision(entry: RegistrationEntry) -> pb.EntryRevision:
    message = entry_message(entry, types_pb2.EntryMask(revision_number=True, created_at=True))
    return pb.EntryRevision(id=entry.id, revision_number=entry.revision_number, created_at=message.created_at)


def _pages(items: list[Any]) -> list[tuple[list[Any], bool]]:
    """Pages of SYNC_PAGE, each with whether another follows; one empty page for nothing."""
    starts = range(0, max(len(items), 1), SYNC_PAGE)
    return [(items[start : start + SYNC_PAGE], start + SYNC_PAGE < len(items)) for start in starts]
