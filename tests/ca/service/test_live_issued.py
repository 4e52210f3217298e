"""The index of what is alive: read once, then onwards, whatever the order in which two servers commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import pytest

from ca.service import live_issued
from ca.service.live_index import Holder
from ca.service.live_issued import SETTLE, LiveIssued
from ca.store.issuance_tail import IssuanceBatch
from ca.store.values import IssuanceRecord
from tests.ca.identity import forge
from tests.ca.service.guard_lab import HOUR, GuardLab, guard_lab


@pytest.fixture
async def lab() -> AsyncIterator[GuardLab]:
    async with guard_lab() as lab:
        yield lab


async def names(lab: GuardLab) -> list[str]:
    index = await lab.live.look()
    return sorted(live.entry_id for live in index.all(lab.clock.now()))


async def test_each_record_is_read_once(lab: GuardLab, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    read = lab.store.issuance_tail.records

    async def counted(ids: Sequence[int]) -> list[tuple[int, list[IssuanceRecord]]]:
        opened.extend(ids)
        return await read(ids)

    monkeypatch.setattr(lab.store.issuance_tail, "records", counted)
    for number in range(5):
        await lab.workload("n", f"e{number}")
        await names(lab)
        await lab.clock.advance(4)
    assert len(opened) == len(set(opened)) == 5
    assert await names(lab) == [f"e{number}" for number in range(5)]


async def test_batches_of_tokens_alone_are_counted_without_being_opened(
    lab: GuardLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(ids: Sequence[int]) -> list[tuple[int, list[IssuanceRecord]]]:
        assert not ids
        return []

    monkeypatch.setattr(lab.store.issuance_tail, "records", never)
    for _ in range(3):
        await lab.record("J", spiffe_id="spiffe://example.org/web", kind="jwt")
    tokens = (await lab.live.look()).tokens("J")
    assert tokens is not None
    assert tokens.number == 3
    await lab.clock.advance(3600)
    assert (await lab.live.look()).tokens("J") is None


async def test_a_long_log_is_read_page_by_page_and_whoever_gives_up_loses_nothing(
    lab: GuardLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_issued, "PAGE", 4)
    for number in range(9):
        await lab.workload("n", f"e{number}")
        await lab.record("J", spiffe_id="spiffe://example.org/web", kind="jwt")
    read = lab.store.issuance_tail.records
    pages: list[int] = []

    async def slow(ids: Sequence[int]) -> list[tuple[int, list[IssuanceRecord]]]:
        """One page at most gets done before the question is given up."""
        if ids:
            pages.append(len(ids))
        if ids and len(pages) % 2 == 0:
            await asyncio.sleep(3600)
        return await read(ids)

    monkeypatch.setattr(lab.store.issuance_tail, "records", slow)
    for _ in range(5):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await lab.live.look()
    assert len(pages) > 5
    assert max(pages) <= 4
    monkeypatch.setattr(lab.store.issuance_tail, "records", read)
    assert await names(lab) == [f"e{number}" for number in range(9)]
    tokens = (await lab.live.look()).tokens("J")
    assert tokens is not None
    assert tokens.number == 9, "each batch counts once"


async def test_the_loop_goes_on_while_a_log_is_indexed(lab: GuardLab) -> None:
    for number in range(50):
        await lab.workload("n", f"e{number}")
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    page = await lab.store.issuance_tail.batches(after=0, live_at=lab.clock.now(), limit=live_issued.PAGE)
    records = await lab.store.issuance_tail.records([batch.id for batch in page])

    class AtHand:
        """A log that answers at once, so that all turns are those that indexing gives."""

        async def batches(self, *, after: int, live_at: datetime, limit: int) -> list[IssuanceBatch]:
            return [batch for batch in page if batch.id > after][:limit]

        async def records(self, ids: Sequence[int]) -> list[tuple[int, list[IssuanceRecord]]]:
            return records

    live = LiveIssued(log=AtHand(), clock=lab.clock, token_keys=frozenset)  # type: ignore[arg-type]
    turns = 0
    assert len(await live.look()) == 50
    assert turns >= 50
    other.cancel()


class TwoServers:
    """A log in which a batch with a smaller number comes to light after one with a greater."""

    def __init__(self, lab: GuardLab) -> None:
        self.lab = lab
        self.shown: dict[int, tuple[datetime, IssuanceRecord]] = {}
        self.asked_after: list[int] = []

    def show(self, number: int, issuer: str) -> None:
        record = self.lab.one(issuer, "spiffe://example.org/web", "agent", "web", "x509", "", None)
        self.shown[number] = (self.lab.clock.now(), record)

    async def batches(self, *, after: int, live_at: datetime, limit: int) -> list[IssuanceBatch]:
        self.asked_after.append(after)
        assert limit >= len(self.shown)
        return [
            IssuanceBatch(id=n, recorded_at=at, count=1, last_not_after=r.not_after, authorities=(r.authority_id,))
            for n, (at, r) in sorted(self.shown.items())
            if n > after
        ]

    async def records(self, ids: Sequence[int]) -> list[tuple[int, list[IssuanceRecord]]]:
        return [(number, [self.shown[number][1]]) for number in sorted(ids)]


async def test_a_batch_that_comes_to_light_late_is_seen_and_is_not_taken_for_the_later_one(lab: GuardLab) -> None:
    log = TwoServers(lab)
    live = LiveIssued(log=log, clock=lab.clock, token_keys=frozenset)  # type: ignore[arg-type]
    log.show(2, "B")
    assert [one.authority_id for one in (await live.look()).all(lab.clock.now())] == [lab.id("B")]
    log.show(1, "A")
    index = await live.look()
    assert [one.authority_id for one in index.all(lab.clock.now())] == [lab.id("B")]
    await lab.clock.advance(SETTLE / timedelta(seconds=1))
    await live.look()
    await live.look()
    assert log.asked_after == [0, 0, 0, 2]


async def test_of_several_authorities_in_a_row_each_last_svid_counts_until_its_end(lab: GuardLab) -> None:
    lab.roots["C"] = forge.root("C")
    end = lab.clock.now() + 2 * HOUR
    await lab.workload("n", "web", "A", end=end)
    await lab.workload("n", "web", "C")
    await lab.workload("n", "web", "B")
    index = await lab.live.look()
    now = lab.clock.now()
    assert [one.live.authority_id for one in index.superseded({lab.id("A")}, now)] == [lab.id("A")]
    assert [one.live.authority_id for one in index.superseded({lab.id("C")}, now)] == [lab.id("C")]
    assert index.superseded({lab.id("B")}, now) == []
    await lab.clock.advance(3601)
    index = await lab.live.look()
    assert [one.live.not_after for one in index.superseded({lab.id("A"), lab.id("C")}, lab.clock.now())] == [end]
    await lab.clock.advance(3600)
    assert len(await lab.live.look()) == 0


async def test_a_servers_root_is_nobodys_svid(lab: GuardLab) -> None:
    await lab.record("A", spiffe_id="spiffe://example.org", kind="ca")
    await lab.record("A", spiffe_id="spiffe://example.org/x")
    assert [live.holder for live in (await lab.live.look()).all(lab.clock.now())] == [Holder.MINTED]


async def test_what_ends_is_forgotten_also_when_it_came_after_what_lasts_longer(lab: GuardLab) -> None:
    """The index is looked through only when something may have ended."""
    begun = lab.clock.now()
    ends = {"long": 10 * HOUR, "short": HOUR, "middle": 2 * HOUR}
    for entry, life in ends.items():
        await lab.workload("n", entry, end=begun + life)
    assert len(await lab.live.look()) == 3
    await lab.clock.advance(HOUR.total_seconds())
    assert len(await lab.live.look()) == 2
    await lab.workload("n", "late", end=lab.clock.now() + HOUR / 2)
    await lab.record("J", spiffe_id="spiffe://example.org/web", kind="jwt", end=lab.clock.now() + HOUR / 4)
    assert (await lab.live.look()).tokens("J") is not None
    await lab.clock.advance(HOUR.total_seconds() / 4)
    index = await lab.live.look()
    assert (len(index), index.tokens("J")) == (3, None)
    await lab.clock.advance(HOUR.total_seconds())
    assert await names(lab) == ["long"]
    assert len(await lab.live.look()) == 1
