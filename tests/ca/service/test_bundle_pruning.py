"""Expired authorities leave our own bundle a day after their end."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ca.errors import AlreadyExists
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.certificate import load_certificate
from ca.service.authority_values import append
from ca.service.bundle_pruning import KEPT, BundlePruning, pruned
from tests.ca.api.test_own_bundle import a_root
from tests.support.clock import FakeClock
from tests.support.stores import TD, opened

ROOT = a_root()
END = load_certificate(ROOT).not_valid_after_utc


def bundle() -> TrustBundle:
    keys = (
        JwtAuthority(key_id="soon", public_key=b"a", expires_at=END),
        JwtAuthority(key_id="later", public_key=b"b", expires_at=END + timedelta(hours=1)),
        JwtAuthority(key_id="never", public_key=b"c"),
    )
    return TrustBundle(
        trust_domain=TD, x509_authorities=(X509Authority(certificate=ROOT),), jwt_authorities=keys, sequence_number=1
    )


def test_what_is_over() -> None:
    assert pruned(bundle(), END - timedelta(seconds=1)) == bundle()
    after = pruned(bundle(), END)
    assert (after.x509_authorities, [k.key_id for k in after.jwt_authorities]) == ((), ["later", "never"])


async def test_it_happens_by_the_clock(tmp_path: Any) -> None:
    clock, caught_up = FakeClock(END), []

    async def catch_up() -> None:
        caught_up.append(1)

    async with opened(f"sqlite:///{tmp_path}/s.sqlite3") as store:
        follower: Any = SimpleNamespace(catch_up=catch_up)
        pruning = BundlePruning(store=store, trust_domain=TD, follower=follower, clock=clock)
        await pruning.once()  # there is no bundle yet
        await store.bundles.set(bundle())
        await pruning.once()
        assert await store.bundles.get(TD) == bundle()
        assert not caught_up
        await clock.advance(KEPT.total_seconds())
        await pruning.once()
        left = await store.bundles.get(TD)
        assert left is not None
        assert [key.key_id for key in left.jwt_authorities] == ["later", "never"]
        assert (left.x509_authorities, left.sequence_number, caught_up) == ((), 2, [1])


def test_append_keeps_what_is_there() -> None:
    before = bundle()
    tainted = X509Authority(certificate=ROOT, tainted=True)
    same = JwtAuthority(key_id="soon", public_key=b"a", tainted=True)
    assert append(before, [tainted], [same]) == before
    with pytest.raises(AlreadyExists):
        append(before, [], [JwtAuthority(key_id="soon", public_key=b"z")])
    more = append(before, [], [JwtAuthority(key_id="new", public_key=b"z")])
    assert [key.key_id for key in more.jwt_authorities] == ["soon", "later", "never", "new"]
