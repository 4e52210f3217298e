"""Join tokens: made once, used as often as they were made for; this table keeps their SHA-256 only.

The entry of a one-use token with an alias is another matter: its parent is the agent to be, whose ID ends in the token,
and it is there from the beginning, as on SPIRE's wire. Such a token can be read in the table of entries before it is
used. One of several uses gets such an entry with each agent, and none names the token.

What was used for a key stays for some minutes, for that key alone: when the answer to an attestation is lost, the same
node may ask for it again, and nobody else can. A token that expired stays for days, so that each attempt hears the
same.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import AlreadyExists, NotFound
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock, JoinToken
from ca.store.agents import alias_selectors
from ca.store.database import Database, WriteTransaction
from ca.store.entries import delete_entries
from ca.store.entry_create import create_entries
from ca.store.rows import from_micros, selectors_to_json, spiffe_id, to_micros
from ca.store.tables import entries, join_token_uses, join_tokens
from ca.store.token_rows import AGENTS, forget, live, over, replaceable, token_digest, token_id
from ca.store.token_use import use
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

    async def create(
        self, value: str, expires_at: datetime, agent_id: SpiffeId | None = None, *, name: str = "", uses: int = 1
    ) -> None:
        """Accept `value` until `expires_at` (inclusive), for `uses` agents. Raises AlreadyExists JOIN_TOKEN_EXISTS, or
        JOIN_TOKEN_NAME_TAKEN where another token that makes agents has that name.

        With `agent_id`, the agents that will use the token also get that ID as an alias. The entry for it, which names
        a token of one use, is created in the same transaction. Raises InvalidArgument when the token then is no valid
        path segment.
        """

        async def work(transaction: WriteTransaction) -> None:
            connection, digest, now = transaction.connection, token_digest(value), self._clock.now()
            if uses == 1:  # the agents of one of several uses are called by its ID: there must never be another
                await forget(connection, and_(join_tokens.c.digest == digest, replaceable(now)))
            if await _exists(connection, join_tokens.c.digest == digest):
                raise AlreadyExists("join token already exists", reason="JOIN_TOKEN_EXISTS")
            if name and await _exists(connection, and_(join_tokens.c.name == name, live(now))):
                raise _name_taken(name)
            columns = {"digest": digest, "expires_at": to_micros(expires_at), "name": name or None, "uses": uses}
            alias = None if agent_id is None else str(agent_id)
            await connection.execute(insert(join_tokens).values(agent_id=alias, **columns))
            if agent_id is not None and uses == 1:
                # A similar entry from an earlier token of this value serves as well.
                await create_entries(transaction, [_alias_entry(AGENTS + value, agent_id)], now)

        await self._database.write(work)

    async def consume(self, value: str, now: datetime, *, key_sha256: bytes | None = None) -> JoinToken:
        """Use the token, atomically: of any number of callers at most as many get it as it was made for.

        With `key_sha256`, of a key whose possession was proven, it is used for that key, and for `REPEAT` consuming it
        for the same key succeeds again, though it may have expired meanwhile, and is no other use. Raises Denied
        JOIN_TOKEN_UNKNOWN (never made, or used up), JOIN_TOKEN_REVOKED or JOIN_TOKEN_EXPIRED, until the row is pruned.
        """

        async def work(transaction: WriteTransaction) -> JoinToken:
            used = await use(transaction.connection, value, now, key_sha256=key_sha256, id_key=self._id_key)
            row, path = used.token, used.agent_path
            alias = None if row.agent_id is None else spiffe_id(row.agent_id)
            if alias is not None and row.uses > 1 and not used.again:
                await create_entries(transaction, [_alias_entry(path, alias)], now)
            return JoinToken(
                value=value, expires_at=from_micros(row.expires_at), agent_id=alias, name=path.removeprefix(AGENTS)
            )

        return await self._database.write(work)

    async def list(self) -> list[StoredToken]:
        """All that are not forgotten, used and expired ones too, by the time they expire."""
        query = select(join_tokens).order_by(join_tokens.c.expires_at, join_tokens.c.digest)
        async with self._database.read() as connection:
            last = await _last_uses(connection)
            return [self._stored(row, last.get(row.digest)) for row in await connection.execute(query)]

    async def revoke(self, name: str, now: datetime) -> StoredToken:
        """The token of that name or ID makes no more agents; those that it made stay. Returns it as it is then. Raises
        NotFound JOIN_TOKEN_NOT_FOUND where none that makes agents is called so."""

        async def work(transaction: WriteTransaction) -> StoredToken:
            connection = transaction.connection
            rows = (await connection.execute(select(join_tokens).where(live(now)).with_for_update())).all()
            for row in rows:
                if name in (row.name, token_id(row.digest, self._id_key)):
                    this = join_tokens.c.digest == row.digest
                    revoked = update(join_tokens).where(this).values(revoked_at=to_micros(now))
                    row = (await connection.execute(revoked.returning(*join_tokens.c))).one()
                    await _forget_alias_to_be(transaction, row)
                    return self._stored(row, (await _last_uses(connection)).get(row.digest))
            raise _not_found(name)

        return await self._database.write(work)

    async def prune(self, now: datetime) -> int:
        """Forget tokens that expired `EXPIRED_KEPT` before `now`, or are used up and serve no more; returns how
        many."""
        return await self._database.write(lambda transaction: forget(transaction.connection, over(now)))

    def _stored(self, row: Row[Any], last: Row[Any] | None) -> StoredToken:
        return StoredToken(
            id=token_id(row.digest, self._id_key),
            name=row.name or "",
            expires_at=from_micros(row.expires_at),
            agent_id=None if row.agent_id is None else spiffe_id(row.agent_id),
            uses=row.uses,
            used=0 if last is None else last.number,
            used_at=None if last is None else from_micros(last.used_at),
            used_by="" if last is None else last.agent_path,
            revoked=row.revoked_at is not None,
        )


async def _exists(connection: AsyncConnection, condition: Any) -> bool:
    return (await connection.execute(select(join_tokens.c.digest).where(condition).limit(1))).first() is not None


async def _last_uses(connection: AsyncConnection) -> dict[bytes, Row[Any]]:
    """By the token's digest. Its number is how often the token was used."""
    used = join_token_uses.c
    last = select(used.digest, func.max(used.number).label("number")).group_by(used.digest).subquery()
    same = and_(used.digest == last.c.digest, used.number == last.c.number)
    return {row.digest: row for row in await connection.execute(select(join_token_uses).join(last, same))}


async def _forget_alias_to_be(transaction: WriteTransaction, token: Row[Any]) -> None:
    """The entry that names a token of one use, which will never be an agent."""
    if token.agent_id is None or token.uses != 1:
        return
    its = select(entries.c.id, entries.c.parent_id, entries.c.selectors).where(entries.c.spiffe_id == token.agent_id)
    for row in (await transaction.connection.execute(its)).all():
        parent = spiffe_id(row.parent_id)
        own = parent.path.startswith(AGENTS) and token_digest(parent.path.removeprefix(AGENTS)) == token.digest
        if own and row.selectors == selectors_to_json(alias_selectors(parent)):
            await delete_entries(transaction, [row.id])


def _alias_entry(agent_path: str, alias: SpiffeId) -> RegistrationEntry:
    parent = SpiffeId.of(alias.trust_domain, agent_path)
    return RegistrationEntry(id="", spiffe_id=alias, parent_id=parent, selectors=alias_selectors(parent))


def _name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"a join token that still makes agents is called `{name}`",
        reason="JOIN_TOKEN_NAME_TAKEN",
        hint=f"another name, or `caadmin token revoke {name}` first",
    )


def _not_found(name: str) -> NotFound:
    return NotFound(
        f"no join token that still makes agents is called {name!r}",
        reason="JOIN_TOKEN_NOT_FOUND",
        hint="`caadmin token list` shows names and IDs",
    )
