"""Join tokens: made once, used once; only their SHA-256 is kept.

A token that was used for a key stays for some minutes, for that key alone: when the answer to an attestation is lost,
the same node may ask for it again, and nobody else can.
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
from ca.store.token_rows import REPEAT, over, token_digest


class Tokens:
    """The join tokens of the store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(self, value: str, expires_at: datetime, agent_id: SpiffeId | None = None) -> None:
        """Accept `value` until `expires_at` (inclusive). Raises AlreadyExists JOIN_TOKEN_EXISTS.

        With `agent_id`, the agent that will use the token also gets that ID as an alias: an entry is created in the
        same transaction. Raises InvalidArgument when the token then is no valid path segment.
        """

        async def work(transaction: WriteTransaction) -> None:
            digest = token_digest(value)
            used = delete(join_tokens).where(join_tokens.c.digest == digest, join_tokens.c.used_at.is_not(None))
            await transaction.connection.execute(used)
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
        made, or used) or JOIN_TOKEN_EXPIRED (and the token is gone then too).
        """

        async def work(transaction: WriteTransaction) -> JoinToken | None:
            row = await _take(transaction, token_digest(value), now, key_sha256)
            if row is None:
                return None
            alias = None if row.agent_id is None else spiffe_id(row.agent_id)
            expires_at = now if row.used_at is not None else from_micros(row.expires_at)
            return JoinToken(value=value, expires_at=expires_at, agent_id=alias)

        # The refusals come after the commit: an expired token is used up by the first try.
        token = await self._database.write(work)
        if token is None:
            raise Denied("join token does not exist or has already been used", reason="JOIN_TOKEN_UNKNOWN")
        if token.expires_at < now:
            raise Denied("join token expired", reason="JOIN_TOKEN_EXPIRED", hint="create a new one")
        return token

    async def prune(self, now: datetime) -> int:
        """Forget tokens that expired before `now`, or serve no more; returns how many."""

        async def work(transaction: WriteTransaction) -> int:
            gone = delete(join_tokens).where(over(now))
            return (await transaction.connection.execute(gone)).rowcount

        return await self._database.write(work)


async def _take(
    transaction: WriteTransaction, digest: bytes, now: datetime, key_sha256: bytes | None
) -> Row[Any] | None:
    """The token's row as it was; None when there is none for this caller. The writer lock makes it atomic."""
    execute, this = transaction.connection.execute, join_tokens.c.digest == digest
    row = (await execute(select(join_tokens).where(this).with_for_update())).one_or_none()
    if row is None:
        return None
    if row.used_at is not None:
        repeated = key_sha256 is not None and row.used_key_sha256 == key_sha256
        return row if repeated and to_micros(now - REPEAT) <= row.used_at <= to_micros(now) else None
    if key_sha256 is None or from_micros(row.expires_at) < now:
        await execute(delete(join_tokens).where(this))
    else:
        await execute(update(join_tokens).where(this).values(used_at=to_micros(now), used_key_sha256=key_sha256))
    return row


def _alias_entry(value: str, agent_id: SpiffeId) -> RegistrationEntry:
    parent = SpiffeId.of(agent_id.trust_domain, f"{AGENT_PREFIX}join_token/{value}")
    return RegistrationEntry(id="", spiffe_id=agent_id, parent_id=parent, selectors=alias_selectors(parent))
