"""Attested agents: their certificates' serials (current and pending), selectors and bans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import Denied, NotFound
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from ca.store import paging
from ca.store.database import Database, WriteTransaction
from ca.store.direct import DirectTransaction
from ca.store.entries import delete_entries
from ca.store.matching import match_set
from ca.store.rows import (
    check_storable,
    chunks,
    from_micros,
    selector_digest,
    selectors_from_json,
    selectors_to_json,
    shared_selector,
    spiffe_id,
    to_micros,
)
from ca.store.tables import agent_selectors, agents, entries
from ca.store.token_rows import forget_token_of
from ca.store.values import AgentFilter, AttestedAgent, Page
from ca.store.written import Written

# Those of an attestation are made once: most of what a small statement costs is making it.
_BY_ID = select(agents).where(agents.c.id == bindparam("agent_id"))
_STANDING = select(agents.c.position, agents.c.banned, agents.c.serial, agents.c.selectors).where(
    agents.c.id == bindparam("agent_id")
)
_INSERT = insert(agents)
_REPLACE = update(agents).where(agents.c.position == bindparam("at"))
_INSERT_SELECTORS = insert(agent_selectors)
_DELETE_SELECTORS = delete(agent_selectors).where(agent_selectors.c.position == bindparam("at"))


class Agents:
    """The agents of the store. Methods that change one agent raise NotFound AGENT_NOT_FOUND when there is none."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.attested: Written[AttestedAgent] = Written("agent")

    async def upsert(self, agent: AttestedAgent, *, successor_of: str | None = None) -> AttestedAgent:
        """Store an attestation's outcome whole. Raises Denied AGENT_BANNED when the stored agent is banned: the check
        and the write are one transaction, so a ban cannot be lost to an attestation that was already under way.

        With `successor_of` only if the stored agent's serial is that one, or there is none where it is empty; else
        Denied AGENT_ALREADY_ATTESTED: of two that come at once the first is the node.
        """
        row = _row(agent)
        agent = replace(agent, selectors=frozenset(shared_selector(s.type, s.value) for s in agent.selectors))
        await self._database.write_small(
            lambda transaction: _upsert(transaction, agent, row, successor_of),
            committed=lambda changes: self.attested.add(changes, [agent]),
        )
        return agent

    async def get(self, agent_id: SpiffeId) -> AttestedAgent | None:
        async with self._database.read() as connection:
            row = await _row_of(connection, str(agent_id))
        return None if row is None else agent_of(row)

    async def get_many(self, agent_ids: Sequence[SpiffeId]) -> dict[SpiffeId, AttestedAgent]:
        """Those that exist, by ID."""
        if len(agent_ids) == 1:  # as after each attestation
            agent = await self.get(agent_ids[0])
            return {} if agent is None else {agent.id: agent}
        found: dict[SpiffeId, AttestedAgent] = {}
        async with self._database.read() as connection:
            for some in chunks([str(agent_id) for agent_id in agent_ids]):
                for row in await connection.execute(select(agents).where(agents.c.id.in_(some))):
                    agent = agent_of(row)
                    found[agent.id] = agent
        return found

    async def find(
        self, condition: AgentFilter | None = None, page_size: int = 0, page_token: str = ""
    ) -> Page[AttestedAgent]:
        """Agents in the order of their first attestation; all of them when `page_size` ≤ 0."""
        query = _narrow(select(agents), condition or AgentFilter())
        query = paging.limit(query, agents.c.position, page_size, page_token)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return paging.page(rows, page_size, agent_of)

    async def count(self, condition: AgentFilter | None = None) -> int:
        query = _narrow(select(func.count()).select_from(agents), condition or AgentFilter())
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def all(self) -> list[AttestedAgent]:
        async with self._database.read() as connection:
            return await read_all_agents(connection)

    async def set_pending(self, agent_id: SpiffeId, serial: str, not_after: datetime) -> AttestedAgent:
        """Remember a renewed certificate; the current one stays valid until `promote`. Raises Denied AGENT_BANNED."""

        async def work(transaction: WriteTransaction) -> AttestedAgent:
            _refuse_banned(await _must_get(transaction.connection, agent_id))
            return await _set(transaction, agent_id, pending_serial=serial, pending_not_after=to_micros(not_after))

        return await self._database.write(work)

    async def promote(self, agent_id: SpiffeId, *, serial: str | None = None) -> AttestedAgent:
        """Make the pending certificate the current one, at its first use.

        With `serial`, only if that one is still pending. Nothing pending (any more): the agent is returned as it is.
        """

        async def work(transaction: WriteTransaction) -> AttestedAgent:
            row = await _must_get(transaction.connection, agent_id)
            if not row.pending_serial or serial not in (None, row.pending_serial):
                return agent_of(row)
            return await _set(
                transaction,
                agent_id,
                serial=row.pending_serial,
                not_after=row.pending_not_after,
                pending_serial="",
                pending_not_after=None,
            )

        return await self._database.write(work)

    async def ban(self, agent_id: SpiffeId) -> AttestedAgent:
        """Empty its serials for good: only `delete` lifts a ban. Banning twice is no error."""

        async def work(transaction: WriteTransaction) -> AttestedAgent:
            row = await _must_get(transaction.connection, agent_id)
            if row.banned:
                return agent_of(row)
            return await _set(transaction, agent_id, serial="", pending_serial="", pending_not_after=None, banned=True)

        return await self._database.write(work)

    async def set_version(self, agent_id: SpiffeId, version: str) -> AttestedAgent:
        """Note the version that the agent says it has; no change when it is the known one."""

        async def work(transaction: WriteTransaction) -> AttestedAgent:
            check_storable((version,))
            row = await _must_get(transaction.connection, agent_id)
            if row.agent_version == version:
                return agent_of(row)
            return await _set(transaction, agent_id, agent_version=version)

        return await self._database.write(work)

    async def delete(self, agent_id: SpiffeId) -> None:
        """Evict: the agent must attest again. Its join-token alias entry goes with it."""
        await self._database.write(lambda transaction: _delete(transaction, agent_id))


def agent_of(row: Row[Any]) -> AttestedAgent:
    """The agent in a row of `agents`."""
    return AttestedAgent(
        id=spiffe_id(row.id),
        attestation_type=row.attestation_type,
        serial=row.serial,
        not_after=from_micros(row.not_after),
        pending_serial=row.pending_serial,
        pending_not_after=None if row.pending_not_after is None else from_micros(row.pending_not_after),
        selectors=selectors_from_json(row.selectors),
        reattestable=row.reattestable,
        banned=row.banned,
        agent_version=row.agent_version,
    )


async def read_all_agents(connection: AsyncConnection) -> list[AttestedAgent]:
    """In order of first attestation, in portions that let others have the event loop in between."""
    result: list[AttestedAgent] = []
    position = 0
    query = select(agents).order_by(agents.c.position).limit(2000)
    while rows := (await connection.execute(query.where(agents.c.position > position))).all():
        result.extend(agent_of(row) for row in rows)
        position = rows[-1].position
    return result


def _row(agent: AttestedAgent) -> dict[str, Any]:
    check_storable((agent.attestation_type, agent.agent_version, *(s.type + s.value for s in agent.selectors)))
    return {
        "id": str(agent.id),
        "attestation_type": agent.attestation_type,
        "serial": agent.serial,
        "not_after": to_micros(agent.not_after),
        "pending_serial": agent.pending_serial,
        "pending_not_after": None if agent.pending_not_after is None else to_micros(agent.pending_not_after),
        "selectors": selectors_to_json(agent.selectors),
        "selector_count": len(agent.selectors),
        "reattestable": agent.reattestable,
        "banned": agent.banned,
        "agent_version": agent.agent_version,
    }


def _upsert(
    transaction: DirectTransaction, agent: AttestedAgent, row: dict[str, Any], successor_of: str | None
) -> None:
    """In a thread."""
    old = transaction.execute(_STANDING, {"agent_id": row["id"]}).fetchone()
    revision = transaction.change("agent", row["id"])
    if old is None:
        position = revision
        transaction.execute(_INSERT, {"position": position, **row})
    else:
        position, banned, serial, selectors = old
        if banned:
            raise _banned()
        if successor_of not in (None, serial):
            raise already_attested(agent.id)
        transaction.execute(_REPLACE, {"at": position, **{key: row[key] for key in row if key != "id"}})
        if selectors == row["selectors"]:  # what is attested anew has mostly stayed what it was
            return
        transaction.execute(_DELETE_SELECTORS, {"at": position})
    for selector in agent.selectors:
        transaction.execute(_INSERT_SELECTORS, {"position": position, "digest": selector_digest(selector)})


async def delete_agents(transaction: WriteTransaction, names: Sequence[str]) -> None:
    """Forget agents that are there, by SPIFFE ID, with their alias entries."""
    for name in names:
        await _delete(transaction, spiffe_id(name))


async def _delete(transaction: WriteTransaction, agent_id: SpiffeId) -> None:
    connection = transaction.connection
    row = await _must_get(connection, agent_id)
    await connection.execute(delete(agent_selectors).where(agent_selectors.c.position == row.position))
    await connection.execute(delete(agents).where(agents.c.position == row.position))
    await forget_token_of(connection, agent_id)
    transaction.change("agent", str(agent_id), deleted=True)
    alias = selectors_to_json(alias_selectors(agent_id))
    query = select(entries.c.id).where(entries.c.parent_id == str(agent_id), entries.c.selectors == alias)
    await delete_entries(transaction, list((await connection.execute(query)).scalars()))


def alias_selectors(agent_id: SpiffeId) -> frozenset[Selector]:
    """What the entry that gives a join-token agent its other name selects by: the agent's own ID."""
    return frozenset({Selector("spiffe_id", str(agent_id))})


async def _row_of(connection: AsyncConnection, agent_id: str) -> Row[Any] | None:
    return (await connection.execute(_BY_ID, {"agent_id": agent_id})).one_or_none()


async def _must_get(connection: AsyncConnection, agent_id: SpiffeId) -> Row[Any]:
    row = await _row_of(connection, str(agent_id))
    if row is None:
        raise NotFound("agent not found", reason="AGENT_NOT_FOUND")
    return row


async def _set(transaction: WriteTransaction, agent_id: SpiffeId, **columns: Any) -> AttestedAgent:
    await transaction.connection.execute(update(agents).where(agents.c.id == str(agent_id)).values(**columns))
    transaction.change("agent", str(agent_id))
    return agent_of(await _must_get(transaction.connection, agent_id))


def already_attested(agent_id: SpiffeId) -> Denied:
    """Somebody is this agent already, and its evidence serves once."""
    return Denied(
        f"`{agent_id}` has attested already, and its method trusts the first who comes only",
        reason="AGENT_ALREADY_ATTESTED",
        hint=f"if the node lost its state, an administrator lets it in again: `caadmin agent evict {agent_id}`",
    )


def _refuse_banned(row: Row[Any]) -> None:
    if row.banned:
        raise _banned()


def _banned() -> Denied:
    return Denied("agent is banned", reason="AGENT_BANNED")


def _narrow(query: Select[Any], condition: AgentFilter) -> Select[Any]:
    if condition.by_attestation_type:
        query = query.where(agents.c.attestation_type == condition.by_attestation_type)
    if condition.by_banned is not None:
        query = query.where(agents.c.banned.is_(condition.by_banned))
    if condition.by_can_reattest is not None:
        query = query.where(agents.c.reattestable.is_(condition.by_can_reattest))
    if condition.by_expires_before is not None:
        query = query.where(agents.c.not_after < to_micros(condition.by_expires_before))
    if condition.by_selector_match is not None:
        query = match_set(
            query,
            owner=agents,
            owner_count=agents.c.selector_count,
            members=agent_selectors,
            member=agent_selectors.c.digest,
            wanted=map(selector_digest, condition.by_selector_match.selectors),
            match=condition.by_selector_match.match,
        )
    return query
