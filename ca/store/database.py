"""Connections and transactions: one writer at a time, changes numbered in the order of their commits.

On both databases a writing transaction first takes the one counter row (SQLite: the write lock of the file), so
writers run one after another and revisions are handed out in commit order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Engine, create_engine, event, make_url, update
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ca.errors import ConfigError, Unavailable
from ca.runtime.one_thread import OneThread
from ca.store import tables
from ca.store.direct import ADVANCE, COUNTER, LOG, DirectTransaction, DirectWriter, Numbered
from ca.store.place import Place
from ca.store.sqlite_driver import connect
from ca.store.values import Change

T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
BEGIN_WRITING = "BEGIN IMMEDIATE"
_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_BLOCKING_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


class WriteTransaction(Numbered):
    """A running write. `change` numbers a change; its row is written with the others, just before the commit."""

    def __init__(self, connection: AsyncConnection, revision: int) -> None:
        super().__init__(revision)
        self.connection = connection


class Database:
    """Engine, transactions and the single-writer rule. Errors of the database itself surface as Unavailable."""

    def __init__(self, url: URL) -> None:
        self.backend = url.get_backend_name()
        self.engine = _async_engine(url)
        self._url = url
        self.writer = asyncio.Lock()
        """Held through each writing transaction of this process, the issuance log's included."""
        self.after_commit: Callable[[list[Change]], Awaitable[None]] = _nobody
        """Called with a transaction's changes while the writer lock is still held."""
        self.commit_uncertain: Callable[[], None] = lambda: None
        """Called when a transaction with changes ended in an error, perhaps after the commit."""
        self.unwritable = False
        """The last write failed for a reason of the database's own; the next one that succeeds ends it."""
        self.place = Place(Path(url.database or "") if self.backend == "sqlite" else None)
        self._running: set[asyncio.Task[Any]] = set()
        self._thread = OneThread("store-writer")
        self._direct_engine = self.blocking_engine()
        self._direct = DirectWriter(self._direct_engine, BEGIN_WRITING if self.backend == "sqlite" else "")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the database throughout, and writes nothing."""
        with unavailable():
            async with self.engine.connect() as connection:
                if self.backend == "postgresql":
                    await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                yield connection

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around every write: `unavailable`, and remembered."""
        try:
            self.place.refuse_lost()
            with unavailable():
                yield
        except Unavailable:
            self.unwritable = True
            raise
        self.unwritable = False

    async def try_write(self) -> None:
        """A write that changes nothing, and needs the lock and the room of any other."""

        async def work(transaction: WriteTransaction) -> None:
            await transaction.connection.execute(update(tables.store).values(id=tables.store.c.id))

        await self.write(work)

    async def write(self, work: Callable[[WriteTransaction], Awaitable[T]]) -> T:
        """Run `work` in one transaction and publish its changes; a cancelled caller does not stop it half-way."""
        return await self._whole(self._write(work))

    async def write_small(
        self, work: Callable[[DirectTransaction], T], *, committed: Callable[[list[Change]], None]
    ) -> T:
        """As `write`, in a thread and on the driver itself: for few statements of a kind that is often made.

        `committed` is given the changes before anybody hears of them.
        """
        return await self._whole(self._write_small(work, committed))

    async def _whole(self, writing: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(writing)
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def _write(self, work: Callable[[WriteTransaction], Awaitable[T]]) -> T:
        async with self.writer:
            transaction: WriteTransaction | None = None
            try:
                with self.writing():
                    async with self.engine.connect() as connection:
                        await connection.execution_options(burgee_begin=BEGIN_WRITING)
                        async with connection.begin():
                            transaction = WriteTransaction(connection, await _lock_counter(connection))
                            result = await work(transaction)
                            await _number(transaction)
            except BaseException:
                if transaction is not None and transaction.changes:
                    self.commit_uncertain()
                raise
            if transaction.changes:
                await self.after_commit(transaction.changes)
            return result

    async def _write_small(
        self, work: Callable[[DirectTransaction], T], committed: Callable[[list[Change]], None]
    ) -> T:
        async with self.writer:
            try:
                with self.writing():
                    written: tuple[T, list[Change]] = await self._thread.run(self._direct.write, work)
            except BaseException:
                self.commit_uncertain()
                raise
            result, changes = written
            committed(changes)
            if changes:
                await self.after_commit(changes)
            return result

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: when the caller was cancelled there is nobody else to take it

    def blocking_engine(self) -> Engine:
        """An engine of one connection for a thread of its own (the issuance log)."""
        url = self._url.set(drivername=_BLOCKING_DRIVERS[self.backend])
        engine = create_engine(
            url, pool_size=1, max_overflow=1, pool_pre_ping=self.backend == "postgresql", hide_parameters=True
        )
        if self.backend == "sqlite":
            _tune_sqlite(engine)
        return engine

    async def close(self) -> None:
        """Waits for writes that are under way."""
        if self._running:
            await asyncio.wait(set(self._running))
        self._thread.close()
        self._direct_engine.dispose()
        await self.engine.dispose()


@contextmanager
def unavailable() -> Iterator[None]:
    """The database is gone, full, locked or damaged: the caller learns that much, the log the rest."""
    try:
        yield
    except DatabaseError as error:
        if type(error) is DatabaseError:  # SQLite: malformed, or no database; its subclasses mean other things
            raise Unavailable(
                "the store is damaged", reason="STORE_CORRUPT", hint="restore it from a backup; the log has the cause"
            ) from error
        if not isinstance(error, OperationalError):
            raise
        raise _out_of_reach() from error
    except (InterfaceError, PoolTimeoutError) as error:
        raise _out_of_reach() from error


def _out_of_reach() -> Unavailable:
    return Unavailable(
        "the store cannot be reached or written now", reason="STORE_UNAVAILABLE", hint="the log has the cause"
    )


def parse_url(text: str) -> URL:
    """A store URL with the driver we use; raises ConfigError for anything but SQLite on disk and PostgreSQL."""
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(f"the store url `{text.partition(':')[0]}:…` is malformed") from error
    if backend not in _ASYNC_DRIVERS:
        raise ConfigError(
            f"the store does not speak `{backend}`", hint="use sqlite:///path or postgresql://user@host/database"
        )
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError("the store url names no file", hint="use sqlite:////var/lib/burgee/store.sqlite3")
    return url.set(drivername=_ASYNC_DRIVERS[backend])


def _async_engine(url: URL) -> AsyncEngine:
    """Its errors name no parameters: they go to the log, and an alias entry's parent holds a join token."""
    try:
        if url.get_backend_name() == "postgresql":
            return create_async_engine(url, pool_size=5, max_overflow=5, pool_pre_ping=True, hide_parameters=True)
        path = Path(url.database or "")
        # The write-ahead log and its index take over this mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        engine = create_async_engine(
            url, pool_size=4, max_overflow=4, async_creator=partial(connect, str(path)), hide_parameters=True
        )
        _tune_sqlite(engine.sync_engine)
        return engine
    except OSError as error:
        raise ConfigError(f"the store `{url.database}` cannot be opened: {error.strerror}") from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the store needs the module `{error.name}`", hint="pip install 'burgee[postgres]'"
        ) from error


def _tune_sqlite(engine: Engine) -> None:
    """WAL, durable commits, patience with other writers; transactions begin when we say so, not at the first DML."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")  # a commit that was reported survives a power cut
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        begin = connection.get_execution_options().get("burgee_begin", "BEGIN")
        if begin:
            connection.exec_driver_sql(begin)


async def _lock_counter(connection: AsyncConnection) -> int:
    """The current revision; nobody else writes until this transaction ends."""
    return int((await connection.execute(COUNTER)).scalar_one())


async def _number(transaction: WriteTransaction) -> None:
    """Advance the counter and write the change rows, in the transaction of the changes themselves."""
    if not transaction.changes:
        return
    await transaction.connection.execute(LOG, transaction.rows())
    advanced = await transaction.connection.execute(ADVANCE, {"by": len(transaction.changes)})
    transaction.require(advanced.scalar_one())


async def _nobody(_changes: list[Change]) -> None:
    return None
