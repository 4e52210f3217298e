"""The signing authorities of each server: what the rotation's state machine remembers between two starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Row, delete, insert, select

from ca.ports import KeyType
from ca.store.database import Database, WriteTransaction
from ca.store.rows import from_micros, to_micros
from ca.store.tables import authorities
from ca.store.values import AuthorityRecord

Kind = Literal["x509", "jwt"]


class Authorities:
    """The authorities of the store; outside the change log (their public halves are in the bundle)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, server: str | None = None, kind: Kind | None = None) -> Sequence[AuthorityRecord]:
        """By the time they become valid, oldest first; of all servers and kinds where none is named."""
        query = select(authorities).order_by(authorities.c.not_before, authorities.c.authority_id)
        if server is not None:
            query = query.where(authorities.c.server == server)
        if kind is not None:
            query = query.where(authorities.c.kind == kind)
        async with self._database.read() as connection:
            return [_record(row) for row in await connection.execute(query)]

    async def put(self, authority: AuthorityRecord) -> None:
        """Add, or replace the one of that server and authority id."""

        async def work(transaction: WriteTransaction) -> None:
            await transaction.connection.execute(_row_of(authority.server, authority.authority_id))
            await transaction.connection.execute(insert(authorities).values(**_columns(authority)))

        await self._database.write(work)

    async def replace(self, server: str, kind: Kind, new: Sequence[AuthorityRecord]) -> None:
        """Make `new` all that this server has of this kind, in one transaction."""

        async def work(transaction: WriteTransaction) -> None:
            mine = authorities.c.server == server, authorities.c.kind == kind
            await transaction.connection.execute(delete(authorities).where(*mine))
            if new:
                await transaction.connection.execute(insert(authorities), [_columns(each) for each in new])

        if any((each.server, each.kind) != (server, kind) for each in new):
            raise ValueError("an authority of another server or kind")
        await self._database.write(work)

    async def delete(self, authority_id: str, *, server: str | None = None) -> bool:
        """Whether there was one; of every server, unless one is named."""

        async def work(transaction: WriteTransaction) -> bool:
            return (await transaction.connection.execute(_row_of(server, authority_id))).rowcount > 0

        return await self._database.write(work)


def _row_of(server: str | None, authority_id: str) -> Any:
    query = delete(authorities).where(authorities.c.authority_id == authority_id)
    return query if server is None else query.where(authorities.c.server == server)


def _columns(authority: AuthorityRecord) -> dict[str, Any]:
    return {
        "server": authority.server,
        "authority_id": authority.authority_id,
        "kind": authority.kind,
        "key_id": authority.key_id,
        "key_type": authority.key_type.value,
        "status": authority.status,
        "not_before": to_micros(authority.not_before),
        "not_after": to_micros(authority.not_after),
        "tainted": authority.tainted,
        "material": authority.material,
    }


def _record(row: Row[Any]) -> AuthorityRecord:
    return AuthorityRecord(
        server=row.server,
        kind=row.kind,
        authority_id=row.authority_id,
        key_id=row.key_id,
        key_type=KeyType(row.key_type),
        status=row.status,
        not_before=from_micros(row.not_before),
        not_after=from_micros(row.not_after),
        material=bytes(row.material),
        tainted=row.tainted,
    )
