"""What the store promises of its change log, issuance log and authorities, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ca.errors import NotFound
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import SpiffeId
from ca.ports import KeyType
from ca.store.store import Store
from ca.store.values import AuthorityRecord, Change, Compacted, IssuanceRecord
from tests.support.stores import AGENT, BOTH, HOUR, NOW, TD, agent, entry, opened, url_of


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as made:
        yield made


class TestChanges:
    async def test_every_watched_change_is_logged_with_its_revision(self, store: Store) -> None:
        (first, second) = await store.entries.create([entry("/a", id="e1"), entry("/b", id="e2")])
        assert first.status is None
        assert second.status is None
        await store.entries.create([entry("/a")])  # similar: no change
        await store.entries.update("e1", {"hint": "h"})
        await store.agents.upsert(agent())
        await store.agents.set_pending(AGENT, "2", NOW)
        await store.agents.promote(AGENT)
        await store.agents.promote(AGENT)  # nothing pending: no change
        await store.agents.set_version(AGENT, "1.0")
        await store.agents.set_version(AGENT, "1.0")  # no change
        await store.agents.ban(AGENT)
        await store.bundles.set(TrustBundle(trust_domain=TD))
        await store.entries.delete(["e2", "nope"])
        await store.agents.delete(AGENT)
        await store.bundles.delete(TD)
        name = str(AGENT)
        assert await store.changes.since(0) == [
            Change(1, "entry", "e1"),
            Change(2, "entry", "e2"),
            Change(3, "entry", "e1"),
            *(Change(revision, "agent", name) for revision in (4, 5, 6, 7, 8)),
            Change(9, "bundle", "example.org"),
            Change(10, "entry", "e2", deleted=True),
            Change(11, "agent", name, deleted=True),
            Change(12, "bundle", "example.org", deleted=True),
        ]
        assert await store.changes.revision() == 12
        assert [c.revision for c in await store.changes.since(3, 2)] == [4, 5]
        assert await store.changes.since(12) == []

    async def test_what_nobody_watches_is_not_in_it(self, store: Store) -> None:
        await store.tokens.create("t", NOW + HOUR)
        await store.tokens.consume("t", NOW)
        await store.authorities.put(authority("a"))
        await store.issuance.append([record(1)])
        assert await store.changes.revision() == 0

    async def test_a_failed_write_leaves_no_revision(self, store: Store) -> None:
        with pytest.raises(NotFound):
            await store.entries.update("nope", {})

        def fail(_: TrustBundle) -> TrustBundle:
            raise RuntimeError("change of mind")

        with pytest.raises(RuntimeError):
            await store.bundles.update(TD, fail)
        assert await store.changes.revision() == 0

    async def test_compacted_and_foreign_places_are_refused(self, store: Store) -> None:
        await store.entries.create([entry(f"/{n}") for n in range(10)])
        assert await store.changes.compact(4) == 6
        assert await store.changes.compact(4) == 0
        assert [c.revision for c in await store.changes.since(6)] == [7, 8, 9, 10]
        for revision in (5, 11):  # gone; not yet (a restored backup)
            with pytest.raises(Compacted):
                await store.changes.since(revision)
        await store.entries.create([entry("/more")])
        assert (await store.changes.since(10))[0].revision == 11

    async def test_each_change_has_a_mark_of_its_own(self, store: Store) -> None:
        await store.entries.create([entry(f"/{n}") for n in range(3)])
        marks = [change.mark for change in await store.changes.since(0)]
        assert len(set(marks)) == 3
        assert all(len(mark) == 16 for mark in marks)
        assert [await store.changes.mark(revision) for revision in (1, 2, 3)] == marks
        assert await store.changes.mark(4) is None
        assert (await store.snapshot()).mark == marks[-1]
        await store.changes.compact(1)
        assert [await store.changes.mark(revision) for revision in (1, 2, 3)] == [None, *marks[1:]]

    async def test_the_epoch_stays_and_the_log_goes_on(self, url: str) -> None:
        async with opened(url) as first:
            await first.entries.create([entry("/a")])
        async with opened(url) as second:
            assert second.epoch == first.epoch
            await second.entries.create([entry("/b")])
            assert await second.changes.revision() == 2
            assert second.changes.epoch == second.epoch

    async def test_subscribers_hear_each_commit_in_order(self, store: Store) -> None:
        heard: list[Change] = []
        problems: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

        def broken(_: Sequence[Change]) -> None:
            raise ValueError("mine alone")

        store.changes.subscribe(broken)
        leave = store.changes.subscribe(heard.extend)
        await asyncio.gather(*(store.entries.create([entry(f"/{n}"), entry(f"/x/{n}")]) for n in range(10)))
        assert heard == await store.changes.since(0)
        assert len(problems) == 10
        leave()
        leave()
        await store.entries.create([entry("/late")])
        assert len(heard) == 20

    async def test_wait_returns_when_something_happened(self, store: Store) -> None:
        waiting = asyncio.create_task(store.changes.wait(0))
        await asyncio.sleep(0)
        assert not waiting.done()
        await store.entries.create([entry("/a")])
        assert await asyncio.wait_for(waiting, 5) == 1
        assert await store.changes.wait(0) == 1

    async def test_a_cancelled_caller_does_not_stop_the_write(self, store: Store) -> None:
        heard: list[Change] = []
        store.changes.subscribe(heard.extend)
        writing = asyncio.create_task(store.entries.create([entry("/a")]))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await asyncio.wait_for(store.changes.wait(0), 5) == 1
        assert heard == await store.changes.since(0)

    async def test_a_snapshot_is_of_one_revision(self, store: Store) -> None:
        await store.entries.create([entry("/a")])
        await store.agents.upsert(agent())
        await store.bundles.set(TrustBundle(trust_domain=TD))
        seen = await store.snapshot()
        assert seen.revision == 3
        assert list(seen.entries) == await store.entries.all()
        assert (seen.agents, seen.bundles[0].trust_domain) == ((agent(),), TD)


def record(number: int, **fields: object) -> IssuanceRecord:
    base = IssuanceRecord(
        kind="x509",
        serial_or_kid=str(2**150 + number),
        tbs_sha256=number.to_bytes(32, "big"),
        authority_id="ab" * 20,
        server="s1",
        spiffe_id=f"spiffe://example.org/w/{number}",
        entry_id=f"entry-{number}",
        entry_revision=3,
        agent=str(AGENT),
        not_before=NOW,
        not_after=NOW + HOUR,
        key_sha256=(number + 1).to_bytes(32, "big"),
    )
    return base._replace(**fields)


class TestIssuance:
    async def test_records_are_found_by_what_matters_for_revocation(self, store: Store) -> None:
        a, b = record(1), record(2, agent=str(SpiffeId(TD, "/spire/agent/x/y")), not_after=NOW + 3 * HOUR)
        token = record(1, kind="jwt", serial_or_kid="kid", authority_id="kid", key_sha256=b"", not_before=NOW + HOUR)
        await store.issuance.append([a, b])
        await store.issuance.append([token])
        assert await store.issuance.find() == [a, b, token]
        assert await store.issuance.find(spiffe_id=a.spiffe_id) == [a, token]
        assert await store.issuance.find(agent=b.agent) == [b]
        assert await store.issuance.find(authority="kid") == [token]
        assert await store.issuance.find(authority="kid", agent=b.agent) == []
        assert await store.issuance.find(live_at=NOW + 2 * HOUR) == [b]
        assert await store.issuance.find(live_at=NOW) == [a, b]
        assert await store.issuance.find(agent="%") == []

    async def test_concurrent_callers_share_commits_and_lose_nothing(self, store: Store) -> None:
        made = [record(number) for number in range(300)]
        await asyncio.gather(*(store.issuance.append([each]) for each in made))
        assert await store.issuance.find() == made
        assert await store.issuance.prune(NOW + 100 * HOUR, retention=timedelta(hours=1)) < 30  # rows, not records

    async def test_durable_when_append_returns(self, url: str) -> None:
        async with opened(url) as store:
            await store.issuance.append([record(1)])
            await store.issuance.append([])
        async with opened(url) as store:
            assert await store.issuance.find() == [record(1)]

    async def test_records_are_kept_for_the_stated_time_after_expiry(self, store: Store) -> None:
        await store.issuance.append([record(1), record(2, not_after=NOW + 2 * HOUR)])
        week = timedelta(days=7)
        assert await store.issuance.prune(NOW + 2 * HOUR + week) == 0
        assert await store.issuance.prune(NOW + 2 * HOUR + week + timedelta(seconds=1)) == 1
        assert await store.issuance.find() == []

    async def test_a_cancelled_caller_harms_no_other(self, store: Store) -> None:
        tasks = [asyncio.create_task(store.issuance.append([record(number)])) for number in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.gather(*tasks[1:])
        assert {r.serial_or_kid for r in await store.issuance.find()} >= {record(n).serial_or_kid for n in range(1, 5)}


def authority(name: str, **fields: object) -> AuthorityRecord:
    base = AuthorityRecord(
        server="s1",
        kind="x509",
        authority_id=name,
        key_id=f"key-{name}",
        key_type=KeyType.EC_P256,
        status="active",
        not_before=NOW,
        not_after=NOW + HOUR,
        material=b"\x30\x00",
    )
    return replace(base, **fields)  # type: ignore[arg-type]


class TestAuthorities:
    async def test_rows_belong_to_a_server_and_a_kind(self, store: Store) -> None:
        old, new = authority("a", tainted=True), authority("b", not_before=NOW + HOUR, status="prepared")
        jwt, other = authority("j", kind="jwt", key_type=KeyType.RSA_2048), authority("a", server="s2")
        for each in (new, old, jwt, other):
            await store.authorities.put(each)
        assert await store.authorities.list("s1", "x509") == [old, new]
        assert await store.authorities.list(kind="jwt") == [jwt]
        assert len(await store.authorities.list()) == 4
        await store.authorities.put(replace(old, status="old"))
        assert (await store.authorities.list("s1", "x509"))[0].status == "old"
