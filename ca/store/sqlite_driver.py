"""aiosqlite with one thread hop per statement instead of four: a hop costs more than most statements do.

Opening and closing a cursor, handing out fetched rows, and the begin and end of a transaction that only reads touch no
disk, so they happen where they are asked for. Executing, with fetching, and committing have the connection's thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import aiosqlite

READ = "BEGIN"
"""Takes no lock before the first statement, and none that writes."""


async def connect(path: str) -> aiosqlite.Connection:
    """A connection for SQLAlchemy's aiosqlite dialect (its `async_creator`)."""
    # Used by two threads, never by both at once: the dialect awaits each call before it makes the next.
    connection = _Connection(lambda: sqlite3.connect(path, check_same_thread=False), iter_chunk_size=64)
    connection._thread.daemon = True  # as the dialect does for connections of its own making
    return await connection


class _Cursor:
    """What the dialect uses of a cursor, results read to the end in the call that executes."""

    def __init__(self, connection: _Connection, cursor: sqlite3.Cursor) -> None:
        self._connection = connection
        self._cursor = cursor
        self._rows: list[Any] = []
        self.arraysize = 1

    async def __aenter__(self) -> _Cursor:
        return self

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> _Cursor:
        if sql == READ and not self._connection.busy:
            self._cursor.execute(sql)
            self._connection.reading = True
            return self
        self._rows = await self._connection.on_thread(self._run, sql, parameters)
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> _Cursor:
        await self._connection.on_thread(self._cursor.executemany, sql, parameters)
        return self

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        self._cursor.close()

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    def _run(self, sql: str, parameters: Any) -> list[Any]:
        self._cursor.execute(sql, parameters)
        return self._cursor.fetchall() if self._cursor.description else []


class _Connection(aiosqlite.Connection):
    busy = False
    """The thread may be at work for this connection: a caller that was cancelled leaves it so."""
    reading = False
    """In a transaction that began without a lock, and writes nothing."""

    def cursor(self) -> Any:
        """Entered by the dialect at once, like aiosqlite's own."""
        return _Cursor(self, self._conn.cursor())

    async def on_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Run a call on the connection's thread, after those already waiting for it."""
        self.busy = True
        done = await self._execute(call, *arguments)  # type: ignore[no-untyped-call]  # aiosqlite left it untyped
        self.busy = False
        return done

    async def rollback(self) -> None:
        at_once = self.reading and not self.busy
        self.reading = False
        if at_once:
            self._conn.rollback()
        else:
            await self.on_thread(self._conn.rollback)
