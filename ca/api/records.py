"""The streams behind `ListIssued` and `ListAudit`: what was recorded, a bounded message at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from ca.api.convert.ids import seconds
from ca.errors import InvalidArgument
from ca.identity.exchange import is_requester
from ca.ports import Clock
from ca.proto.burgee import admin_pb2 as pb
from ca.store.audit import AuditFilter, AuditLog, AuditRecord
from ca.store.issuance import IssuanceLog
from ca.store.rows import to_micros
from ca.store.values import IssuanceRecord

PAGE = 500
"""Records of one message."""
LOOK_AGAIN_SECONDS = 1.0
UNFINISHED_SECONDS = 60.0
"""A call that takes longer than this is shown to followers as it is."""
MAX_WATCHED = 1000
MAX_LIMIT = 10_000


async def issued(
    records: IssuanceLog, request: pb.ListIssuedRequest, clock: Clock
) -> AsyncIterator[pb.ListIssuedResponse]:
    """Newest first, until the limit or the end."""
    left = request.limit or None
    pages = records.pages(
        spiffe_id=request.spiffe_id or None,
        agent=request.agent_id or None,
        authority=request.authority_id or None,
        live_at=clock.now() if request.live else None,
    )
    async for page in pages:
        kept = page if left is None else page[:left]
        for start in range(0, len(kept), PAGE):
            yield pb.ListIssuedResponse(records=[_issued(record) for record in kept[start : start + PAGE]])
        if left is not None:
            left -= len(kept)
            if left == 0:
                return


async def audited(
    records: AuditLog, request: pb.ListAuditRequest, clock: Clock, stopping: asyncio.Event
) -> AsyncIterator[pb.ListAuditResponse]:
    """Oldest first: what there is, and with `follow` what comes until `stopping`, each call when it has ended."""
    if request.limit > MAX_LIMIT:
        raise InvalidArgument(f"at most {MAX_LIMIT} records can be asked for", reason="AUDIT_LIMIT", hint="0 is all")
    condition = _condition(request)
    last = await records.last()
    async for page in _recorded(records, condition, request.limit, last):
        yield pb.ListAuditResponse(records=[_audited(record) for record in page])
    if not request.follow:
        return
    watched: dict[int, float] = {}
    while not stopping.is_set():
        ended, last = await _news(records, condition, last, watched, clock)
        if ended:
            yield pb.ListAuditResponse(records=[_audited(record) for record in ended])
        else:
            await records.wait(LOOK_AGAIN_SECONDS)


async def _recorded(
    records: AuditLog, condition: AuditFilter, limit: int, last: int
) -> AsyncIterator[list[AuditRecord]]:
    if limit:
        newest = await records.find(condition, limit=limit, newest=True)
        for start in range(0, len(newest), PAGE):
            yield newest[start : start + PAGE]
        return
    after = 0
    while page := [r for r in await records.find(condition, after=after, limit=PAGE) if r.id <= last]:
        yield page
        after = page[-1].id


async def _news(
    records: AuditLog, condition: AuditFilter, last: int, watched: dict[int, float], clock: Clock
) -> tuple[list[AuditRecord], int]:
    """Calls that ended since, in the order in which they began; `watched` holds those that have not, by their age."""
    now = clock.monotonic()
    for record in await records.find(condition, after=last, limit=PAGE):
        last = record.id
        watched[record.id] = now
    ended = []
    for record in await records.get(list(watched)[:MAX_WATCHED]):
        if record.code or now - watched[record.id] > UNFINISHED_SECONDS:
            ended.append(record)
            del watched[record.id]
    return ended, last


def _condition(request: pb.ListAuditRequest) -> AuditFilter:
    try:
        since = datetime.fromtimestamp(request.since, UTC) if request.since else None
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidArgument("`since` is not a time", reason="TIME") from error
    return AuditFilter(since=since, actor=request.actor, call=request.call, item=request.item)


def _issued(record: IssuanceRecord) -> pb.Issued:
    return pb.Issued(
        kind=record.kind,
        serial_or_kid=record.serial_or_kid,
        spiffe_id=record.spiffe_id,
        entry_id=record.entry_id,
        entry_revision=record.entry_revision,
        agent_id="" if is_requester(record.agent) else record.agent,
        requester=record.agent if is_requester(record.agent) else "",
        authority_id=record.authority_id,
        server=record.server,
        not_before=seconds(record.not_before),
        not_after=seconds(record.not_after),
        key_sha256=record.key_sha256,
    )


def _audited(record: AuditRecord) -> pb.AuditRecord:
    return pb.AuditRecord(
        id=record.id,
        at_micros=to_micros(record.at),
        actor=record.actor,
        origin=record.origin,
        call=record.call,
        request_id=record.request_id,
        server=record.server,
        code=record.code or "Unfinished",
        reason=record.reason,
        items=[pb.AuditItem(name=item.name, about=item.about, code=item.code) for item in record.items],
    )
