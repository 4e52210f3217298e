"""Deleting a trust bundle, and what becomes of the entries that federate with its trust domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Row, delete, select, update

from ca.errors import FailedPrecondition
from ca.identity.spiffe_id import TrustDomain
from ca.store.database import WriteTransaction
from ca.store.entry_rows import entry_of, entry_row, normal
from ca.store.rows import chunks
from ca.store.tables import bundles, entries, entry_federations, entry_selectors
from ca.store.values import DeleteMode


async def delete_bundle(transaction: WriteTransaction, of: TrustDomain, mode: DeleteMode) -> bool:
    """See `Bundles.delete`."""
    connection = transaction.connection
    known = await connection.execute(select(bundles.c.trust_domain).where(bundles.c.trust_domain == of.name))
    if known.first() is None:
        return False
    users = await _users(transaction, of)
    if users and mode is DeleteMode.RESTRICT:
        raise FailedPrecondition(
            f"cannot delete bundle; federated with {len(users)} registration entries", reason="BUNDLE_IN_USE"
        )
    if mode is DeleteMode.DELETE:
        await _delete_entries(transaction, users)
    else:
        await _dissociate(transaction, users, of)
    await connection.execute(delete(bundles).where(bundles.c.trust_domain == of.name))
    transaction.change("bundle", of.name, deleted=True)
    return True


async def _users(transaction: WriteTransaction, of: TrustDomain) -> list[Row[Any]]:
    using = select(entry_federations.c.position).where(entry_federations.c.trust_domain == of.name)
    query = select(entries).where(entries.c.position.in_(using)).order_by(entries.c.position)
    return list((await transaction.connection.execute(query)).all())


async def _delete_entries(transaction: WriteTransaction, users: list[Row[Any]]) -> None:
    for some in chunks([row.position for row in users]):
        for table in (entry_selectors, entry_federations, entries):
            await transaction.connection.execute(delete(table).where(table.c.position.in_(some)))
    for row in users:
        transaction.change("entry", row.id, deleted=True)


async def _dissociate(transaction: WriteTransaction, users: list[Row[Any]], of: TrustDomain) -> None:
    """The revision number grows with it, or agents that compare those would go on with the old entry."""
    connection = transaction.connection
    for row in users:
        before = entry_of(row)
        kept = tuple(domain for domain in before.federates_with if domain != of)
        after = normal(replace(before, federates_with=kept, revision_number=before.revision_number + 1))
        await connection.execute(update(entries).where(entries.c.position == row.position).values(entry_row(after)))
        transaction.change("entry", row.id)
    await connection.execute(delete(entry_federations).where(entry_federations.c.trust_domain == of.name))
