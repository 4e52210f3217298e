"""Revisions are handed out in commit order, also between servers that share a PostgreSQL: no reader misses one."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pytest

from ca.errors import BurgeeError
from ca.identity.bundle import TrustBundle, X509Authority
from ca.store.database import WriteTransaction
from ca.store.store import Store
from ca.store.values import Change, IssuanceRecord
from tests.support import postgres
from tests.support.stores import NOW, TD, agent, entry, opened

pytestmark = pytest.mark.real("PostgreSQL")

SERVERS, WRITERS, WRITES = 3, 4, 12


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as made:
        yield made


def adding(name: str) -> Callable[[TrustBundle], TrustBundle]:
    new = X509Authority(certificate=name.encode())
    return lambda old: replace(old, x509_authorities=(*old.x509_authorities, new))


async def change_and_fail(transaction: WriteTransaction) -> None:
    """Notes changes that then never happened."""
    for number in range(3):
        transaction.change("entry", f"never-{number}")
    raise ZeroDivisionError


async def write_at_random(store: Store, name: str, dice: random.Random) -> None:
    for number in range(WRITES):
        await asyncio.sleep(dice.random() * 0.01)
        chosen = dice.randrange(5)
        if chosen == 0:
            await store.agents.upsert(agent(f"{name}-{number}"))
        elif chosen == 1:
            await store.bundles.update(TD, adding(f"{name}-{number}"))
        elif chosen == 2:
            with contextlib.suppress(ZeroDivisionError):
                await store._database.write(change_and_fail)
        elif chosen == 3:
            with contextlib.suppress(BurgeeError):
                await store.entries.update("nope", {})
        else:
            batch = [entry(f"/{name}/{number}/{n}") for n in range(dice.randrange(1, 30))]
            await store.entries.create(batch)


async def read_until(store: Store, done: asyncio.Event, dice: random.Random) -> list[Change]:
    """A reader that trusts the log: it never looks back behind the highest revision that it has seen."""
    seen: list[Change] = []
    while True:
        last_round = done.is_set()
        while found := await store.changes.since(seen[-1].revision if seen else 0, dice.randrange(1, 50)):
            seen.extend(found)
        if last_round:
            return seen
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_reader_misses_a_revision(url: str, seed: int) -> None:
    dice = random.Random(seed)
    done = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(opened(url)) for _ in range(SERVERS)]
        heard: list[list[Change]] = [[] for _ in servers]
        for store, mine in zip(servers, heard, strict=True):
            store.changes.subscribe(mine.extend)
        readers = [asyncio.create_task(read_until(s, done, random.Random(seed * n))) for n, s in enumerate(servers)]
        await asyncio.gather(
            *(
                write_at_random(store, f"s{i}w{w}", random.Random(dice.random()))
                for i, store in enumerate(servers)
                for w in range(WRITERS)
            )
        )
        done.set()
        truth = await servers[0].changes.since(0, 1_000_000)
        assert [change.revision for change in truth] == list(range(1, len(truth) + 1))
        assert len(truth) > 100
        for seen in await asyncio.gather(*readers):
            assert seen == truth
        for store in servers:
            await asyncio.wait_for(store.changes.wait(len(truth) - 1), 10)  # the poll brings the others' last ones
        assert heard == [truth] * SERVERS


async def test_a_server_that_slept_past_compaction_is_told_to_start_over(url: str) -> None:
    async with opened(url) as awake, opened(url) as asleep:
        heard: list[Change] = []
        asleep.changes.subscribe(heard.extend)
        await asleep.changes.close()  # its poll stops: it is asleep
        await awake.entries.create([entry(f"/{n}") for n in range(10)])
        await awake.changes.compact(2)
        await asleep.bundles.set(TrustBundle(trust_domain=TD))
        assert heard == [Change(11, "reset", "")]
        await asleep.entries.create([entry("/more")])
        assert [change.revision for change in heard] == [11, 12]


async def test_servers_that_start_together_agree(url: str) -> None:
    """Both migrate, both make the store's one row: the first wins, the second waits."""
    async with contextlib.AsyncExitStack() as stack:
        stores = await asyncio.gather(*(stack.enter_async_context(opened(url)) for _ in range(3)))
        assert len({store.epoch for store in stores}) == 1


async def test_connections_that_the_server_closed_are_made_anew(url: str) -> None:
    record = IssuanceRecord(
        kind="jwt",
        serial_or_kid="k",
        tbs_sha256=bytes(32),
        authority_id="k",
        server="s",
        spiffe_id="spiffe://example.org/w",
        not_before=NOW,
        not_after=NOW,
    )
    async with opened(url) as store:
        await store.entries.create([entry("/a")])
        await store.issuance.append([record])
        with psycopg.connect(postgres.server().url("postgres"), autocommit=True) as other:
            name = url.partition("@/")[2].partition("?")[0]
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        await store.issuance.append([record])
        assert len(await store.entries.all()) == 1
        assert len(await store.issuance.find()) == 2
