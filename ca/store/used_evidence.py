"""Evidence that serves once: remembered by its digest until it has ended by itself."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, select

from ca.errors import Denied
from ca.store.database import Database, WriteTransaction
from ca.store.rows import to_micros
from ca.store.tables import used_evidence
from ca.store.token_rows import REPEAT

CLOCKS_APART = timedelta(minutes=5)
"""Evidence that has ended by one server's clock may hold by another's still: so much longer it is remembered."""


class UsedEvidence:
    """What has been used of the store's trust domain, by any of its servers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def use(
        self, kind: str, key: str, until: datetime, *, now: datetime, key_sha256: bytes | None = None
    ) -> None:
        """Atomically: of any number of callers at most one comes through. Raises Denied EVIDENCE_USED.

        With `key_sha256`, of a key whose possession was proven, the same key comes through again for five minutes: an
        answer may have been lost on its way. What ended a while before `now` is forgotten on the way.
        """

        async def work(transaction: WriteTransaction) -> None:
            execute = transaction.connection.execute
            await execute(delete(used_evidence).where(used_evidence.c.until < _over(now)))
            digest = _digest(kind, key)
            row = (await execute(select(used_evidence).where(used_evidence.c.digest == digest))).one_or_none()
            if row is None:
                values = {"until": to_micros(until), "used_at": to_micros(now), "used_key_sha256": key_sha256}
                await execute(insert(used_evidence).values(digest=digest, **values))
                return
            repeated = key_sha256 is not None and row.used_key_sha256 == key_sha256
            if not repeated or not to_micros(now - REPEAT) <= row.used_at <= to_micros(now):
                raise Denied(
                    "this evidence has been used already, and serves once",
                    reason="EVIDENCE_USED",
                    hint="get a new one from where it came",
                )

        await self._database.write(work)

    async def count_over(self, now: datetime) -> int:
        """How much of it `prune` would forget."""
        query = select(func.count()).select_from(used_evidence).where(used_evidence.c.until < _over(now))
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def prune(self, now: datetime) -> int:
        """Forget what ended a while before `now`, and proves nothing any more; returns how much."""

        async def work(transaction: WriteTransaction) -> int:
            over = delete(used_evidence).where(used_evidence.c.until < _over(now))
            return (await transaction.connection.execute(over)).rowcount

        return await self._database.write(work)


def _over(now: datetime) -> int:
    """What ended before this has ended for every server."""
    return to_micros(now - CLOCKS_APART)


def _digest(kind: str, key: str) -> bytes:
    return hashlib.sha256(b"\0".join(part.encode("utf-8", "surrogatepass") for part in (kind, key))).digest()
