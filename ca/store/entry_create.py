"""Creating entries in bulk: what exists is looked up once for the whole batch, and rows are written in bulk."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import AlreadyExists, BurgeeError, FailedPrecondition
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import TrustDomain
from ca.store.database import WriteTransaction
from ca.store.entry_rows import entry_of, entry_row, federation_rows, normal, selector_rows
from ca.store.rows import chunks, shared_selector, shared_spiffe_id
from ca.store.tables import bundles, entries, entry_federations, entry_selectors
from ca.store.values import EntryResult


async def create_entries(
    transaction: WriteTransaction, new: Sequence[RegistrationEntry], now: datetime
) -> list[EntryResult]:
    """See `Entries.create`; usable inside a larger transaction."""
    prepared = [_prepare(entry, now) for entry in new]
    batch = await _Batch.load(transaction, [p for p in prepared if not isinstance(p, BurgeeError)])
    results = [EntryResult(p, None) if isinstance(p, BurgeeError) else batch.add(*p) for p in prepared]
    await batch.write()
    return results


async def require_bundles(connection: AsyncConnection, entry: RegistrationEntry) -> None:
    """Raises FailedPrecondition when the entry federates with a trust domain whose bundle the store does not have."""
    _check_bundles(entry, await _known_bundles(connection, [entry]))


Prepared = tuple[RegistrationEntry, dict[str, Any]]


def _prepare(entry: RegistrationEntry, now: datetime) -> Prepared | BurgeeError:
    entry_id = entry.id or str(uuid.uuid4())
    entry = normal(
        entry,
        id=entry_id,
        created_at=now,
        revision_number=0,
        parent_id=shared_spiffe_id(str(entry.parent_id)),
        selectors=frozenset(shared_selector(one.type, one.value) for one in entry.selectors),
    )
    try:
        return entry, entry_row(entry)
    except BurgeeError as error:
        return error


class _Batch:
    """The entries of one call that can be stored, and what they could collide with."""

    def __init__(
        self,
        transaction: WriteTransaction,
        used_ids: set[str],
        similar: dict[bytes, RegistrationEntry],
        known_bundles: Collection[str],
    ) -> None:
        self._transaction = transaction
        self._used_ids = used_ids
        self._similar = similar
        self._known_bundles = known_bundles
        self._rows: list[dict[str, Any]] = []
        self._selectors: list[dict[str, Any]] = []
        self._federations: list[dict[str, Any]] = []

    @classmethod
    async def load(cls, transaction: WriteTransaction, prepared: Sequence[Prepared]) -> _Batch:
        in_the_way: list[Row[Any]] = []
        for some in chunks([row for _, row in prepared]):
            same_id = entries.c.id.in_([row["id"] for row in some])
            similar = entries.c.similarity.in_([row["similarity"] for row in some])
            query = select(entries).where(same_id | similar)
            in_the_way.extend((await transaction.connection.execute(query)).all())
        return cls(
            transaction,
            {row.id for row in in_the_way},
            # The oldest wins: an update may have made two entries similar.
            {row.similarity: entry_of(row) for row in sorted(in_the_way, key=_newest_first)},
            await _known_bundles(transaction.connection, [entry for entry, _ in prepared]),
        )

    def add(self, entry: RegistrationEntry, row: dict[str, Any]) -> EntryResult:
        existing = self._similar.get(row["similarity"])
        if existing is not None:
            return EntryResult(AlreadyExists("similar entry already exists", reason="ENTRY_SIMILAR"), existing)
        if entry.id in self._used_ids:
            error = AlreadyExists(f"entry id `{entry.id}` is in use by another entry", reason="ENTRY_ID_IN_USE")
            return EntryResult(error, None)
        try:
            _check_bundles(entry, self._known_bundles)
        except FailedPrecondition as refusal:
            return EntryResult(refusal, None)
        position = self._transaction.change("entry", entry.id)
        self._similar[row["similarity"]] = entry
        self._used_ids.add(entry.id)
        self._rows.append({"position": position, **row})
        self._selectors.extend(selector_rows(entry, position))
        self._federations.extend(federation_rows(entry, position))
        return EntryResult(None, entry)

    async def write(self) -> None:
        connection = self._transaction.connection
        for table, rows in (
            (entries, self._rows),
            (entry_selectors, self._selectors),
            (entry_federations, self._federations),
        ):
            if rows:
                await connection.execute(insert(table), rows)


def _newest_first(row: Row[Any]) -> int:
    return -int(row.position)


async def _known_bundles(connection: AsyncConnection, new: Iterable[RegistrationEntry]) -> set[str]:
    names = sorted({td.name for entry in new for td in entry.federates_with})
    known: set[str] = set()
    for some in chunks(names):
        query = select(bundles.c.trust_domain).where(bundles.c.trust_domain.in_(some))
        known.update((await connection.execute(query)).scalars())
    return known


def _check_bundles(entry: RegistrationEntry, known: Collection[str]) -> None:
    own: TrustDomain = entry.spiffe_id.trust_domain
    for td in entry.federates_with:
        if td != own and td.name not in known:
            raise FailedPrecondition(
                f"unable to find federated bundle `{td.id}`",
                reason="FEDERATED_BUNDLE_UNKNOWN",
                hint="store that trust domain's bundle first",
            )
