"""Trust bundles, one per trust domain; the sequence number follows the contents."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import AlreadyExists, InvalidArgument, NotFound
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.store import paging
from ca.store.bundle_delete import delete_bundle
from ca.store.database import Database, WriteTransaction
from ca.store.rows import check_storable, from_micros, to_json, to_micros, trust_domain
from ca.store.tables import bundles
from ca.store.values import DeleteMode, Page

Change = Callable[[TrustBundle], TrustBundle]


class Bundles:
    """The bundles of the store: the server's own and those of the trust domains it federates with."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, of: TrustDomain) -> TrustBundle | None:
        async with self._database.read() as connection:
            return await read_bundle(connection, of)

    async def all(self) -> list[TrustBundle]:
        """In the order in which they were first stored."""
        async with self._database.read() as connection:
            return await read_all_bundles(connection)

    async def set(self, bundle: TrustBundle) -> TrustBundle:
        """Store a bundle and return it as stored.

        Equal contents: nothing happens. Otherwise the sequence number becomes the given one or one more than the
        stored one, whichever is higher (1 for the first).
        """
        return await self.update(bundle.trust_domain, lambda _: bundle)

    async def find(self, besides: TrustDomain, page_size: int = 0, page_token: str = "") -> Page[TrustBundle]:
        """All bundles but that of `besides`, in the order in which they were first stored; all at once when
        `page_size` ≤ 0. Raises InvalidArgument for a bad token."""
        query = select(bundles).where(bundles.c.trust_domain != besides.name)
        query = paging.limit(query, bundles.c.position, page_size, page_token)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return paging.page(rows, page_size, bundle_of)

    async def create(self, bundle: TrustBundle) -> TrustBundle:
        """Store a bundle of a trust domain that has none, its sequence number as given. Raises AlreadyExists."""

        async def work(transaction: WriteTransaction) -> TrustBundle:
            if await _row_of(transaction.connection, bundle.trust_domain) is not None:
                raise AlreadyExists("bundle already exists", reason="BUNDLE_EXISTS")
            return await _write(transaction, None, bundle)

        return await self._database.write(work)

    async def put(self, bundle: TrustBundle) -> TrustBundle:
        """Store a bundle exactly as given, also its sequence number: that of a foreign bundle is its domain's."""

        async def work(transaction: WriteTransaction) -> TrustBundle:
            row = await _row_of(transaction.connection, bundle.trust_domain)
            return await _write(transaction, row, bundle)

        return await self._database.write(work)

    async def alter(self, of: TrustDomain, change: Change) -> TrustBundle:
        """Like `put`, with what `change` makes of the stored bundle, in one transaction. Raises NotFound."""

        async def work(transaction: WriteTransaction) -> TrustBundle:
            row = await _row_of(transaction.connection, of)
            if row is None:
                raise NotFound("bundle not found", reason="BUNDLE_NOT_FOUND")
            return await _write(transaction, row, _changed(bundle_of(row), change))

        return await self._database.write(work)

    async def update(self, of: TrustDomain, change: Change) -> TrustBundle:
        """Read, change and write in one transaction; `change` gets an empty bundle where there is none.

        It must not block. Returns the bundle as stored, its sequence number as with `set`.
        """
        return await self._database.write(lambda transaction: update_bundle(transaction, of, change))

    async def delete(self, of: TrustDomain, mode: DeleteMode = DeleteMode.RESTRICT) -> bool:
        """Whether there was one. Entries that federate with it are dealt with as `mode` says, in the same transaction.

        Raises FailedPrecondition BUNDLE_IN_USE with RESTRICT.
        """
        return await self._database.write(lambda transaction: delete_bundle(transaction, of, mode))


def bundle_of(row: Row[Any]) -> TrustBundle:
    """The bundle in a row of `bundles`."""
    held = json.loads(row.authorities)
    return TrustBundle(
        trust_domain=trust_domain(row.trust_domain),
        x509_authorities=tuple(
            X509Authority(certificate=base64.b64decode(certificate), tainted=tainted)
            for certificate, tainted in held["x509"]
        ),
        jwt_authorities=tuple(
            JwtAuthority(
                key_id=key_id,
                public_key=base64.b64decode(key),
                expires_at=None if expires_at is None else from_micros(expires_at),
                tainted=tainted,
            )
            for key_id, key, expires_at, tainted in held["jwt"]
        ),
        refresh_hint_seconds=row.refresh_hint_seconds,
        sequence_number=row.sequence_number,
    )


async def read_bundle(connection: AsyncConnection, of: TrustDomain) -> TrustBundle | None:
    row = await _row_of(connection, of)
    return None if row is None else bundle_of(row)


async def read_all_bundles(connection: AsyncConnection) -> list[TrustBundle]:
    return [bundle_of(row) for row in await connection.execute(select(bundles).order_by(bundles.c.position))]


async def _row_of(connection: AsyncConnection, of: TrustDomain) -> Row[Any] | None:
    return (await connection.execute(select(bundles).where(bundles.c.trust_domain == of.name))).one_or_none()


async def update_bundle(transaction: WriteTransaction, of: TrustDomain, change: Change) -> TrustBundle:
    """`Bundles.update` as a part of a larger transaction."""
    row = await _row_of(transaction.connection, of)
    before = TrustBundle(trust_domain=of) if row is None else bundle_of(row)
    wanted = _changed(before, change)
    if row is not None and replace(wanted, sequence_number=before.sequence_number) == before:
        return before
    number = max(before.sequence_number + 1, wanted.sequence_number)
    return await _write(transaction, row, replace(wanted, sequence_number=number))


def _changed(before: TrustBundle, change: Change) -> TrustBundle:
    wanted, of = change(before), before.trust_domain
    if wanted.trust_domain != of:
        raise InvalidArgument(f"a bundle of `{wanted.trust_domain}` is none of `{of}`", reason="BUNDLE_TRUST_DOMAIN")
    return wanted


async def _write(transaction: WriteTransaction, row: Row[Any] | None, wanted: TrustBundle) -> TrustBundle:
    """Into a new row or over `row`; what does not differ is no change."""
    if row is not None and bundle_of(row) == wanted:
        return wanted
    name = wanted.trust_domain.name
    columns = {
        "sequence_number": wanted.sequence_number,
        "refresh_hint_seconds": wanted.refresh_hint_seconds,
        "authorities": _authorities_to_json(wanted),
    }
    revision = transaction.change("bundle", name)
    if row is None:
        await transaction.connection.execute(insert(bundles).values(trust_domain=name, position=revision, **columns))
    else:
        await transaction.connection.execute(update(bundles).where(bundles.c.trust_domain == name).values(**columns))
    return wanted


def _authorities_to_json(bundle: TrustBundle) -> str:
    check_storable(authority.key_id for authority in bundle.jwt_authorities)
    x509 = [[_b64(authority.certificate), authority.tainted] for authority in bundle.x509_authorities]
    jwt = [
        [
            authority.key_id,
            _b64(authority.public_key),
            None if authority.expires_at is None else to_micros(authority.expires_at),
            authority.tainted,
        ]
        for authority in bundle.jwt_authorities
    ]
    return to_json({"x509": x509, "jwt": jwt})


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
