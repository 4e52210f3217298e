"""The audit log: who administered what, with which result; a record is begun before its call runs.

A record that was begun and never finished tells of a call whose outcome nobody was told: the server ended before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, delete, func, insert, or_, select, update

from ca.store.database import Database, WriteTransaction
from ca.store.rows import from_micros, to_json, to_micros
from ca.store.tables import audit

MAX_TEXT = 2048
"""Characters of a name that are kept; a SPIFFE ID has no more."""


@dataclass(frozen=True, slots=True)
class AuditItem:
    """One thing that a call was about; `code` is its own result, empty where there was none."""

    name: str
    about: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One administrative call. `code` is empty while it has not ended; `reason` says why it was refused."""

    id: int = 0
    at: datetime
    server: str
    actor: str
    origin: str
    call: str
    request_id: str = ""
    code: str = ""
    reason: str = ""
    items: tuple[AuditItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """All that is given must fit. `call` is a full name or its last part; `item` a name or what is known about it."""

    since: datetime | None = None
    actor: str = ""
    call: str = ""
    item: str = ""


class AuditLog:
    """The audit records of the store; outside of the change log."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._moved = asyncio.Event()

    async def append(self, record: AuditRecord) -> int:
        """Returns the record's id when it is durable. Raises Unavailable, and then it is not."""

        async def work(transaction: WriteTransaction) -> int:
            made = insert(audit).values(audit_row(record)).returning(audit.c.id)
            return int((await transaction.connection.execute(made)).scalar_one())

        number = await self._database.write(work)
        self._tell()
        return number

    async def finish(self, number: int, *, code: str, reason: str = "", items: Sequence[AuditItem] = ()) -> None:
        """Add a call's result to its record. Raises Unavailable."""

        async def work(transaction: WriteTransaction) -> None:
            values = {"code": code, "reason": reason, "subjects": _items(items)}
            await transaction.connection.execute(update(audit).where(audit.c.id == number).values(values))

        await self._database.write(work)
        self._tell()

    async def find(
        self, condition: AuditFilter, *, after: int = 0, limit: int = 500, newest: bool = False
    ) -> list[AuditRecord]:
        """At most `limit` records after the id `after`, oldest first; with `newest` the last ones of all that fit."""
        order = audit.c.id.desc() if newest else audit.c.id
        query = _narrow(select(audit), condition).where(audit.c.id > after).order_by(order)
        found: list[AuditRecord] = []
        async with self._database.read() as connection:
            # An item is looked for in text and then compared, so a page of rows may hold fewer records.
            place = 0
            while len(found) < limit:
                rows = (await connection.execute(query.offset(place).limit(limit))).all()
                found.extend(record for record in map(_record, rows) if _concerns(record, condition.item))
                place += len(rows)
                if len(rows) < limit:
                    break
        kept = found[:limit]
        return kept[::-1] if newest else kept

    async def get(self, numbers: Sequence[int]) -> list[AuditRecord]:
        """Those that exist, in order of their ids."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(audit).where(audit.c.id.in_(numbers)).order_by(audit.c.id))
            return [_record(row) for row in rows]

    async def last(self) -> int:
        """The highest id so far; 0 for none."""
        async with self._database.read() as connection:
            return int((await connection.execute(select(func.coalesce(func.max(audit.c.id), 0)))).scalar_one())

    async def wait(self, seconds: float) -> None:
        """Returns when this process wrote a record, or after `seconds`: another server may have written one."""
        moved = self._moved
        try:
            async with asyncio.timeout(seconds):
                await moved.wait()
        except TimeoutError:
            pass

    async def count_before(self, moment: datetime) -> int:
        """How many `prune` would forget."""
        query = select(func.count()).select_from(audit).where(audit.c.at < to_micros(moment))
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def prune(self, moment: datetime) -> int:
        """Forget calls that began before `moment`; returns how many."""

        async def work(transaction: WriteTransaction) -> int:
            return (await transaction.connection.execute(delete(audit).where(audit.c.at < to_micros(moment)))).rowcount

        return await self._database.write(work)

    def _tell(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


def audit_row(record: AuditRecord) -> dict[str, Any]:
    """For a write whose record is made in its own transaction."""
    return {
        "at": to_micros(record.at),
        "server": record.server,
        "actor": _text(record.actor),
        "origin": _text(record.origin),
        "call": record.call[:255],
        "request_id": record.request_id[:64],
        "code": record.code,
        "reason": record.reason[:64],
        "subjects": _items(record.items),
    }


def _items(items: Sequence[AuditItem]) -> str:
    return to_json([[_text(item.name), _text(item.about), item.code] for item in items])


def _text(text: str) -> str:
    """What a caller gave, as both databases can hold it: no NUL, no lone surrogate, bounded."""
    return text[:MAX_TEXT].replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _record(row: Row[Any]) -> AuditRecord:
    return AuditRecord(
        id=row.id,
        at=from_micros(row.at),
        server=row.server,
        actor=row.actor,
        origin=row.origin,
        call=row.call,
        request_id=row.request_id,
        code=row.code,
        reason=row.reason,
        items=tuple(AuditItem(*item) for item in json.loads(row.subjects)),
    )


def _narrow(query: Select[Any], condition: AuditFilter) -> Select[Any]:
    if condition.since is not None:
        query = query.where(audit.c.at >= to_micros(condition.since))
    if condition.actor:
        query = query.where(audit.c.actor == condition.actor)
    if condition.call:
        tail = f"/{condition.call}"
        query = query.where(or_(audit.c.call == condition.call, audit.c.call.endswith(tail, autoescape=True)))
    if condition.item:
        # As it stands in the JSON text, without the quotation marks around it.
        query = query.where(audit.c.subjects.contains(to_json(_text(condition.item))[1:-1], autoescape=True))
    return query


def _concerns(record: AuditRecord, item: str) -> bool:
    return not item or any(item in (each.name, each.about) for each in record.items)
