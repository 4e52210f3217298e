"""The revisions of the book of policies: shown, undone to any that is kept, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import NotFound
from ca.runtime.threads import to_thread
from ca.store.database import Database, WriteTransaction
from ca.store.policy_rows import after_of, before_of, changed_of, key_of, revision_of
from ca.store.policy_tables import policy_history, policy_revisions
from policy.book_values import Key, Revision, Stored


class PolicyRevisions:
    """What was, as far as it is kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, before: int | None, limit: int) -> list[Revision]:
        """The newest first, from the one before `before` on; without what they changed."""
        query = select(policy_revisions).order_by(policy_revisions.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(policy_revisions.c.number < before)
        async with self._database.read() as connection:
            return [revision_of(row) for row in await connection.execute(query)]

    async def get(self, number: int) -> Revision:
        """With all that it changed. Raises NotFound POLICY_REVISION_NOT_FOUND."""
        async with self._database.read() as connection:
            query = select(policy_revisions).where(policy_revisions.c.number == number)
            found = (await connection.execute(query)).one_or_none()
            if found is None:
                raise _unknown(number)
            rows = await _history(connection, number)
        return revision_of(found, tuple(await to_thread(lambda: [changed_of(row) for row in rows])))

    async def made(self, number: int) -> tuple[Stored, ...]:
        """The objects that a revision wrote, as it wrote them. Raises NotFound."""
        async with self._database.read() as connection:
            rows = await _history(connection, number)
        if not rows:
            raise _unknown(number)
        return tuple(stored for row in rows if (stored := after_of(row)) is not None)

    async def undo(self, number: int) -> tuple[int, dict[Key, Stored | None]]:
        """The last revision, and what is to become of which objects so that all is again as it was after `number`; 0
        is before the first. Raises NotFound where what came after it is not kept."""
        async with self._database.read() as connection:
            ends = select(func.min(policy_revisions.c.number), func.max(policy_revisions.c.number))
            oldest, last = (await connection.execute(ends)).one()
            if not (oldest or 1) - 1 <= number <= (last or 0):
                raise _unknown(number)
            later = select(policy_history).where(policy_history.c.number > number).order_by(policy_history.c.number)
            rows: Sequence[Row[Any]] = (await connection.execute(later)).all()

        def first_of_each() -> dict[Key, Stored | None]:
            found: dict[Key, Stored | None] = {}
            for row in rows:
                key = key_of(row)
                if key not in found:
                    found[key] = before_of(row)
            return found

        return int(last or 0), await to_thread(first_of_each)

    async def count_beyond(self, keep: int) -> int:
        """How many `prune` would forget."""
        async with self._database.read() as connection:
            query = select(func.count()).where(policy_revisions.c.number <= await _last(connection) - keep)
            return int((await connection.execute(query)).scalar_one())

    async def prune(self, keep: int) -> int:
        """Forget all but the last `keep`, of which there is at least one; returns how many went."""

        async def work(transaction: WriteTransaction) -> int:
            execute = transaction.connection.execute
            over = await _last(transaction.connection) - max(keep, 1)
            await execute(delete(policy_history).where(policy_history.c.number <= over))
            return (await execute(delete(policy_revisions).where(policy_revisions.c.number <= over))).rowcount

        return await self._database.write(work)


async def _last(connection: AsyncConnection) -> int:
    query = select(func.coalesce(func.max(policy_revisions.c.number), 0))
    return int((await connection.execute(query)).scalar_one())


async def _history(connection: AsyncConnection, number: int) -> Sequence[Row[Any]]:
    key = (policy_history.c.kind, policy_history.c.namespace, policy_history.c.name)
    return (
        await connection.execute(select(policy_history).where(policy_history.c.number == number).order_by(*key))
    ).all()


def _unknown(number: int) -> NotFound:
    return NotFound(
        f"there is no revision {number}, or none that is kept",
        reason="POLICY_REVISION_NOT_FOUND",
        hint="`caadmin policy revisions list` shows those that are; `prune.policy_revisions_kept` says how many",
    )
