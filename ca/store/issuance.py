"""The issuance log: what is signed is written down first, durably, many signatures to a row and a commit.

A writer collects whatever callers have handed in meanwhile and commits it at once, on a connection and a thread of
its own: a lone record pays for one small commit, a thousand concurrent ones share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select
from sqlalchemy.exc import DBAPIError, OperationalError

from ca.errors import Unavailable
from ca.ports import Clock
from ca.runtime.one_thread import OneThread, settle
from ca.store.database import Database, WriteTransaction, unavailable
from ca.store.issuance_codec import decode, encode
from ca.store.rows import to_micros
from ca.store.tables import issuance
from ca.store.values import IssuanceRecord

RETENTION = timedelta(days=7)
"""How long a record is kept after the last certificate or token of its batch has expired."""

_MAX_BATCH = 5_000

_COLUMNS = ("recorded_at", "count", "first_not_before", "last_not_after", "authorities", "agents", "body")

_READ_BATCHES = 20

Waiting = tuple[Sequence[IssuanceRecord], asyncio.Future[None]]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A question to the log; None is any."""

    spiffe_id: str | None
    agent: str | None
    authority: str | None
    live_at: datetime | None

    def fits(self, record: IssuanceRecord) -> bool:
        return (
            self.spiffe_id in (None, record.spiffe_id)
            and self.agent in (None, record.agent)
            and self.authority in (None, record.authority_id)
            and (self.live_at is None or record.not_before <= self.live_at <= record.not_after)
        )

    def batches(self) -> Select[Any]:
        """Those that may hold such a record."""
        query = select(issuance.c.id, issuance.c.body)
        if self.agent is not None:
            query = query.where(issuance.c.agents.contains(self.agent, autoescape=True))
        if self.authority is not None:
            query = query.where(issuance.c.authorities.contains(self.authority, autoescape=True))
        if self.live_at is not None:
            at = to_micros(self.live_at)
            query = query.where(issuance.c.first_not_before <= at, issuance.c.last_not_after >= at)
        return query


class IssuanceLog:
    """The issuance records of the store; outside the change log."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._engine = database.blocking_engine()
        self._thread = OneThread("store-issuance")
        self._connection: Connection | None = None
        compiled: Any = insert(issuance).compile(dialect=self._engine.dialect, column_keys=list(_COLUMNS))
        self._statement = str(compiled)
        self._order: Sequence[str] | None = compiled.positiontup
        self._driver: Any = self._engine.dialect.loaded_dbapi
        self._waiting: list[Waiting] = []
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    async def append(self, records: Sequence[IssuanceRecord]) -> None:
        """Returns when the records are durable: only then may they be signed. Raises Unavailable when they are not.

        Records that were handed in stay handed in, though the caller be cancelled.
        """
        if self._closed:
            raise Unavailable("the store is closed", reason="STORE_UNAVAILABLE")
        if not records:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="store-issuance")
        await done

    async def find(
        self,
        *,
        spiffe_id: str | None = None,
        agent: str | None = None,
        authority: str | None = None,
        live_at: datetime | None = None,
    ) -> list[IssuanceRecord]:
        """Records that fit all that is given, oldest first; `live_at` keeps those valid at that time.

        Reads batches, not an index: meant for rotation, revocation and inquiries, not for the path of a request.
        """

        found = self.pages(spiffe_id=spiffe_id, agent=agent, authority=authority, live_at=live_at)
        return [record for page in reversed([page async for page in found]) for record in reversed(page)]

    async def pages(
        self,
        *,
        spiffe_id: str | None = None,
        agent: str | None = None,
        authority: str | None = None,
        live_at: datetime | None = None,
    ) -> AsyncIterator[list[IssuanceRecord]]:
        """The same newest first, a few batches at a time: memory stays small however much there is."""
        wanted = _Wanted(spiffe_id, agent, authority, live_at)
        below: int | None = None
        while True:
            below, records = await asyncio.to_thread(self._read, wanted, below)
            if records:
                yield records
            if below is None:
                return

    def _read(self, wanted: _Wanted, below: int | None) -> tuple[int | None, list[IssuanceRecord]]:
        """The next batches before row `below`, and where to go on; None when there are no more. In a thread."""
        query = wanted.batches().order_by(issuance.c.id.desc()).limit(_READ_BATCHES)
        if below is not None:
            query = query.where(issuance.c.id < below)
        with unavailable(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        needle = (wanted.spiffe_id or "").encode()
        found = [
            record for row in rows if needle in row.body for record in reversed(decode(row.body)) if wanted.fits(record)
        ]
        return (rows[-1].id if len(rows) == _READ_BATCHES else None), found

    async def count_old(self, now: datetime, *, retention: timedelta = RETENTION) -> int:
        """How many batches `prune` would forget."""
        query = select(func.count()).select_from(issuance).where(issuance.c.last_not_after < to_micros(now - retention))
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def prune(self, now: datetime, *, retention: timedelta = RETENTION) -> int:
        """Forget batches all of whose certificates and tokens expired more than `retention` ago; returns how many."""

        async def work(transaction: WriteTransaction) -> int:
            old = delete(issuance).where(issuance.c.last_not_after < to_micros(now - retention))
            return (await transaction.connection.execute(old)).rowcount

        return await self._database.write(work)

    async def close(self) -> None:
        """Waits for what was handed in. Idempotent; an append after it fails."""
        if self._closed:
            return
        self._closed = True
        if self._writing is not None:
            await self._writing
        await self._thread.run(self._hang_up)
        self._thread.close()
        self._engine.dispose()

    async def _write(self) -> None:
        while self._waiting:
            async with self._database.writer:
                batch = self._take()
                try:
                    with self._database.writing():
                        records = [record for handed_in, _ in batch for record in handed_in]
                        await self._thread.run(self._commit, records)
                except Exception as error:
                    _settle(batch, error)
                else:
                    _settle(batch, None)
        self._writing = None

    def _take(self) -> list[Waiting]:
        """All that is waiting, up to a row's worth (a single larger hand-in stays whole)."""
        taken, size = 0, 0
        while taken < len(self._waiting) and (not taken or size + len(self._waiting[taken][0]) <= _MAX_BATCH):
            size += len(self._waiting[taken][0])
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return batch

    def _commit(self, records: Sequence[IssuanceRecord]) -> None:
        """One statement, one transaction; on the writer's thread."""
        row = {"recorded_at": to_micros(self._clock.now()), **_summary(records), "body": encode(records)}
        try:
            self._insert(row)
        except OperationalError as error:
            if not error.connection_invalidated:
                raise
            # The server closed an idle connection. Were the row in the table after all, it would be there twice,
            # which misleads nobody.
            self._insert(row)

    def _insert(self, row: dict[str, Any]) -> None:
        try:
            if self._connection is None:
                connection = self._engine.connect()
                self._connection = connection.execution_options(isolation_level="AUTOCOMMIT", burgee_begin="")
            self._execute(self._connection, row)
        except BaseException:
            self._hang_up()  # the next batch starts on a fresh connection
            raise

    def _execute(self, connection: Connection, row: dict[str, Any]) -> None:
        """The one statement of the hot path, on the driver itself: half of the time, for a lone record."""
        driver: Any = connection.connection.driver_connection
        try:
            driver.execute(self._statement, row if self._order is None else [row[name] for name in self._order])
        except self._driver.Error as error:
            gone = connection.dialect.is_disconnect(error, driver, None)
            raise DBAPIError.instance(
                self._statement, None, error, self._driver.Error, connection_invalidated=gone
            ) from error

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _summary(records: Sequence[IssuanceRecord]) -> dict[str, Any]:
    return {
        "count": len(records),
        "first_not_before": to_micros(min(record.not_before for record in records)),
        "last_not_after": to_micros(max(record.not_after for record in records)),
        "authorities": "\n".join(sorted({record.authority_id for record in records})),
        "agents": "\n".join(sorted({record.agent for record in records})),
    }


def _settle(batch: Sequence[Waiting], error: Exception | None) -> None:
    for _, done in batch:
        settle(done, None, error)
