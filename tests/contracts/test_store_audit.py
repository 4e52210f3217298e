"""What the store promises of the audit log and of pruning, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ca.store.audit import AuditFilter, AuditItem, AuditRecord
from ca.store.store import Store
from tests.support.stores import AGENT, BOTH, HOUR, NOW, agent, entry, opened, url_of


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as made:
        yield made


def record(number: int = 0, **fields: object) -> AuditRecord:
    base = AuditRecord(
        at=NOW + number * HOUR,
        server="s1",
        actor="uid:0",
        origin="pid:7",
        call="/spire.api.server.entry.v1.Entry/BatchCreateEntry",
        request_id=f"r-{number}",
        items=(AuditItem(f"e{number}", f"spiffe://example.org/{number}"),),
    )
    return replace(base, **fields)  # type: ignore[arg-type]


class TestAudit:
    async def test_a_call_is_there_before_it_ends_and_has_its_result_after(self, store: Store) -> None:
        number = await store.audit.append(record())
        assert await store.audit.find(AuditFilter()) == [record(id=number)]
        items = (AuditItem("e0", "spiffe://example.org/0", "OK"), AuditItem("é\"'%_", "", "AlreadyExists"))
        await store.audit.finish(number, code="OK", items=items)
        (found,) = await store.audit.get([number, 999])
        assert (found.code, found.items) == ("OK", items)
        assert await store.changes.revision() == 0, "nobody watches it"

    async def test_each_filter_fits_exactly(self, store: Store) -> None:
        one = await store.audit.append(record(1))
        two = await store.audit.append(record(2, actor="spiffe://example.org/admin", call="/x.Agent/BanAgent"))
        quoted = await store.audit.append(record(3, items=(AuditItem('a"b\\c%'), AuditItem("e1longer"))))

        async def ids(**fields: object) -> list[int]:
            return [found.id for found in await store.audit.find(AuditFilter(**fields))]  # type: ignore[arg-type]

        assert await ids() == [one, two, quoted]
        assert await ids(since=NOW + 2 * HOUR) == [two, quoted]
        assert await ids(actor="uid:0") == [one, quoted]
        assert await ids(actor="uid:") == []
        assert await ids(call="BanAgent") == [two]
        assert await ids(call="/x.Agent/BanAgent") == [two]
        assert await ids(call="Agent") == []
        assert await ids(item="e1") == [one]
        assert await ids(item="spiffe://example.org/2") == [two]
        assert await ids(item='a"b\\c%') == [quoted]

    async def test_pages_and_the_newest(self, store: Store) -> None:
        numbers = [await store.audit.append(record(number % 2)) for number in range(7)]
        found = await store.audit.find(AuditFilter(), after=numbers[1], limit=3)
        assert [each.id for each in found] == numbers[2:5]
        found = await store.audit.find(AuditFilter(item="e0"), limit=2, newest=True)
        assert [each.id for each in found] == [numbers[4], numbers[6]]
        assert await store.audit.last() == numbers[-1]

    async def test_what_a_caller_sends_cannot_break_it(self, store: Store) -> None:
        number = await store.audit.append(record(items=(AuditItem("a\x00b", "\ud800" + "x" * 5000),)))
        (found,) = await store.audit.get([number])
        assert found.items[0].name == "a\ufffdb"
        assert len(found.items[0].about) == 2048

    async def test_records_are_kept_for_the_stated_time(self, store: Store) -> None:
        for number in range(3):
            await store.audit.append(record(number))
        assert await store.audit.count_before(NOW + HOUR) == 1
        assert await store.audit.prune(NOW + HOUR) == 1
        assert await store.audit.count_before(NOW + HOUR) == 0
        assert len(await store.audit.find(AuditFilter())) == 2

    async def test_waiting_ends_with_a_record(self, store: Store) -> None:
        waiting = asyncio.create_task(store.audit.wait(30))
        await asyncio.sleep(0)
        await store.audit.append(record())
        await asyncio.wait_for(waiting, 5)
        await store.audit.wait(0.001)

    async def test_it_survives_a_restart(self, url: str) -> None:
        async with opened(url) as first:
            number = await first.audit.append(record())
        async with opened(url) as second:
            assert [found.id for found in await second.audit.find(AuditFilter())] == [number]


class TestPruning:
    async def test_agents_that_are_over_go_and_the_others_stay(self, store: Store) -> None:
        old, month = NOW - timedelta(days=40), NOW - timedelta(days=30)
        for made in (
            agent("a1", not_after=old),
            agent("fresh"),
            agent("banned", not_after=old, banned=True),
            agent("renewed", not_after=old, pending_serial="2", pending_not_after=NOW),
            agent("cloud", not_after=old, attestation_type="first_use"),
            agent("again", not_after=old, attestation_type="psat", reattestable=True),
        ):
            await store.agents.upsert(made)
        await store.tokens.create("a1", NOW + HOUR, agent_id=entry("/alias").spiffe_id)
        assert (await store.entries.count()) == 1
        over = [AGENT, agent("again").id]
        assert await store.pruning.expired_agents(month) == over
        assert await store.pruning.expired_agents(month, first_use=True) == [AGENT, agent("cloud").id, over[1]]
        assert await store.pruning.delete_agents(month) == over
        assert await store.pruning.delete_agents(month) == []
        assert {made.id.path.rpartition("/")[2] for made in await store.agents.all()} == {
            "fresh",
            "banned",
            "renewed",
            "cloud",
        }
        assert (await store.entries.count()) == 0, "the alias goes with its agent"

    async def test_entries_past_their_end(self, store: Store) -> None:
        made = await store.entries.create(
            [entry("/a", id="a", expires_at=NOW), entry("/b", id="b", expires_at=NOW + HOUR), entry("/c", id="c")]
        )
        assert all(result.status is None for result in made)
        later = NOW + timedelta(seconds=1)
        assert await store.pruning.expired_entries(later) == ["a"]
        revision = await store.changes.revision()
        assert await store.pruning.delete_entries(later) == ["a"]
        assert (await store.changes.since(revision))[0].deleted
        assert await store.pruning.delete_entries(later) == []

    async def test_counts_are_what_the_writes_forget(self, store: Store) -> None:
        await store.tokens.create("t", NOW)
        await store.tokens.create("lately", NOW + HOUR)
        await store.entries.create([entry(f"/{number}") for number in range(5)])
        later = NOW + timedelta(days=7, seconds=1)
        assert await store.pruning.count_tokens(later) == await store.tokens.prune(later) == 1
        assert await store.changes.count_beyond(2) == await store.changes.compact(2) == 3
        assert await store.changes.count_beyond(2) == 0
