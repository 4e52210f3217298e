"""What the store promises of foreign bundles: exactly as given, paged, deleted together with what hangs on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ca.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.store.store import Store
from ca.store.values import DeleteMode
from tests.support.stores import BOTH, TD, entry, opened, url_of

FED, OTHER = TrustDomain("fed.org"), TrustDomain("other.org")
BUNDLE = TrustBundle(
    trust_domain=FED, x509_authorities=(X509Authority(certificate=b"a", tainted=True),), sequence_number=7
)


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as made:
        yield made


async def changes(store: Store, since: int = 0) -> list[tuple[str, str, bool]]:
    return [(c.kind, c.name, c.deleted) for c in await store.changes.since(since)]


async def test_sequence_numbers_are_the_foreign_domains_own(store: Store) -> None:
    assert await store.bundles.create(BUNDLE) == BUNDLE
    with pytest.raises(AlreadyExists, match="already exists"):
        await store.bundles.create(replace(BUNDLE, sequence_number=8))
    older = replace(BUNDLE, sequence_number=3, refresh_hint_seconds=60)
    assert await store.bundles.put(older) == older
    assert await store.bundles.get(FED) == older
    assert await store.bundles.put(older) == older  # no change: nothing is logged
    assert await store.bundles.put(TrustBundle(trust_domain=OTHER)) == TrustBundle(trust_domain=OTHER)
    assert await changes(store) == [("bundle", "fed.org", False)] * 2 + [("bundle", "other.org", False)]


async def test_alter_reads_and_writes_at_once(store: Store) -> None:
    with pytest.raises(NotFound, match="bundle not found"):
        await store.bundles.alter(FED, lambda bundle: bundle)
    await store.bundles.create(BUNDLE)
    after = await store.bundles.alter(FED, lambda bundle: replace(bundle, refresh_hint_seconds=11))
    assert after == replace(BUNDLE, refresh_hint_seconds=11) == await store.bundles.get(FED)
    with pytest.raises(InvalidArgument):
        await store.bundles.alter(FED, lambda _: TrustBundle(trust_domain=OTHER))


async def test_pages_are_full_although_one_bundle_is_left_out(store: Store) -> None:
    names = ["a.org", "b.org", TD.name, "c.org", "d.org", "e.org"]
    for name in names:
        await store.bundles.create(TrustBundle(trust_domain=TrustDomain(name)))
    found, token, pages = [], "", 0
    while True:
        page = await store.bundles.find(TD, 2, token)
        found += [bundle.trust_domain.name for bundle in page.items]
        pages += 1
        token = page.next_token
        if not token:
            break
    assert (found, pages) == (["a.org", "b.org", "c.org", "d.org", "e.org"], 3)
    assert len((await store.bundles.find(TD)).items) == 5
    with pytest.raises(InvalidArgument, match="page token"):
        await store.bundles.find(TD, 2, "junk")


class TestDelete:
    async def test_what_nobody_uses_goes_in_every_mode(self, store: Store) -> None:
        for mode in DeleteMode:
            await store.bundles.create(BUNDLE)
            assert await store.bundles.delete(FED, mode)
            assert not await store.bundles.delete(FED, mode)
            assert await store.bundles.get(FED) is None

    async def test_restrict(self, store: Store) -> None:
        await store.bundles.create(BUNDLE)
        await store.entries.create([entry("/a", federates_with=(FED,))])
        with pytest.raises(FailedPrecondition, match="federated with 1 registration entries"):
            await store.bundles.delete(FED)
        assert await store.bundles.get(FED) == BUNDLE

    async def test_dissociate_keeps_the_entries_and_tells_of_each(self, store: Store) -> None:
        await store.bundles.create(BUNDLE)
        await store.bundles.create(TrustBundle(trust_domain=OTHER))
        made = [
            result.entry
            for result in await store.entries.create(
                [entry("/a", federates_with=(FED, OTHER)), entry("/b", federates_with=(FED,)), entry("/c")]
            )
        ]
        both, only, plain = made
        assert both is not None
        assert only is not None
        assert plain is not None
        start = await store.changes.revision()
        assert await store.bundles.delete(FED, DeleteMode.DISSOCIATE)
        assert await changes(store, start) == [
            ("entry", both.id, False), ("entry", only.id, False), ("bundle", "fed.org", True),
        ]  # fmt: skip
        assert await store.entries.get(both.id) == replace(both, federates_with=(OTHER,), revision_number=1)
        assert await store.entries.get(only.id) == replace(only, federates_with=(), revision_number=1)
        assert await store.entries.get(plain.id) == plain
        await store.bundles.create(BUNDLE)  # and nothing of the old bond is left
        assert await store.bundles.delete(FED)

    async def test_delete_takes_the_entries_along(self, store: Store) -> None:
        await store.bundles.create(BUNDLE)
        results = await store.entries.create([entry("/a", federates_with=(FED,)), entry("/b")])
        gone, kept = (result.entry for result in results)
        assert gone is not None
        assert kept is not None
        start = await store.changes.revision()
        assert await store.bundles.delete(FED, DeleteMode.DELETE)
        assert await changes(store, start) == [("entry", gone.id, True), ("bundle", "fed.org", True)]
        assert await store.entries.all() == [kept]
        assert (await store.entries.create([entry("/a")]))[0].status is None
