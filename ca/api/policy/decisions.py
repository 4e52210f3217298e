"""The decision log over REST: what this server decided, of workloads that the caller may read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from ca.api.policy.cursors import USUAL, after_of, cursor_of, next_link, no_cursor
from ca.api.policy.desk import Cursor, Desk, Limit
from ca.api.policy.models import DecisionList
from ca.api.policy.refusals import Fault, Faulty
from ca.api.policy.web import PREFIX, Route, answer
from ca.runtime import decision_reader
from policy.decision_record import DecisionRecord, Source

Word = Annotated[str, Query(max_length=2048, description="Exact; with `*` at its end, the beginning.")]
Verdict = Annotated[bool | None, Query(description="Only allowed, or only denied, requests.")]
Moment = Annotated[datetime | None, Query(description="RFC 3339, with a time zone.")]
INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readable(decision_reader.Query):
    """Records of targets that may be read; those with an ID in `told` were told already."""

    may_read: Callable[[str], bool]
    told: frozenset[str] = field(default=frozenset())

    def takes(self, record: DecisionRecord) -> bool:
        return record.id not in self.told and decision_reader.Query.takes(self, record) and self.may_read(record.target)


class DecisionRoutes:
    """Queries of the log."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> tuple[Route, ...]:
        """All of them."""
        return (
            Route(
                verb="GET",
                path="/decisions",
                endpoint=self.list,
                summary="Query the decision log",
                answer=DecisionList,
                headers={"Link": 'the next page, with `rel="next"` (RFC 8288)'},
                cost=5,
            ),
        )

    async def list(
        self,
        request: Request,
        id: Word = "",
        target: Word = "",
        principal: Word = "",
        policy: Word = "",
        allowed: Verdict = None,
        source: Source | None = None,
        since: Moment = None,
        until: Moment = None,
        limit: Limit = USUAL,
        cursor: Cursor = "",
    ) -> Response:
        """The newest first. `principal` is without `spiffe://`."""
        rights = await self._desk.reader()
        state = self._desk.book.state
        before, told = _place(after_of("decisions", cursor))
        query = Readable(
            id=id,
            target=target,
            principal=principal.removeprefix("spiffe://"),
            policy=policy,
            allowed=allowed,
            source=source,
            since=_zoned("since", since),
            until=min((one for one in (_zoned("until", until), before) if one is not None), default=None),
            limit=limit,
            may_read=lambda spiffe_id: self._desk.reads_target(state, spiffe_id, rights),
            told=told,
        )
        page = await self._desk.found(query)
        answered: dict[str, Any] = {"items": [one.document() for one in page.records], "next": None}
        headers = {}
        if page.records and not page.complete:
            answered["next"] = cursor_of("decisions", _after(page.records, told))
            headers["Link"] = next_link(f"{PREFIX}/decisions", dict(request.query_params), answered["next"])
        return answer(answered, headers=headers)


def _after(records: tuple[DecisionRecord, ...], told: frozenset[str]) -> str:
    """After the last record: its time, and who else of that time was told."""
    at = records[-1].at
    same = {record.id for record in records if record.at == at} | (told if records[0].at == at else set())
    return json.dumps([at.isoformat(), *sorted(same)[:32]])


def _place(text: str) -> tuple[datetime | None, frozenset[str]]:
    """The reverse; a cursor that somebody made up is none. Raises InvalidArgument (PAGE_TOKEN)."""
    if not text:
        return None, frozenset()
    try:
        at, *told = json.loads(text)
        return datetime.fromisoformat(at).astimezone(UTC) + INSTANT, frozenset(map(str, told))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise no_cursor() from None


def _zoned(name: str, at: datetime | None) -> datetime | None:
    if at is not None and at.tzinfo is None:
        fault = Fault(code="TIME", detail="a time needs a time zone, as in `2026-11-26T12:00:00Z`", parameter=name)
        raise Faulty("a parameter is not what is asked for", [fault], reason="REQUEST_INVALID")
    return at
