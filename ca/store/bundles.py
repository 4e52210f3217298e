"""Trust bundles, one per trust domain; the sequence number follows the contents."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import FailedPrecondition, InvalidArgument
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.store.database import Database, WriteTransaction
from ca.store.rows import check_storable, from_micros, to_json, to_micros, trust_domain
from ca.store.tables import bundles, entry_federations


class Bundles:
    """The bundles of the store: the server's own and those of the trust domains it federates with."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, of: TrustDomain) -> TrustBundle | None:
        async with self._database.read() as connection:
            row = await _row_of(connection, of)
        return None if row is None else bundle_of(row)

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

    async def update(self, of: TrustDomain, change: Callable[[TrustBundle], TrustBundle]) -> TrustBundle:
        """Read, change and write in one transaction; `change` gets an empty bundle where there is none.

        It must not block. Returns the bundle as stored, its sequence number as with `set`.
        """
        return await self._database.write(lambda transaction: _update(transaction, of, change))

    async def delete(self, of: TrustDomain) -> bool:
        """Whether there was one. Raises FailedPrecondition BUNDLE_IN_USE while entries federate with it."""
        return await self._database.write(lambda transaction: _delete(transaction, of))


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


async def read_all_bundles(connection: AsyncConnection) -> list[TrustBundle]:
    return [bundle_of(row) for row in await connection.execute(select(bundles).order_by(bundles.c.position))]


async def _row_of(connection: AsyncConnection, of: TrustDomain) -> Row[Any] | None:
    return (await connection.execute(select(bundles).where(bundles.c.trust_domain == of.name))).one_or_none()


async def _update(
    transaction: WriteTransaction, of: TrustDomain, change: Callable[[TrustBundle], TrustBundle]
) -> TrustBundle:
    row = await _row_of(transaction.connection, of)
    before = TrustBundle(trust_domain=of) if row is None else bundle_of(row)
    wanted = change(before)
    if wanted.trust_domain != of:
        raise InvalidArgument(f"a bundle of `{wanted.trust_domain}` is none of `{of}`", reason="BUNDLE_TRUST_DOMAIN")
    if row is not None and replace(wanted, sequence_number=before.sequence_number) == before:
        return before
    after = replace(wanted, sequence_number=max(before.sequence_number + 1, wanted.sequence_number))
    revision = transaction.change("bundle", of.name)
    columns = {
        "sequence_number": after.sequence_number,
        "refresh_hint_seconds": after.refresh_hint_seconds,
        "authorities": _authorities_to_json(after),
    }
    if row is None:
        await transaction.connection.execute(insert(bundles).values(trust_domain=of.name, position=revision, **columns))
    else:
        await transaction.connection.execute(update(bundles).where(bundles.c.trust_domain == of.name).values(**columns))
    return after


async def _delete(transaction: WriteTransaction, of: TrustDomain) -> bool:
    connection = transaction.connection
    query = select(func.count()).select_from(entry_federations)
    users = (await connection.execute(query.where(entry_federations.c.trust_domain == of.name))).scalar_one()
    if await _row_of(connection, of) is None:
        return False
    if users:
        raise FailedPrecondition(
            f"cannot delete bundle; federated with {users} registration entries", reason="BUNDLE_IN_USE"
        )
    await connection.execute(delete(bundles).where(bundles.c.trust_domain == of.name))
    transaction.change("bundle", of.name, deleted=True)
    return True


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
