"""Join tokens: made once, used once; this table keeps their SHA-256 only.

The entry of a token with an alias is another matter: its parent is the agent to be, whose ID ends in the token, and it
is there from the beginning, as on SPIRE's wire. Such a token can be read in the table of entries before it is used.

A token that was used for a key stays for some minutes, for that key alone: when the answer to an attestation is lost,
the same node may ask for it again, and nobody else can. One that expired unused stays for days, so that each attempt
hears the same.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from ca.errors import AlreadyExists, Denied
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import AGENT_PREFIX, SpiffeId
from ca.ports import Clock, JoinToken
from ca.store.agents import alias_selectors
from ca.store.database import Database, WriteTransaction
from ca.store.entry_create import create_entries
from ca.store.rows import from_micros, spiffe_id, to_micros
from ca.store.tables import join_tokens
from ca.store.token_rows import REPEAT, over, replaceable, token_digest, token_id
from ca.store.values import StoredToken


class Tokens:
    """The join tokens of the store."""

    def __init__(self, database: Database, clock: Clock, id_key: bytes) -> None:
        self._database = database
        self._clock = clock
        self._id_key = id_key

    def id_of(self, value: str) -> str:
        """What a token is called where it must not be told: a keyed digest, 16 hex digits. Without the store's key
        nobody can try values against it."""
        return token_id(token_digest(value), self._id_key)

    async def create(self, value: str, expires_at: datetime, agent_id: SpiffeId | None = None) -> None:
        """Accept `value` until `expires_at` (inclusive). Raises AlreadyExists JOIN_TOKEN_EXISTS.

        With `agent_id`, the agent that will use the token also gets that ID as an alias: an entry, which names the
        token, is created in the same transaction. Raises InvalidArgument when the token then is no valid path segment.
        """

        async def work(transaction: WriteTransaction) -> None:
            digest = token_digest(value)
            over = delete(join_tokens).where(join_tokens.c.digest == digest, replaceable(self._clock.now()))
            await transaction.connection.execute(over)
            query = select(join_tokens.c.digest).where(join_tokens.c.digest == digest)
            if (await transaction.connection.execute(query)).first() is not None:
                raise AlreadyExists("join token already exists", reason="JOIN_TOKEN_EXISTS")
            columns = {"digest": digest, "expires_at": to_micros(expires_at)}
            alias = None if agent_id is None else str(agent_id)
            await transaction.connection.execute(insert(join_tokens).values(agent_id=alias, **columns))
            if agent_id is not None:
                # A similar entry from an earlier token of this value serves as well.
                await create_entries(transaction, [_alias_entry(value, agent_id)], self._clock.now())

        await self._database.write(work)

    async def consume(self, value: str, now: datetime, *, key_sha256: bytes | None = None) -> JoinToken:
        """Use the token up, atomically: of any number of callers at most one gets it.

        With `key_sha256`, of a key whose possession was proven, it is used for that key, and for `REPEAT` consuming it
        for the same key succeeds again, though it may have expired meanwhile. Raises Denied JOIN_TOKEN_UNKNOWN (never
        made, or used) or JOIN_TOKEN_EXPIRED, the latter until the row is pruned.
        """

        async def work(transaction: WriteTransaction) -> JoinToken:
            row = await _take(transaction, token_digest(value), now, key_sha256)
            alias = None if row.agent_id is None else spiffe_id(row.agent_id)
            return JoinToken(value=value, expires_at=from_micros(row.expires_at), agent_id=alias)

        return await self._database.write(work)

    async def list(self) -> list[StoredToken]:
        """All that are not forgotten, used and expired ones too, by the time they expire."""
        query = select(join_tokens).order_by(join_tokens.c.expires_at, join_tokens.c.digest)
        async with self._database.read() as connection:
            return [_stored(row, self._id_key) for row in await connection.execute(query)]

    async def prune(self, now: datetime) -> int:
        """Forget tokens that expired `EXPIRED_KEPT` before `now`, or were used and serve no more; returns how many."""

        async def work(transaction: WriteTransaction) -> int:
            gone = delete(join_tokens).where(over(now))
            return (await transaction.connection.execute(gone)).rowcount

        return await self._database.write(work)


async def _take(transaction: WriteTransaction, digest: bytes, now: datetime, key_sha256: bytes | None) -> Row[Any]:
    """The token's row as it was; the writer lock makes it atomic. Raises Denied, and then nothing has changed."""
    execute, this = transaction.connection.execute, join_tokens.c.digest == digest
    row = (await execute(select(join_tokens).where(this).with_for_update())).one_or_none()
    if row is None:
        raise _unknown()
    if row.used_at is not None:
        repeated = key_sha256 is not None and row.used_key_sha256 == key_sha256
        if not repeated or not to_micros(now - REPEAT) <= row.used_at <= to_micros(now):
            raise _unknown()
    elif from_micros(row.expires_at) < now:
        raise Denied("join token expired", reason="JOIN_TOKEN_EXPIRED", hint="create a new one")
    elif key_sha256 is None:
        await execute(delete(join_tokens).where(this))
    else:
        await execute(update(join_tokens).where(this).values(used_at=to_micros(now), used_key_sha256=key_sha256))
    return row


def _stored(row: Row[Any], id_key: bytes) -> StoredToken:
    return StoredToken(
        id=token_id(bytes(row.digest), id_key),
        expires_at=from_micros(row.expires_at),
        agent_id=None if row.agent_id is None else spiffe_id(row.agent_id),
        used_at=None if row.used_at is None else from_micros(row.used_at),
    )


def _unknown() -> Denied:
    return Denied("join token does not exist or has already been used", reason="JOIN_TOKEN_UNKNOWN")


def _alias_entry(value: str, agent_id: SpiffeId) -> RegistrationEntry:
    parent = SpiffeId.of(agent_id.trust_domain, f"{AGENT_PREFIX}join_token/{value}")
    return RegistrationEntry(id="", spiffe_id=agent_id, parent_id=parent, selectors=alias_selectors(parent))
