"""Stores for tests: a URL per database, and short ways to make the values that go in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.store.store import Store
from ca.store.values import AttestedAgent
from tests.support import postgres
from tests.support.clock import FakeClock

TD = TrustDomain("example.org")
AGENT = SpiffeId(TD, "/spire/agent/join_token/a1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.real("PostgreSQL"))]
"""Parameters for a fixture that gives a store of each kind."""


@contextlib.contextmanager
def url_of(backend: str, directory: Path) -> Iterator[str]:
    """An empty database of that kind; a PostgreSQL one is skipped (or fails) where there is no server."""
    if backend == "sqlite":
        yield f"sqlite:///{directory}/store.sqlite3"
    else:
        with postgres.database() as url:
            yield url


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = await Store.open(url, clock=FakeClock(NOW))
    try:
        yield store
    finally:
        await store.close()


def selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(Selector.parse(text) for text in texts)


def entry(path: str, *with_selectors: str, **fields: object) -> RegistrationEntry:
    """Parent is `AGENT`, selector `t:v`, unless said otherwise."""
    base = RegistrationEntry(
        id="", spiffe_id=SpiffeId(TD, path), parent_id=AGENT, selectors=selectors(*(with_selectors or ("t:v",)))
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def agent(name: str = "a1", **fields: object) -> AttestedAgent:
    base = AttestedAgent(
        id=SpiffeId(TD, f"/spire/agent/join_token/{name}"),
        attestation_type="join_token",
        serial="1001",
        not_after=NOW + HOUR,
    )
    return replace(base, **fields)  # type: ignore[arg-type]
