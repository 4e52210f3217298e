"""Evidence that serves once, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ca.errors import Denied
from ca.store.store import Store
from ca.store.used_evidence import CLOCKS_APART
from tests.support.stores import BOTH, HOUR, NOW, opened, url_of


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as made:
        yield made


async def test_it_serves_once(store: Store) -> None:
    await store.evidence.use("oidc", "a", NOW + HOUR, now=NOW)
    await store.evidence.use("oidc", "b", NOW + HOUR, now=NOW)
    await store.evidence.use("other", "a", NOW + HOUR, now=NOW)
    for _ in range(2):
        with pytest.raises(Denied) as caught:
            await store.evidence.use("oidc", "a", NOW + HOUR, now=NOW)
        assert caught.value.reason == "EVIDENCE_USED"


async def test_of_many_at_once_one_comes_through(store: Store) -> None:
    uses = (store.evidence.use("oidc", "a", NOW + HOUR, now=NOW) for _ in range(20))
    outcomes = await asyncio.gather(*uses, return_exceptions=True)
    assert [outcome for outcome in outcomes if not isinstance(outcome, Denied)] == [None]


async def test_the_same_key_may_come_again_for_a_while(store: Store) -> None:
    key, other = b"k" * 32, b"o" * 32
    await store.evidence.use("oidc", "a", NOW + HOUR, now=NOW, key_sha256=key)
    await store.evidence.use("oidc", "a", NOW + HOUR, now=NOW + timedelta(minutes=4), key_sha256=key)
    for now, by in ((NOW, other), (NOW, None), (NOW + timedelta(minutes=6), key)):
        with pytest.raises(Denied):
            await store.evidence.use("oidc", "a", NOW + HOUR, now=now, key_sha256=by)


async def test_what_has_ended_is_forgotten(store: Store) -> None:
    await store.evidence.use("oidc", "a", NOW + HOUR, now=NOW)
    await store.evidence.use("oidc", "a", NOW + 2 * HOUR, now=NOW + HOUR + CLOCKS_APART + timedelta(seconds=1))


async def test_what_has_ended_by_the_clock_of_one_server_is_not_forgotten_yet(store: Store) -> None:
    """Another one's, which is behind, may find that it holds still."""
    await store.evidence.use("oidc", "a", NOW + HOUR, now=NOW)
    await store.evidence.use("oidc", "b", NOW + 2 * HOUR, now=NOW + HOUR + timedelta(seconds=30))
    assert await store.evidence.prune(NOW + HOUR + timedelta(seconds=30)) == 0
    with pytest.raises(Denied):
        await store.evidence.use("oidc", "a", NOW + HOUR, now=NOW + HOUR - timedelta(seconds=1))


async def test_pruning_forgets_what_has_ended_and_nothing_else(store: Store) -> None:
    now = NOW
    for minutes in (1, 2, 3):
        await store.evidence.use("oidc", str(minutes), now + timedelta(minutes=minutes), now=now)
    later = now + timedelta(minutes=2, seconds=1) + CLOCKS_APART
    assert await store.evidence.count_over(later) == 2
    assert [await store.evidence.prune(moment) for moment in (now, later, later)] == [0, 2, 0]
    with pytest.raises(Denied):
        await store.evidence.use("oidc", "3", now + timedelta(minutes=3), now=later)
