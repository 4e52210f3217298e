"""Which agents, entries and tokens are over, and forgetting them; what was renewed meanwhile stays."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select

from ca.identity.spiffe_id import SpiffeId
from ca.store.agents import delete_agents
from ca.store.database import Database, WriteTransaction
from ca.store.entries import delete_entries
from ca.store.rows import spiffe_id, to_micros
from ca.store.tables import agents, entries
from ca.store.token_rows import count_over

ONE_TIME_ATTESTATION = ("join_token", "oidc")
"""Methods whose evidence is used up: forgetting the agent lets nobody use it once more."""

BATCH = 500
"""Deleted in one transaction, so that other writers get their turn."""


class Pruning:
    """Reads tell what a write would forget; a write looks again at each row that it forgets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def expired_agents(self, before: datetime, *, first_use: bool = False) -> list[SpiffeId]:
        """Agents whose SVIDs, the renewed one included, ended before `before`; never banned ones.

        Without `first_use`, only those who can attest again or whose evidence is used up: an agent that was trusted
        on first use is remembered, for its evidence would else be good once more, for anybody who has it.
        """
        query = select(agents.c.id).where(_agent_is_over(before, first_use=first_use)).order_by(agents.c.position)
        async with self._database.read() as connection:
            return [spiffe_id(text) for text in (await connection.execute(query)).scalars()]

    async def delete_agents(self, before: datetime, *, first_use: bool = False) -> list[SpiffeId]:
        """Forget at most one batch of them, with their alias entries; returns which, none when there is no more."""

        async def work(transaction: WriteTransaction) -> list[str]:
            over = _agent_is_over(before, first_use=first_use)
            query = select(agents.c.id).where(over).order_by(agents.c.position).limit(BATCH)
            names = list((await transaction.connection.execute(query)).scalars())
            await delete_agents(transaction, names)
            return names

        return [spiffe_id(text) for text in await self._database.write(work)]

    async def expired_entries(self, before: datetime) -> list[str]:
        """IDs of entries whose `expires_at` is before `before`."""
        query = select(entries.c.id).where(entries.c.expires_at < to_micros(before)).order_by(entries.c.position)
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def delete_entries(self, before: datetime) -> list[str]:
        """Forget at most one batch of them; returns which, none when there is no more."""

        async def work(transaction: WriteTransaction) -> list[str]:
            query = select(entries.c.id).where(entries.c.expires_at < to_micros(before))
            query = query.order_by(entries.c.position).limit(BATCH)
            names = list((await transaction.connection.execute(query)).scalars())
            await delete_entries(transaction, names)
            return names

        return await self._database.write(work)

    async def count_tokens(self, before: datetime) -> int:
        """How many join tokens are over at `before`."""
        async with self._database.read() as connection:
            return await count_over(connection, before)


def _agent_is_over(before: datetime, *, first_use: bool) -> ColumnElement[bool]:
    moment = to_micros(before)
    over = and_(
        agents.c.not_after < moment,
        or_(agents.c.pending_not_after.is_(None), agents.c.pending_not_after < moment),
        agents.c.banned.is_(False),
    )
    if first_use:
        return over
    return and_(over, or_(agents.c.reattestable.is_(True), agents.c.attestation_type.in_(ONE_TIME_ATTESTATION)))
