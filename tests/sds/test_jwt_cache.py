from __future__ import annotations

import asyncio

import pytest

from ca.errors import Denied, Unavailable
from sds.jwt_cache import JwtCache, key_id
from sds.limits import LimitsConfig
from tests.sds.lab import Authority, FakeServer, entry
from tests.support.clock import FakeClock


class World:
    def __init__(self, limit: int = 1000) -> None:
        self.clock = FakeClock()
        self.entries = {"a": entry("a"), "b": entry("b"), "j": entry("j", jwt_svid_include_jti=True)}
        self.server = FakeServer(Authority(now=self.clock.now()), self.clock, self.entries.get)
        self.cache = JwtCache(issuer=self.server, clock=self.clock, limits=LimitsConfig(max_jwt_svids=limit))

    async def get(self, entry_id: str, *audience: str) -> str:
        return await self.cache.get(self.entries[entry_id], audience)


async def test_one_token_for_each_entry_and_audience_set():
    world = World()
    token = await world.get("a", "x", "y")
    assert await world.get("a", "y", "x") == token
    assert await world.get("a", "x") != token
    assert await world.get("b", "x", "y") != token
    assert world.server.jwts_asked == [("a", ("x", "y")), ("a", ("x",)), ("b", ("x", "y"))]


async def test_a_fresh_token_is_served_at_once_while_the_server_is_silent():
    world = World()
    token = await world.get("a", "x")
    world.server.silent = True
    world.clock.jump(200)  # past half of its life: the renewal hangs, the caller does not
    async with asyncio.timeout(0.1):
        assert await world.get("a", "x") == token
    world.cache.close()


async def test_a_token_is_renewed_at_half_of_its_life_behind_the_callers_back():
    world = World()
    token = await world.get("a", "x")
    world.clock.jump(149)
    assert await world.get("a", "x") == token
    assert len(world.server.jwts_asked) == 1
    world.clock.jump(1)
    assert await world.get("a", "x") == token
    await asyncio.sleep(0.01)
    assert await world.get("a", "x") != token
    assert len(world.server.jwts_asked) == 2


async def test_an_expired_token_is_never_served():
    world = World()
    await world.get("a", "x")
    world.server.down = True
    world.clock.jump(300)
    with pytest.raises(Unavailable) as refused:
        await world.get("a", "x")
    assert refused.value.reason == "JWT_SVID_UNAVAILABLE"


async def test_a_server_that_fails_is_not_asked_at_every_call():
    world = World()
    token = await world.get("a", "x")
    world.server.down = True
    world.clock.jump(200)
    assert await world.get("a", "x") == token
    await asyncio.sleep(0.01)
    world.server.down = False
    assert await world.get("a", "x") == token
    await asyncio.sleep(0.01)
    assert len(world.server.jwts_asked) == 1
    await world.clock.advance(1)
    assert await world.get("a", "x") == token
    await asyncio.sleep(0.01)
    assert len(world.server.jwts_asked) == 2


async def test_callers_at_the_same_time_share_one_request():
    world = World()
    tokens = await asyncio.gather(*(world.get("a", "x") for _ in range(50)))
    assert len(set(tokens)) == 1
    assert len(world.server.jwts_asked) == 1


async def test_one_caller_that_hangs_up_does_not_take_the_others_token_away():
    world = World()
    first = asyncio.create_task(world.get("a", "x"))
    second = asyncio.create_task(world.get("a", "x"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second


async def test_an_entry_that_promises_a_jti_gets_a_new_token_each_time():
    world = World()
    assert await world.get("j", "x") != await world.get("j", "x")
    assert len(world.cache) == 0


async def test_a_changed_entry_is_not_served_the_old_token():
    world = World()
    token = await world.get("a", "x")
    world.entries["a"] = entry("a", revision_number=1)
    assert await world.get("a", "x") != token


async def test_a_refusal_reaches_the_caller():
    world = World()
    world.server.refuse = {"a"}
    with pytest.raises(Denied):
        await world.get("a", "x")


async def test_the_least_recently_used_goes_first():
    world = World(limit=2)
    first = await world.get("a", "1")
    await world.get("a", "2")
    assert await world.get("a", "1") == first
    await world.get("a", "3")
    assert len(world.cache) == 2
    assert await world.get("a", "1") == first
    assert len(world.server.jwts_asked) == 3


async def test_tokens_of_removed_entries_are_forgotten():
    world = World()
    await world.get("a", "x")
    kept = await world.get("b", "x")
    world.cache.forget(frozenset({"a"}))
    assert len(world.cache) == 1
    assert await world.get("b", "x") == kept
    world.cache.retain(frozenset({"b"}))
    assert len(world.cache) == 1
    world.cache.retain(frozenset())
    assert len(world.cache) == 0


async def test_tokens_of_a_tainted_key_are_forgotten():
    world = World()
    await world.get("a", "x")
    old = world.server.authority
    world.server.authority = Authority(now=world.clock.now())
    new = await world.get("b", "x")
    world.cache.trust(frozenset({old.kid, world.server.authority.kid}))
    assert len(world.cache) == 2
    world.cache.trust(frozenset({world.server.authority.kid}))
    assert len(world.cache) == 1
    assert await world.get("b", "x") == new
    assert key_id(await world.get("a", "x")) == world.server.authority.kid


@pytest.mark.parametrize("token", ["", "a.b.c", "e30.e30.", "W10.."])
def test_what_is_no_token_has_no_key_id(token: str):
    assert key_id(token) == ""


async def test_endless_audiences_of_one_workload_push_out_its_own_tokens_only():
    world = World()
    world.cache = JwtCache(
        issuer=world.server, clock=world.clock, limits=LimitsConfig(max_jwt_svids=10, max_jwt_svids_per_workload=5)
    )
    for number in range(3):
        await world.cache.get(world.entries["b"], [f"n{number}"], share="neighbour")
    for number in range(50):
        await world.cache.get(world.entries["a"], [f"h{number}"], share="hostile")
    assert len(world.cache) == 8
    asked = len(world.server.jwts_asked)
    for number in range(3):
        await world.cache.get(world.entries["b"], [f"n{number}"], share="neighbour")
    await world.cache.get(world.entries["a"], ["h49"], share="hostile")
    assert len(world.server.jwts_asked) == asked  # all of them were held


async def test_over_the_total_whoever_has_most_gives_way():
    world = World()
    world.cache = JwtCache(
        issuer=world.server, clock=world.clock, limits=LimitsConfig(max_jwt_svids=6, max_jwt_svids_per_workload=5)
    )
    for number in range(5):
        await world.cache.get(world.entries["a"], [f"h{number}"], share="much")
    for number in range(3):
        await world.cache.get(world.entries["b"], [f"n{number}"], share="little")
    assert len(world.cache) == 6
    asked = len(world.server.jwts_asked)
    for number in range(3):
        await world.cache.get(world.entries["b"], [f"n{number}"], share="little")
    assert len(world.server.jwts_asked) == asked


async def test_the_server_is_asked_in_turns():
    world = World()
    limits = LimitsConfig(max_jwt_requests=3, max_jwt_requests_per_workload=2)
    world.cache = JwtCache(issuer=world.server, clock=world.clock, limits=limits)
    world.server.silent = True
    hostile = [
        asyncio.create_task(world.cache.get(world.entries["a"], [f"h{number}"], share="hostile"))
        for number in range(20)
    ]
    await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    world.server.silent = False  # for whoever asks from now on
    token = await asyncio.wait_for(world.cache.get(world.entries["b"], ["n"], share="neighbour"), 2)
    assert token
    assert [entry_id for entry_id, _ in world.server.jwts_asked] == ["b"]  # two hang, eighteen wait their turn
    world.cache.close()
    await asyncio.gather(*hostile, return_exceptions=True)
