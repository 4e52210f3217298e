"""News of changes reach subscribers also when the database fails just after a commit."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import Unavailable
from ca.identity.bundle import TrustBundle
from ca.store.bundles import Bundles
from ca.store.changes import ChangeLog
from ca.store.database import Database, WriteTransaction, parse_url
from ca.store.tables import entries
from ca.store.values import Change
from tests.support.stores import TD, entry, opened


class FailingDatabase(Database):
    """Refuses as many reads as `failures` says, then works again."""

    failures = 0
    error: Exception = Unavailable("out of order")

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        if self.failures:
            self.failures -= 1
            raise self.error
        return super().read()


async def test_a_write_stands_and_its_news_come_later(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.sqlite3"
    async with opened(url) as elsewhere:
        database = FailingDatabase(parse_url(url))
        log = ChangeLog(database, elsewhere.epoch)
        await log.start()
        heard: list[Change] = []
        log.subscribe(heard.extend)
        await elsewhere.entries.create([entry("/a", id="a")])  # so that the next write has to read what came before
        database.failures = 2
        stored = await Bundles(database).set(TrustBundle(trust_domain=TD))
        assert stored.sequence_number == 1
        assert heard == []
        await asyncio.wait_for(log.wait(1), 10)
        assert heard == [Change(1, "entry", "a"), Change(2, "bundle", "example.org")]
        await log.close()
        await database.close()


async def test_an_error_after_changes_were_noted_makes_the_log_look(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/store.sqlite3") as store:
        looked = asyncio.Event()
        look = store.changes.catch_up

        async def catch_up() -> int:
            looked.set()
            return await look()

        store.changes.catch_up = catch_up  # type: ignore[method-assign]

        async def work(transaction: WriteTransaction) -> None:
            transaction.change("entry", "never")
            raise LookupError

        with pytest.raises(LookupError):
            await store._database.write(work)
        await asyncio.wait_for(looked.wait(), 5)
        await store.bundles.update(TD, lambda old: replace(old, refresh_hint_seconds=1))
        assert await store.changes.since(0) == [Change(1, "bundle", "example.org")]


async def test_watching_survives_errors_that_nobody_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's other servers ban agents too: who stops listening lets the banned in."""
    monkeypatch.setattr("ca.store.changes.POLL_SECONDS", 0.01)
    url = f"sqlite:///{tmp_path}/store.sqlite3"
    async with opened(url) as elsewhere:
        database = FailingDatabase(parse_url(url))
        database.error = RuntimeError("a bug in a driver")
        log = ChangeLog(database, elsewhere.epoch)
        await log.start()
        log._keep(asyncio.create_task(log._poll()))  # as it does on PostgreSQL
        database.failures = 3
        await elsewhere.entries.create([entry("/a", id="a")])
        assert await asyncio.wait_for(log.wait(0), 10) == 1
        assert database.failures == 0
        await log.close()
        await database.close()


async def test_news_after_an_uncertain_commit_survive_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.store.changes.POLL_SECONDS", 0.01)
    url = f"sqlite:///{tmp_path}/store.sqlite3"
    async with opened(url) as elsewhere:
        database = FailingDatabase(parse_url(url))
        database.error = RuntimeError("a bug in a driver")
        log = ChangeLog(database, elsewhere.epoch)
        await log.start()
        await elsewhere.entries.create([entry("/a", id="a")])
        database.failures = 2
        database.commit_uncertain()
        assert await asyncio.wait_for(log.wait(0), 10) == 1
        await log.close()
        await database.close()


async def test_what_was_written_here_is_not_read_back_while_there_is_no_doubt(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.sqlite3"
    async with opened(url) as elsewhere:
        database = FailingDatabase(parse_url(url))
        log = ChangeLog(database, elsewhere.epoch)
        await log.start()
        await Bundles(database).set(TrustBundle(trust_domain=TD))
        first, second = Change(1, "bundle", "example.org"), Change(2, "entry", "a")
        database.failures = 1
        assert (await log.since(0), await log.since(1), log.is_newest(1)) == ([first], [], True)
        with pytest.raises(Unavailable):
            await log.catch_up()  # which looks in any case
        await elsewhere.entries.create([entry("/a", id="a")])  # as if it were a commit of ours whose end was an error
        database.failures = 1
        database.commit_uncertain()
        assert not log.is_newest(1)
        with pytest.raises(Unavailable):
            await log.since(1)
        assert await log.since(1) == [second]
        assert await asyncio.wait_for(log.wait(1), 10) == 2
        await log.close()
        await database.close()


async def test_a_pool_without_a_free_connection_is_unavailable(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/store.sqlite3") as store:
        pool = store._database.engine.sync_engine.pool
        pool._timeout = 0.01  # type: ignore[attr-defined]  # of a QueuePool
        async with AsyncExitStack() as held:
            for _ in range(8):
                await held.enter_async_context(store._database.read())
            with pytest.raises(Unavailable) as refused:
                await store.agents.all()
        assert refused.value.reason == "STORE_UNAVAILABLE"
        assert await store.agents.all() == []


async def test_errors_of_the_database_tell_no_parameters(tmp_path: Path) -> None:
    """They go to the log, and a statement may hold what must not: an alias entry's parent ends in a join token."""
    async with opened(f"sqlite:///{tmp_path}/store.sqlite3") as store:
        await store.entries.create([entry("/a", id="secret-token")])
        broken = insert(entries).values(id="secret-token", position=99)
        async with store._database.engine.connect() as connection:
            with pytest.raises(IntegrityError) as refused:
                await connection.execute(broken)
            assert "secret-token" not in str(refused.value)
        blocking = store._database.blocking_engine()
        with blocking.connect() as plain, pytest.raises(IntegrityError) as refused:
            plain.execute(broken)
        assert "secret-token" not in str(refused.value)
        blocking.dispose()
