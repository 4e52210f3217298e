"""Writes on the driver itself end as all others do: whole or not at all, and in the store's own errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from ca.errors import Denied, Unavailable
from ca.store.values import Change
from tests.support.stores import AGENT, agent, opened, url_of


async def test_a_locked_database_is_unavailable_and_then_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.store.database.BUSY_TIMEOUT_MS", 50)
    async with opened(f"sqlite:///{tmp_path}/store.sqlite3") as store:
        holder = sqlite3.connect(tmp_path / "store.sqlite3", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as refused:
            await store.agents.upsert(agent())
        assert (refused.value.reason, store.unwritable) == ("STORE_UNAVAILABLE", True)
        holder.execute("ROLLBACK")
        holder.close()
        assert await store.agents.get(AGENT) is None
        await store.agents.upsert(agent())
        assert (await store.agents.get(AGENT), store.unwritable) == (agent(), False)


async def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/store.sqlite3") as store:
        await store.agents.upsert(agent())
        await store.agents.ban(AGENT)
        with pytest.raises(Denied):
            await store.agents.upsert(agent())
        await store.agents.delete(AGENT)
        changes = await store.changes.catch_up(), await store.changes.since(0)
        told = [Change(1, "agent", str(AGENT)), Change(2, "agent", str(AGENT)), Change(3, "agent", str(AGENT), True)]
        assert changes == (3, told)


@pytest.mark.real("PostgreSQL")
async def test_a_connection_that_the_database_ended_is_replaced(tmp_path: Path) -> None:
    end_others = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with url_of("postgresql", tmp_path) as url:
        async with opened(url) as store:
            await store.agents.upsert(agent())
            async with store._database.engine.connect() as connection:
                await connection.execute(end_others)
            await store.agents.upsert(agent(serial="7"))
            assert await store.agents.get(AGENT) == agent(serial="7")
