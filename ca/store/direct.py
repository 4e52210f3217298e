"""Small writes that are often made: on the driver itself, each a whole transaction in one visit to a thread.

By SQLAlchemy's asyncio each statement is a visit of its own, and costs more than SQLite takes for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Engine, Executable, Integer, bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError

from ca.errors import Internal
from ca.store import tables
from ca.store.values import Change, ChangeKind

T = TypeVar("T")
Values = Mapping[str, Any]

# Of every write, and so made once: most of what a small statement costs is making it.
COUNTER = select(tables.store.c.revision).where(tables.store.c.id == 1).with_for_update()
LOG = insert(tables.changes)
ADVANCE = (
    update(tables.store)
    .where(tables.store.c.id == 1)
    .values(revision=tables.store.c.revision + bindparam("by", type_=Integer))
    .returning(tables.store.c.revision)
)


class Numbered:
    """The changes of a transaction that holds the counter's row."""

    def __init__(self, revision: int) -> None:
        self.changes: list[Change] = []
        self._revision = revision

    def change(self, kind: ChangeKind, name: str, *, deleted: bool = False) -> int:
        """Note a change and return its revision."""
        self._revision += 1
        self.changes.append(Change(self._revision, kind, name, deleted, secrets.token_hex(8)))
        return self._revision

    def rows(self) -> list[dict[str, Any]]:
        """For the table of changes."""
        return [
            {"revision": c.revision, "kind": c.kind, "name": c.name, "deleted": c.deleted, "mark": c.mark}
            for c in self.changes
        ]

    def require(self, advanced: int) -> None:
        """The counter stands where the last change does."""
        if advanced != self._revision:
            raise Internal("revisions and counter disagree", reason="STORE_COUNTER")


class Prepared:
    """Statements as the driver wants them, each compiled once: for the columns that its first values name."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: dict[Any, tuple[str, Values, Sequence[str] | None]] = {}

    def of(self, statement: Any, values: Values) -> tuple[str, Any]:
        """The text, and its arguments in the driver's form."""
        known = self._known.get(statement)
        if known is None:
            compiled = statement.compile(dialect=self._dialect, column_keys=list(values))
            known = self._known[statement] = (str(compiled), compiled.params, compiled.positiontup)
        text, constants, order = known
        given = {**constants, **values}
        return text, given if order is None else [given[name] for name in order]


class DirectTransaction(Numbered):
    """A running one. Rows come as the driver has them: truth values may be numbers."""

    def __init__(self, driver: Any, prepared: Prepared) -> None:
        self._driver = driver
        self._prepared = prepared
        super().__init__(self.execute(COUNTER).fetchone()[0])

    def execute(self, statement: Executable, values: Values | None = None) -> Any:
        """The driver's cursor."""
        text, arguments = self._prepared.of(statement, values or {})
        return self._driver.execute(text, arguments)

    def number(self) -> None:
        """Advance the counter and write the change rows."""
        for row in self.rows():
            self.execute(LOG, row)
        if self.changes:
            self.require(self.execute(ADVANCE, {"by": len(self.changes)}).fetchone()[0])


class DirectWriter:
    """Its engine is `Database.blocking_engine`'s."""

    def __init__(self, engine: Engine, begin: str) -> None:
        self._engine = engine
        self._begin = begin
        self._prepared = Prepared(engine.dialect)

    def write(self, work: Callable[[DirectTransaction], T]) -> tuple[T, list[Change]]:
        """In a thread. What `work` raises undoes everything."""
        with self._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            try:
                if self._begin:
                    driver.execute(self._begin)
                transaction = DirectTransaction(driver, self._prepared)
                result = work(transaction)
                transaction.number()
                driver.commit()
            except BaseException as error:
                raise self._known(connection, driver, error) from error  # who closes it rolls back
            return result, transaction.changes

    def _known(self, connection: Connection, driver: Any, error: BaseException) -> BaseException:
        """A driver's error as SQLAlchemy's. The connection of one that is gone is not used again."""
        dialect = self._engine.dialect
        family: Any = dialect.loaded_dbapi
        if not isinstance(error, family.Error):
            return error
        gone = dialect.is_disconnect(error, driver, None)
        if gone:
            connection.invalidate(error)
        told: BaseException = DBAPIError.instance(None, None, error, family.Error, connection_invalidated=gone)
        return told
