"""The issuance log read onwards: what was recorded since the last look, batch by batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from ca.store.database import Database
from ca.store.issuance_codec import decode
from ca.store.rows import chunks, from_micros, to_micros
from ca.store.tables import issuance
from ca.store.values import IssuanceRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuanceBatch:
    """What the log says of a batch without opening it. `id` grows with each batch, but two servers may have theirs
    committed in another order."""

    id: int
    recorded_at: datetime
    count: int
    last_not_after: datetime
    authorities: tuple[str, ...]


class IssuanceTail:
    """Reads and changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def batches(self, *, after: int, live_at: datetime, limit: int) -> list[IssuanceBatch]:
        """Batches with a greater id than `after` in which something may be valid at that time or later, in order, and
        `limit` at most."""
        columns = (
            issuance.c.id,
            issuance.c.recorded_at,
            issuance.c.count,
            issuance.c.last_not_after,
            issuance.c.authorities,
        )
        query = select(*columns).where(issuance.c.id > after, issuance.c.last_not_after >= to_micros(live_at))
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(issuance.c.id).limit(limit))).all()
        return [
            IssuanceBatch(
                id=row.id,
                recorded_at=from_micros(row.recorded_at),
                count=int(row[2]),
                last_not_after=from_micros(row.last_not_after),
                authorities=tuple(row.authorities.split("\n")),
            )
            for row in rows
        ]

    async def records(self, ids: Sequence[int]) -> list[tuple[int, list[IssuanceRecord]]]:
        """What is in these batches, as (id, records), in order of ids; those that are gone are left out."""
        found: list[tuple[int, list[IssuanceRecord]]] = []
        async with self._database.read() as connection:
            for some in chunks(ids):
                query = select(issuance.c.id, issuance.c.body).where(issuance.c.id.in_(some)).order_by(issuance.c.id)
                found += await asyncio.to_thread(_opened, (await connection.execute(query)).all())
        return found


def _opened(rows: Sequence[Any]) -> list[tuple[int, list[IssuanceRecord]]]:
    return [(row.id, decode(row.body)) for row in rows]
