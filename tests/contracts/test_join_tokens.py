"""Join tokens in both databases: named, counted, expiring, and ended by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from ca.errors import AlreadyExists, BurgeeError, Denied, NotFound
from ca.identity.spiffe_id import SpiffeId
from ca.ports import JoinToken
from ca.store.store import Store
from tests.support.stores import BOTH, HOUR, NOW, TD, agent, entry, opened, selectors, url_of

VALUE = "a-token-for-five"
ALIAS = SpiffeId(TD, "/fleet")


@pytest.fixture(params=BOTH)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    with url_of(request.param, tmp_path) as url:
        async with opened(url) as made:
            yield made


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def refused(store: Store, value: str = VALUE, **how: bytes) -> str:
    with pytest.raises(Denied) as refusal:
        await store.tokens.consume(value, NOW, key_sha256=how.get("key", key(99)))
    return refusal.value.reason


async def test_twenty_at_once_get_five_uses_and_each_its_own_name(store: Store) -> None:
    await store.tokens.create(VALUE, NOW + HOUR, uses=5)
    calls = (store.tokens.consume(VALUE, NOW, key_sha256=key(n)) for n in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    won = [outcome for outcome in outcomes if isinstance(outcome, JoinToken)]
    own = store.tokens.id_of(VALUE)
    assert sorted(token.name for token in won) == [f"{own}/{n}" for n in range(1, 6)]
    lost = [outcome for outcome in outcomes if isinstance(outcome, BurgeeError)]
    assert [error.reason for error in lost] == ["JOIN_TOKEN_UNKNOWN"] * 15
    [known] = await store.tokens.list()
    assert (known.used, known.uses, known.used_by) == (5, 5, f"/spire/agent/join_token/{own}/5")


async def test_a_lost_answer_is_no_other_use(store: Store) -> None:
    await store.tokens.create(VALUE, NOW + timedelta(minutes=1), uses=2)
    names = {(await store.tokens.consume(VALUE, NOW, key_sha256=key(1))).name for _ in range(10)}
    assert len(names) == 1
    late = NOW + timedelta(minutes=5)
    assert {(await store.tokens.consume(VALUE, late, key_sha256=key(1))).name} == names, "it has expired meanwhile"
    other = await store.tokens.consume(VALUE, NOW, key_sha256=key(2))
    assert other.name not in names
    assert await refused(store, key=key(3)) == "JOIN_TOKEN_UNKNOWN"
    assert {(await store.tokens.consume(VALUE, NOW, key_sha256=key(1))).name} == names, "though it is used up"
    with pytest.raises(Denied):
        await store.tokens.consume(VALUE, late + timedelta(microseconds=1), key_sha256=key(1))


async def test_a_partly_used_token_expires(store: Store) -> None:
    await store.tokens.create(VALUE, NOW - timedelta(microseconds=1), uses=2)
    assert await refused(store) == "JOIN_TOKEN_EXPIRED"
    [known] = await store.tokens.list()
    assert (known.used, known.used_at) == (0, None)


async def test_a_name_is_unique_among_those_that_serve(store: Store) -> None:
    await store.tokens.create("first", NOW + HOUR, name="web")
    with pytest.raises(AlreadyExists) as refusal:
        await store.tokens.create("second", NOW + HOUR, name="web")
    assert refusal.value.reason == "JOIN_TOKEN_NAME_TAKEN"
    await store.tokens.consume("first", NOW, key_sha256=key(1))  # used up
    await store.tokens.create("second", NOW - timedelta(seconds=1), name="web")  # expired already
    await store.tokens.create("third", NOW + HOUR, name="web")
    assert (await store.tokens.revoke("web", NOW)).id == store.tokens.id_of("third")
    await store.tokens.create("fourth", NOW + HOUR, name="web")
    assert [token.name for token in await store.tokens.list()] == ["web"] * 4


@pytest.mark.parametrize("by", ["name", "id"])
async def test_a_revoked_token_serves_nobody(store: Store, by: str) -> None:
    await store.tokens.create(VALUE, NOW + HOUR, name="web", uses=3)
    await store.tokens.consume(VALUE, NOW, key_sha256=key(1))
    own = store.tokens.id_of(VALUE)
    ended = await store.tokens.revoke("web" if by == "name" else own, NOW)
    assert (ended.id, ended.revoked, ended.used, ended.uses) == (own, True, 1, 3)
    assert await store.tokens.list() == [ended]
    assert await refused(store) == await refused(store, key=key(1)) == "JOIN_TOKEN_REVOKED"
    for name in ("web", own, "unheard-of"):
        with pytest.raises(NotFound) as nothing:
            await store.tokens.revoke(name, NOW)
        assert nothing.value.reason == "JOIN_TOKEN_NOT_FOUND"


async def test_who_revokes_a_token_of_one_use_ends_its_alias_too(store: Store) -> None:
    await store.tokens.create("one", NOW + HOUR, ALIAS, name="one")
    await store.tokens.create("two", NOW + HOUR, ALIAS, name="two")
    await store.tokens.revoke("one", NOW)
    [left] = await store.entries.all()
    assert left.parent_id.path == "/spire/agent/join_token/two"


async def test_each_use_gets_the_alias_and_no_entry_names_the_token(store: Store) -> None:
    await store.tokens.create(VALUE, NOW + HOUR, ALIAS, uses=3)
    assert await store.entries.all() == []
    for number in (1, 1, 2):
        used = await store.tokens.consume(VALUE, NOW, key_sha256=key(number))
        assert used.agent_id == ALIAS
    made = sorted(await store.entries.all(), key=lambda e: e.parent_id.path)
    own = f"spiffe://{TD.name}/spire/agent/join_token/{store.tokens.id_of(VALUE)}"
    assert [str(e.parent_id) for e in made] == [f"{own}/1", f"{own}/2"]
    assert [e.selectors for e in made] == [selectors(f"spiffe_id:{own}/{n}") for n in (1, 2)]
    assert VALUE not in str(made)


async def test_an_evicted_agent_needs_another_use(store: Store) -> None:
    await store.tokens.create(VALUE, NOW + HOUR, ALIAS, uses=2)
    first = await store.tokens.consume(VALUE, NOW, key_sha256=key(1))
    gone = SpiffeId.of(TD, f"/spire/agent/join_token/{first.name}")
    await store.agents.upsert(agent(first.name))
    await store.entries.create([entry("/w", "t:v")])
    await store.agents.delete(gone)
    assert [e.spiffe_id.path for e in await store.entries.all()] == ["/w"]
    again = await store.tokens.consume(VALUE, NOW, key_sha256=key(1))
    assert again.name == f"{store.tokens.id_of(VALUE)}/2"


async def test_uses_are_forgotten_with_their_token(store: Store) -> None:
    await store.tokens.create(VALUE, NOW + HOUR, uses=2)
    await store.tokens.create("kept", NOW + timedelta(days=1), uses=2)
    for value in (VALUE, "kept"):
        await store.tokens.consume(value, NOW, key_sha256=key(1))
    with pytest.raises(AlreadyExists):  # its agents' names must never be another's
        await store.tokens.create(VALUE, NOW + HOUR, uses=2)
    soon = NOW + HOUR + timedelta(days=7, seconds=1)
    assert await store.pruning.count_tokens(soon) == await store.tokens.prune(soon) == 1
    [kept] = await store.tokens.list()
    assert (kept.id, kept.used) == (store.tokens.id_of("kept"), 1)
    await store.tokens.create(VALUE, NOW + HOUR, uses=2)
    assert (await store.tokens.consume(VALUE, NOW, key_sha256=key(2))).name.endswith("/1")
