"""News of changes reach subscribers also when the database fails just after a commit."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import Unavailable
from ca.identity.bundle import TrustBundle
from ca.store.bundles import Bundles
from ca.store.changes import ChangeLog
from ca.store.database import Database, WriteTransaction, parse_url
from ca.store.values import Change
from tests.support.stores import TD, entry, opened


class FailingDatabase(Database):
    """Refuses as many reads as `failures` says, then works again."""

    failures = 0

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        if self.failures:
            self.failures -= 1
            raise Unavailable("out of order")
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
