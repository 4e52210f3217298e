"""The decision log over gRPC (burgee.decisions.v1), the same on the server and on an agent, for administrators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

import grpc

from ca.errors import Exhausted, InvalidArgument, NotFound
from ca.identity.text import quote
from ca.proto.burgee import decisions_pb2 as wire
from ca.proto.burgee import decisions_pb2_grpc
from ca.runtime.decision_log import DecisionLog
from ca.runtime.decision_reader import MAX_RECORDS, Page, Query, find
from ca.runtime.rpc_handlers import Context
from policy.decision_record import DecisionRecord, Source

MAX_READERS = 2
"""Searches at a time; others wait."""
MAX_WATCHERS = 16
MAX_UNREAD = 1024
"""Decisions that wait for one watcher."""


class DecisionsApi(decisions_pb2_grpc.DecisionsServicer):
    """The service."""

    def __init__(self, log: DecisionLog) -> None:
        self._log = log
        self._readers = asyncio.Semaphore(MAX_READERS)
        self._watchers = 0

    async def Get(self, request: wire.GetRequest, context: Context) -> wire.Decision:
        if not request.id or request.id.endswith("*") or len(request.id) > 256:
            raise InvalidArgument("`id` is missing or no id", reason="DECISION_ID")
        page = await self._find(Query(id=request.id, limit=1))
        if not page.records:
            raise NotFound(
                f"no decision {quote(request.id)} is in the log",
                reason="DECISION_NOT_FOUND",
                hint="it may be another agent's, older than what is kept, left out by `sample_allowed`, or lost",
            )
        return _wire(page.records[0])

    async def List(self, request: wire.ListRequest, context: Context) -> wire.ListResponse:
        query = query_of(
            request.filter,
            since=_time(request.since, "since"),
            until=_time(request.until, "until"),
            limit=min(request.limit or 100, MAX_RECORDS),
        )
        page = await self._find(query)
        return wire.ListResponse(decisions=map(_wire, page.records), complete=page.complete, lost=page.lost)

    async def Watch(self, request: wire.WatchRequest, context: Context) -> AsyncIterator[wire.WatchResponse]:
        query = query_of(request.filter)
        if self._watchers >= MAX_WATCHERS:
            raise Exhausted(f"{MAX_WATCHERS} watch decisions already", reason="WATCHERS")
        waiting: asyncio.Queue[DecisionRecord] = asyncio.Queue(MAX_UNREAD)
        missed = 0

        def show(record: DecisionRecord) -> None:
            nonlocal missed
            if query.takes(record):
                if waiting.full():
                    missed += 1
                else:
                    waiting.put_nowait(record)

        self._watchers += 1
        self._log.watchers.append(show)
        try:
            yield wire.WatchResponse()  # from here on nothing goes by unseen
            while True:
                record = await waiting.get()
                gone, missed = missed, 0
                yield wire.WatchResponse(decision=_wire(record), missed=gone)
        finally:
            self._log.watchers.remove(show)
            self._watchers -= 1

    async def _find(self, query: Query) -> Page:
        async with self._readers:
            return await asyncio.to_thread(self._look, query)

    def _look(self, query: Query) -> Page:
        self._log.flush(1.0)
        return find(self._log.directory, query)


def query_of(
    filter: wire.Filter, *, since: datetime | None = None, until: datetime | None = None, limit: int = 100
) -> Query:
    """Raises InvalidArgument."""
    try:
        source = Source(filter.source) if filter.source else None
    except ValueError:
        raise InvalidArgument(
            f"{quote(filter.source)} is no source of decisions",
            reason="DECISION_FILTER",
            hint=f"one of {', '.join(Source)}",
        ) from None
    return Query(
        id=filter.id,
        target=filter.target,
        principal=filter.principal,
        policy=filter.policy,
        method=filter.method,
        path=filter.path,
        reason=filter.reason,
        source=source,
        allowed=filter.allowed if filter.HasField("allowed") else None,
        shadow_differs=filter.shadow_differs,
        since=since,
        until=until,
        limit=limit,
    )


def _time(text: str, name: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise InvalidArgument(f"`{name}` is no time in RFC 3339 with a zone", reason="DECISION_FILTER")
    return found


def _wire(record: DecisionRecord) -> wire.Decision:
    return wire.Decision(record=record.json_line().encode())


def add_decisions(log: DecisionLog, server: grpc.aio.Server) -> None:
    """Serve a log; who may call is for the server's layers to say."""
    decisions_pb2_grpc.add_DecisionsServicer_to_server(DecisionsApi(log), server)
