"""Registration entries, with SPIRE's rules: similar entries, per-item results, set filters, stable pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import InvalidArgument, NotFound
from ca.identity.entry import RegistrationEntry
from ca.ports import Clock
from ca.store import paging
from ca.store.database import Database, WriteTransaction
from ca.store.entry_create import create_entries, require_bundles
from ca.store.entry_rows import entry_of, entry_row, federation_rows, normal, selector_rows
from ca.store.matching import match_set
from ca.store.rows import chunks, selector_digest
from ca.store.tables import entries, entry_federations, entry_selectors
from ca.store.values import EntryFilter, EntryResult, Page
from ca.store.written import Written

_KEPT = {"revision_number", "created_at"}
_CHANGEABLE = {field.name for field in fields(RegistrationEntry)} - {"id"} - _KEPT

Check = Callable[[RegistrationEntry], None]


class Entries:
    """The entries of the store. Values are not validated here beyond what the tables need (`ca.identity.entry`)."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.created: Written[RegistrationEntry] = Written("entry")

    async def create(self, new: Sequence[RegistrationEntry]) -> list[EntryResult]:
        """Store entries in one transaction; one result each, in order.

        A given id is kept, an empty one replaced by a UUID; `created_at` and `revision_number` are set here. Results
        that are not None: AlreadyExists ENTRY_SIMILAR (with the existing entry) or ENTRY_ID_IN_USE,
        FailedPrecondition FEDERATED_BUNDLE_UNKNOWN, InvalidArgument TEXT_NUL.
        """
        if not new:
            return []
        now = self._clock.now()

        async def work(transaction: WriteTransaction) -> list[EntryResult]:
            results = await create_entries(transaction, new, now)
            self.created.add(transaction.changes, [one.entry for one in results if one.status is None and one.entry])
            return results

        return await self._database.write(work)

    async def get(self, entry_id: str) -> RegistrationEntry | None:
        return (await self.get_many([entry_id])).get(entry_id)

    async def get_many(self, entry_ids: Sequence[str]) -> dict[str, RegistrationEntry]:
        """Those that exist, by id."""
        if not entry_ids:
            return {}
        async with self._database.read() as connection:
            return await read_entries(connection, entry_ids)

    async def longest_ttls(self) -> tuple[int, int]:
        """The longest that any entry asks for, in seconds: for X.509-SVIDs and for JWT-SVIDs; 0 where none does."""
        columns = func.max(entries.c.x509_svid_ttl_seconds), func.max(entries.c.jwt_svid_ttl_seconds)
        async with self._database.read() as connection:
            x509, jwt = (await connection.execute(select(*columns))).one()
        return x509 or 0, jwt or 0

    async def find(
        self, condition: EntryFilter | None = None, page_size: int = 0, page_token: str = ""
    ) -> Page[RegistrationEntry]:
        """Entries in order of creation; all of them when `page_size` ≤ 0. Raises InvalidArgument for a bad token or
        an empty set in the filter."""
        query = _narrow(select(entries), condition or EntryFilter())
        query = paging.limit(query, entries.c.position, page_size, page_token)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return paging.page(rows, page_size, entry_of)

    async def count(self, condition: EntryFilter | None = None) -> int:
        query = _narrow(select(func.count()).select_from(entries), condition or EntryFilter())
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def all(self) -> list[RegistrationEntry]:
        async with self._database.read() as connection:
            return await read_all_entries(connection)

    async def update(
        self, entry_id: str, changes: Mapping[str, Any], *, check: Check | None = None
    ) -> RegistrationEntry:
        """Set the named fields and return the new entry, its revision number one higher even if nothing changed.

        `id`, `revision_number` and `created_at` are kept whatever is given. `check` sees the merged entry inside the
        transaction and may raise. Raises NotFound, FailedPrecondition FEDERATED_BUNDLE_UNKNOWN, InvalidArgument.
        As in SPIRE, an entry may become similar to another by an update.
        """
        unknown = set(changes) - _CHANGEABLE - _KEPT - {"id"}
        if unknown:
            raise InvalidArgument(f"no such field of an entry: `{sorted(unknown)[0]}`", reason="ENTRY_FIELD")
        wanted = {name: value for name, value in changes.items() if name in _CHANGEABLE}
        return await self._database.write(lambda transaction: _update(transaction, entry_id, wanted, check))

    async def delete(self, entry_ids: Sequence[str]) -> list[bool]:
        """For each id whether it was there to be deleted (the second mention of an id was not)."""
        if not entry_ids:
            return []
        return await self._database.write(lambda transaction: delete_entries(transaction, entry_ids))


async def read_entries(connection: AsyncConnection, entry_ids: Sequence[str]) -> dict[str, RegistrationEntry]:
    found: dict[str, RegistrationEntry] = {}
    for some in chunks(entry_ids):
        for row in await connection.execute(select(entries).where(entries.c.id.in_(some))):
            found[row.id] = entry_of(row)
    return found


async def read_all_entries(connection: AsyncConnection) -> list[RegistrationEntry]:
    """In order of creation, in portions that let others have the event loop in between."""
    result: list[RegistrationEntry] = []
    position = 0
    query = select(entries).order_by(entries.c.position).limit(2000)
    while rows := (await connection.execute(query.where(entries.c.position > position))).all():
        result.extend(entry_of(row) for row in rows)
        position = rows[-1].position
    return result


async def delete_entries(transaction: WriteTransaction, entry_ids: Sequence[str]) -> list[bool]:
    positions: dict[str, int] = {}
    for some in chunks(entry_ids):
        query = select(entries.c.id, entries.c.position).where(entries.c.id.in_(some))
        positions.update({row.id: row.position for row in await transaction.connection.execute(query)})
    for gone in chunks(list(positions.values())):
        for table in (entry_selectors, entry_federations, entries):
            await transaction.connection.execute(delete(table).where(table.c.position.in_(gone)))
    outcome = []
    for entry_id in entry_ids:
        outcome.append(positions.pop(entry_id, None) is not None)
        if outcome[-1]:
            transaction.change("entry", entry_id, deleted=True)
    return outcome


async def _update(
    transaction: WriteTransaction, entry_id: str, wanted: dict[str, Any], check: Check | None
) -> RegistrationEntry:
    connection = transaction.connection
    row = (await connection.execute(select(entries).where(entries.c.id == entry_id))).one_or_none()
    if row is None:
        raise NotFound("entry not found", reason="ENTRY_NOT_FOUND")
    before = entry_of(row)
    after = normal(replace(before, **wanted, revision_number=before.revision_number + 1))
    if check is not None:
        check(after)
    if after.federates_with != before.federates_with:
        await require_bundles(connection, after)
    await connection.execute(update(entries).where(entries.c.position == row.position).values(entry_row(after)))
    if after.selectors != before.selectors:
        await connection.execute(delete(entry_selectors).where(entry_selectors.c.position == row.position))
        await _insert(connection, entry_selectors, selector_rows(after, row.position))
    if after.federates_with != before.federates_with:
        await connection.execute(delete(entry_federations).where(entry_federations.c.position == row.position))
        await _insert(connection, entry_federations, federation_rows(after, row.position))
    transaction.change("entry", entry_id)
    return after


async def _insert(connection: AsyncConnection, table: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        await connection.execute(insert(table), rows)


def _narrow(query: Select[Any], condition: EntryFilter) -> Select[Any]:
    if condition.by_spiffe_id is not None:
        query = query.where(entries.c.spiffe_id == str(condition.by_spiffe_id))
    if condition.by_parent_id is not None:
        query = query.where(entries.c.parent_id == str(condition.by_parent_id))
    if condition.by_hint:
        query = query.where(entries.c.hint == condition.by_hint)
    if condition.by_downstream:
        query = query.where(entries.c.downstream)
    if condition.by_selectors is not None:
        query = match_set(
            query,
            owner=entries,
            owner_count=entries.c.selector_count,
            members=entry_selectors,
            member=entry_selectors.c.digest,
            wanted=map(selector_digest, condition.by_selectors.selectors),
            match=condition.by_selectors.match,
        )
    if condition.by_federates_with is not None:
        query = match_set(
            query,
            owner=entries,
            owner_count=entries.c.federates_with_count,
            members=entry_federations,
            member=entry_federations.c.trust_domain,
            wanted=(td.name for td in condition.by_federates_with.trust_domains),
            match=condition.by_federates_with.match,
        )
    return query
