"""The journal of authorities: what every server's rotation has done, so that a later start, or another server, goes on
from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import TrustDomain
from ca.store import authority_rows as rows
from ca.store.bundles import read_bundle, update_bundle
from ca.store.database import Database, WriteTransaction
from ca.store.tables import authorities, authority_keys, upstream_authorities
from ca.store.values import AuthorityKindName, AuthorityRecord, JournalRecords

Decision = Callable[[JournalRecords, TrustBundle], tuple[JournalRecords, TrustBundle]]


class Authorities:
    """Rows outside the change log; what agents need to know of them is in the bundle, which is in it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, server: str | None = None, kind: AuthorityKindName | None = None) -> Sequence[AuthorityRecord]:
        """By the time they become valid, oldest first; of all servers and kinds where none is named."""
        async with self._database.read() as connection:
            found = await _authorities(connection)
        return [each for each in found if server in (None, each.server) and kind in (None, each.kind)]

    async def put(self, authority: AuthorityRecord) -> None:
        """Add, or replace the one of that server and authority id."""

        async def work(transaction: WriteTransaction) -> None:
            await _write(transaction, authorities, [], [rows.authority_columns(authority)], rows.AUTHORITY_KEY)

        await self._database.write(work)

    async def read(self) -> JournalRecords:
        """Everything, as of one moment."""
        async with self._database.read() as connection:
            return await _journal(connection)

    async def alter(self, trust_domain: TrustDomain, decide: Decision) -> JournalRecords:
        """Read all rows and the bundle, let `decide` say what they become, and write both: one transaction.

        No other writer comes in between, so that what `decide` looks at is what it changes. It must not block; what
        it raises is raised here, and then nothing has changed. Returns the rows as stored.
        """

        async def work(transaction: WriteTransaction) -> JournalRecords:
            before = await _journal(transaction.connection)
            bundle = await read_bundle(transaction.connection, trust_domain) or TrustBundle(trust_domain=trust_domain)
            after, wanted = decide(before, bundle)
            if wanted != bundle:
                await update_bundle(transaction, trust_domain, lambda _: wanted)
            await _write_journal(transaction, before, after)
            return after

        return await self._database.write(work)


async def _journal(connection: AsyncConnection) -> JournalRecords:
    order = upstream_authorities.c.server, upstream_authorities.c.position, upstream_authorities.c.authority_id
    keys = select(authority_keys).order_by(authority_keys.c.since, authority_keys.c.key_id)
    return JournalRecords(
        authorities=await _authorities(connection),
        upstream=tuple(
            rows.upstream_record(row) for row in await connection.execute(select(upstream_authorities).order_by(*order))
        ),
        keys=tuple(rows.key_record(row) for row in await connection.execute(keys)),
    )


async def _authorities(connection: AsyncConnection) -> tuple[AuthorityRecord, ...]:
    query = select(authorities).order_by(authorities.c.not_before, authorities.c.authority_id)
    return tuple(rows.authority_record(row) for row in await connection.execute(query))


async def _write_journal(transaction: WriteTransaction, before: JournalRecords, after: JournalRecords) -> None:
    """Only the rows that differ."""
    for table, key, old, new in (
        (authorities, rows.AUTHORITY_KEY, *_columns(rows.authority_columns, before.authorities, after.authorities)),
        (authority_keys, rows.KEY_KEY, *_columns(rows.key_columns, before.keys, after.keys)),
    ):
        await _write(transaction, table, old, new, key)
    await _write(
        transaction,
        upstream_authorities,
        rows.upstream_columns(before.upstream),
        rows.upstream_columns(after.upstream),
        rows.UPSTREAM_KEY,
    )


def _columns(
    to_columns: Callable[[Any], dict[str, Any]], before: Sequence[Any], after: Sequence[Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [to_columns(each) for each in before], [to_columns(each) for each in after]


async def _write(
    transaction: WriteTransaction,
    table: Table,
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    key: tuple[str, ...],
) -> None:
    stale = [row for row in before if row not in after]
    fresh = [row for row in after if row not in before]
    for row in (*stale, *fresh):
        await transaction.connection.execute(delete(table).where(_is(table, row, key)))
    if fresh:
        await transaction.connection.execute(insert(table), fresh)


def _is(table: Table, row: dict[str, Any], key: tuple[str, ...]) -> ColumnElement[bool]:
    return and_(*(table.c[name] == row[name] for name in key))
