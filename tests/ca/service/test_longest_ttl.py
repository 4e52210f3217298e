"""The longest life of what an authority signs, which its successor's patience counts from."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ca.authority.state import AuthorityKind
from ca.identity.spiffe_id import TrustDomain
from ca.service.issuance import IssueSettings
from ca.service.longest_ttl import LongestTtls
from tests.support.stores import BOTH, entry, opened, url_of

SETTINGS = IssueSettings(
    trust_domain=TrustDomain("example.org"),
    server="s",
    x509_svid_ttl_seconds=3600,
    jwt_svid_ttl_seconds=300,
    agent_ttl_seconds=1800,
    backdate_seconds=10,
)
X509, JWT = AuthorityKind.X509, AuthorityKind.JWT


@pytest.mark.parametrize("backend", BOTH)
async def test_of_defaults_agents_and_entries_but_no_longer_than_is_kept(backend: str, tmp_path: Path) -> None:
    settings = SETTINGS
    with url_of(backend, tmp_path) as url:
        async with opened(url) as store:
            longest = LongestTtls(entries=store.entries, settings=lambda: settings, ca_ttl_seconds=86_400)
            assert await store.entries.longest_ttls() == (0, 0)
            assert await longest(X509) == timedelta(seconds=3600)
            assert await longest(JWT) == timedelta(seconds=300)
            settings = replace(SETTINGS, agent_ttl_seconds=7200)
            assert await longest(X509) == timedelta(seconds=7200)
            await store.entries.create(
                [
                    entry("/a", "t:a", x509_svid_ttl_seconds=10_000, jwt_svid_ttl_seconds=600),
                    entry("/b", "t:b", x509_svid_ttl_seconds=60),
                ]
            )
            assert await longest(X509) == timedelta(seconds=10_000)
            assert await longest(JWT) == timedelta(seconds=600)
            await store.entries.create([entry("/c", "t:c", x509_svid_ttl_seconds=10**6)])
            assert await longest(X509) == timedelta(seconds=14_400), "the rest is cut off in any case"
