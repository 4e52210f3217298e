"""Entry service of a server that does not push, as SPIRE's server was recorded: small and large sets, masks, paging."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ca.errors import InvalidArgument, Unimplemented
from ca.proto.spire import server_entry_pb2 as pb
from ca.proto.spire import server_entry_pb2_grpc, types_pb2

PAGE = 500
RECORDED_MASK = types_pb2.EntryMask(
    spiffe_id=True,
    selectors=True,
    federates_with=True,
    admin=True,
    downstream=True,
    revision_number=True,
    store_svid=True,
    hint=True,
    created_at=True,
    additional_attributes=True,
)


@dataclass
class FakeEntries(server_entry_pb2_grpc.EntryServicer):
    """`entries` gives all of them; every message that came is kept.

    `break_after` ends a call OK after so many answers; `vanish` are ids that are gone when they are asked for.
    """

    entries: Callable[[], Iterable[types_pb2.Entry]]
    called: Callable[[str], None] = lambda method: None
    sync: bool = True
    break_after: int | None = None
    vanish: set[str] = field(default_factory=set)
    exchanges: list[list[pb.SyncAuthorizedEntriesRequest]] = field(default_factory=list)
    half_closed: int = 0
    full_reads: list[pb.GetAuthorizedEntriesRequest] = field(default_factory=list)

    async def SyncAuthorizedEntries(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.called("SyncAuthorizedEntries")
        if not self.sync:
            raise Unimplemented("method SyncAuthorizedEntries not implemented")
        received: list[pb.SyncAuthorizedEntriesRequest] = []
        self.exchanges.append(received)
        sent = 0
        async for answer in self._answers(requests, received):
            if sent == self.break_after:
                return
            yield answer
            sent += 1
        self.half_closed += 1

    async def GetAuthorizedEntries(self, request: Any, context: Any) -> Any:
        self.called("GetAuthorizedEntries")
        self.full_reads.append(request)
        return pb.GetAuthorizedEntriesResponse(entries=[masked(e, request.output_mask) for e in self.entries()])

    async def _answers(self, requests: AsyncIterator[Any], received: list[Any]) -> AsyncIterator[Any]:
        first = await anext(requests)
        received.append(first)
        if first.ids:
            raise InvalidArgument("specifying IDs on initial request is not supported")
        if not first.output_mask.revision_number:
            raise InvalidArgument("revision number cannot be masked")
        entries = {entry.id: entry for entry in self.entries()}
        if len(entries) <= PAGE:  # the server ends the call at once; a later request is never read
            yield pb.SyncAuthorizedEntriesResponse(entries=[masked(e, first.output_mask) for e in entries.values()])
            return
        revisions = [
            pb.EntryRevision(id=e.id, revision_number=e.revision_number, created_at=e.created_at)
            for e in entries.values()
        ]
        for some, more in pages(revisions):
            yield pb.SyncAuthorizedEntriesResponse(entry_revisions=some, more=more)
        async for request in requests:
            received.append(request)
            found = [entries[i] for i in reversed(request.ids) if i in entries and i not in self.vanish]
            for some, more in pages([masked(e, first.output_mask) for e in found]):
                yield pb.SyncAuthorizedEntriesResponse(entries=some, more=more)


def masked(entry: types_pb2.Entry, mask: types_pb2.EntryMask) -> types_pb2.Entry:
    """The id and what the mask names."""
    shown = types_pb2.Entry()
    shown.CopyFrom(entry)
    for name in types_pb2.Entry.DESCRIPTOR.fields_by_name:
        if name != "id" and not getattr(mask, name):
            shown.ClearField(name)
    return shown


def pages(items: Sequence[Any]) -> list[tuple[Sequence[Any], bool]]:
    starts = range(0, max(len(items), 1), PAGE)
    return [(items[start : start + PAGE], start + PAGE < len(items)) for start in starts]
