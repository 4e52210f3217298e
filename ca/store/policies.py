"""The book of policies in the store: one write, one transaction, one revision.

Whoever writes says which revision the write was made for: was there another one meanwhile, nothing is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import AlreadyExists, FailedPrecondition
from ca.runtime.threads import to_thread
from ca.store.audit import AuditRecord, audit_row
from ca.store.database import Database, WriteTransaction
from ca.store.policy_rows import grant_of, grant_row, history_row, key_columns, object_row, stored_of
from ca.store.policy_tables import (
    policies,
    policy_answers,
    policy_documents,
    policy_grants,
    policy_history,
    policy_revisions,
)
from ca.store.rows import chunks, from_micros, to_micros
from ca.store.tables import audit
from policy.book_values import Changed, Grant, Key, Revision, Stored

INVARIANTS = "invariants"
"""The kind of the one document that says what must never be allowed."""
KEY_SET = "jwks"
ANSWER = "answer"
ANSWERED = "POLICY_ANSWERED"


class Moved(FailedPrecondition):
    """Somebody else wrote since the revision that the write was made for."""

    reason = "POLICY_CHANGED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """All that holds, as of one revision; 0 for a book in which nothing was ever written."""

    number: int
    objects: Mapping[Key, Stored]
    grants: Mapping[str, Grant]
    invariants: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a write does to one object: `before` becomes `after`."""

    before: Stored | None
    after: Stored | None

    @property
    def key(self) -> Key:
        one = self.after or self.before
        assert one is not None
        return one.key

    @property
    def changed(self) -> Changed:
        return Changed(
            key=self.key,
            before=None if self.before is None else self.before.body,
            after=None if self.after is None else self.after.body,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A write that may be sent again. `digest` is of the caller and its key, `number` of the revision that was made;
    None where there is none. `told` is what else is needed to answer again."""

    digest: bytes
    request_sha256: bytes
    until: datetime
    number: int | None = None
    told: str = ""


class Policies:
    """Objects, revisions, grants, answers and documents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> Book:
        """All of it, read in one transaction."""
        async with self._database.read() as connection:
            number = await _last(connection)
            rows = (await connection.execute(select(policies))).all()
            grants = [grant_of(row) for row in await connection.execute(select(policy_grants))]
            invariants = await _document(connection, INVARIANTS, "")
        objects = await to_thread(lambda: sorted(map(stored_of, rows), key=lambda stored: stored.key))
        return Book(
            number=number,
            objects={stored.key: stored for stored in objects},
            grants={grant.name: grant for grant in grants},
            invariants=invariants,
        )

    async def rules(self) -> tuple[dict[str, Grant], str]:
        """What holds of the book itself: grants, and the invariants."""
        async with self._database.read() as connection:
            grants = [grant_of(row) for row in await connection.execute(select(policy_grants))]
            return {grant.name: grant for grant in grants}, await _document(connection, INVARIANTS, "")

    async def write(
        self,
        steps: Sequence[Step],
        revision: Revision,
        *,
        invariants: str,
        record: AuditRecord,
        answer: Answer | None = None,
    ) -> None:
        """All or nothing. Raises Moved unless `revision` follows the last one and the invariants are still these, and
        AlreadyExists where the same key was answered meanwhile."""
        rows = await to_thread(lambda: _rows(steps, revision.number))

        async def work(transaction: WriteTransaction) -> None:
            connection = transaction.connection
            await _require(connection, revision.number - 1, invariants)
            if answer is not None:
                await _remember(connection, answer, revision.at)
            await _apply(connection, rows)
            made = {"number": revision.number, "at": to_micros(revision.at), "count": len(steps)}
            await connection.execute(insert(policy_revisions).values(actor=revision.actor, note=revision.note, **made))
            await connection.execute(insert(audit).values(audit_row(record)))
            transaction.change("policy", str(revision.number))

        await self._database.write(work)

    async def remember(self, answer: Answer, now: datetime) -> None:
        """What a write was answered that changed nothing. Raises AlreadyExists."""

        async def work(transaction: WriteTransaction) -> None:
            await _remember(transaction.connection, answer, now)

        await self._database.write(work)

    async def answered(self, digest: bytes, now: datetime) -> Answer | None:
        """What the caller was answered for the same key, unless that is long ago."""
        query = select(policy_answers).where(policy_answers.c.digest == digest)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            if row is None or row.until <= to_micros(now):
                return None
            told = await _document(connection, ANSWER, digest.hex())
        until = from_micros(row.until)
        return Answer(digest=digest, request_sha256=row.request_sha256, until=until, number=row.number, told=told)

    async def put_grant(
        self, grant: Grant, *, before: Grant | None, record: AuditRecord, answer: Answer | None = None
    ) -> None:
        """Raises Moved unless the grant of that name is still `before`, and AlreadyExists where the same key was
        answered meanwhile."""
        await self._grant(grant.name, before, grant, record, answer)

    async def delete_grant(self, before: Grant, *, record: AuditRecord, answer: Answer | None = None) -> None:
        """Raises Moved unless it is still so, and AlreadyExists as `put_grant`."""
        await self._grant(before.name, before, None, record, answer)

    async def put_invariants(
        self,
        text: str,
        *,
        before: str,
        number: int,
        at: datetime,
        record: AuditRecord,
        answer: Answer | None = None,
    ) -> None:
        """Raises Moved unless they are still `before`, and the last revision is still `number`; AlreadyExists as
        `put_grant`."""

        async def work(transaction: WriteTransaction) -> None:
            if answer is not None:
                await _remember(transaction.connection, answer, at)
            await _require(transaction.connection, number, before)
            await _put_document(transaction.connection, INVARIANTS, "", text, at)
            await transaction.connection.execute(insert(audit).values(audit_row(record)))
            transaction.change("policy", INVARIANTS)

        await self._database.write(work)

    async def key_sets(self) -> dict[str, str]:
        """Those that were fetched last, by their addresses."""
        query = select(policy_documents).where(policy_documents.c.kind == KEY_SET)
        async with self._database.read() as connection:
            return {row.name: row.body for row in await connection.execute(query)}

    async def put_key_set(self, address: str, text: str, at: datetime) -> None:
        """Outside of the change log: each server fetches its own."""

        async def work(transaction: WriteTransaction) -> None:
            await _put_document(transaction.connection, KEY_SET, address, text, at)

        await self._database.write(work)

    async def delete_key_set(self, address: str) -> None:
        async def work(transaction: WriteTransaction) -> None:
            await transaction.connection.execute(_this_document(KEY_SET, address))

        await self._database.write(work)

    async def _grant(
        self, name: str, before: Grant | None, after: Grant | None, record: AuditRecord, answer: Answer | None
    ) -> None:
        async def work(transaction: WriteTransaction) -> None:
            execute = transaction.connection.execute
            if answer is not None:
                await _remember(transaction.connection, answer, record.at)
            row = (await execute(select(policy_grants).where(policy_grants.c.name == name))).one_or_none()
            if (None if row is None else grant_of(row)) != before:
                raise Moved("the grant was changed meanwhile")
            await execute(delete(policy_grants).where(policy_grants.c.name == name))
            if after is not None:
                await execute(insert(policy_grants).values(grant_row(after)))
            await execute(insert(audit).values(audit_row(record)))
            transaction.change("policy", "grants")

        await self._database.write(work)


@dataclass(frozen=True, slots=True)
class _Rows:
    gone: list[dict[str, Any]]
    new: list[dict[str, Any]]
    history: list[dict[str, Any]]


def _rows(steps: Sequence[Step], number: int) -> _Rows:
    return _Rows(
        [{f"old_{name}": value for name, value in key_columns(step.key).items()} for step in steps if step.before],
        [object_row(step.after) for step in steps if step.after is not None],
        [history_row(number, step.before, step.after) for step in steps],
    )


_THIS = delete(policies).where(
    policies.c.kind == bindparam("old_kind"),
    policies.c.namespace == bindparam("old_namespace"),
    policies.c.name == bindparam("old_name"),
)


async def _apply(connection: AsyncConnection, rows: _Rows) -> None:
    for some in chunks(rows.gone):
        await connection.execute(_THIS, some)
    for some in chunks(rows.new):
        await connection.execute(insert(policies), some)
    for some in chunks(rows.history):
        await connection.execute(insert(policy_history), some)


async def _last(connection: AsyncConnection) -> int:
    query = select(func.coalesce(func.max(policy_revisions.c.number), 0))
    return int((await connection.execute(query)).scalar_one())


async def _require(connection: AsyncConnection, number: int, invariants: str) -> None:
    if await _last(connection) != number or await _document(connection, INVARIANTS, "") != invariants:
        raise Moved("policies were changed meanwhile")


async def _remember(connection: AsyncConnection, answer: Answer, now: datetime) -> None:
    past = to_micros(now)
    await connection.execute(delete(policy_answers).where(policy_answers.c.until <= past))
    old = (policy_documents.c.kind == ANSWER) & (policy_documents.c.at <= past)
    await connection.execute(delete(policy_documents).where(old))
    known = select(policy_answers.c.digest).where(policy_answers.c.digest == answer.digest)
    if (await connection.execute(known)).one_or_none() is not None:
        raise AlreadyExists("this write was answered meanwhile", reason="POLICY_ANSWERED")
    values = {"digest": answer.digest, "request_sha256": answer.request_sha256, "number": answer.number}
    await connection.execute(insert(policy_answers).values(until=to_micros(answer.until), **values))
    if answer.told:  # kept as long as the answer
        await _put_document(connection, ANSWER, answer.digest.hex(), answer.told, answer.until)


async def _document(connection: AsyncConnection, kind: str, name: str) -> str:
    query = select(policy_documents.c.body).where(
        policy_documents.c.kind == kind, policy_documents.c.name_sha256 == _digest(name)
    )
    return (await connection.execute(query)).scalar_one_or_none() or ""


async def _put_document(connection: AsyncConnection, kind: str, name: str, body: str, at: datetime) -> None:
    await connection.execute(_this_document(kind, name))
    values = {"kind": kind, "name_sha256": _digest(name), "name": name, "body": body, "at": to_micros(at)}
    await connection.execute(insert(policy_documents).values(values))


def _this_document(kind: str, name: str) -> Any:
    return delete(policy_documents).where(
        policy_documents.c.kind == kind, policy_documents.c.name_sha256 == _digest(name)
    )


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
