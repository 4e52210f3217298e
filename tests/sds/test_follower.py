from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ca.errors import FailedPrecondition
from ca.identity.spiffe_id import SpiffeId
from ca.runtime.config import from_values
from sds.config import AgentConfig
from sds.envoy_status import SdsClients
from sds.feed import BUNDLE, ENTRY, POLICY, Change, Consumers, ResumeToken, Snapshot
from sds.follower import Follower, Keeper, follow_with
from sds.policy_read import NEWCOMER
from sds.state import AgentStore, open_store
from tests.sds.lab import PARENT, TD, Authority, Lab, entry, eventually
from tests.support.clock import FakeClock
from tests.support.policy_node import authorization, policy_set


class World:
    """A lab whose cache follows a feed and is kept in a store."""

    def __init__(self, store: AgentStore, lab: Lab) -> None:
        self.lab = lab
        self.follower = Follower(cache=lab.cache, clients=SdsClients(), clock=lab.clock)
        self.follower.follows.append(follow_with(lab.rotator, lab.jwts, TD))
        self.keeper = Keeper(store=store, cache=lab.cache, follower=self.follower, clock=lab.clock)

    def snapshot(self, *entries: Any, revision: int = 1) -> None:
        bundles = (self.lab.authority.bundle(),)
        self.follower.on_snapshot(Snapshot(token=ResumeToken("e", revision), entries=entries, bundles=bundles))


@pytest.fixture
def store(tmp_path: Path) -> AgentStore:
    values = {
        "trust_domain": "example.org",
        "data_dir": str(tmp_path / "agent"),
        "servers": ["127.0.0.1:1"],
        "trust": {"insecure_bootstrap": True},
        "node_attestor": {"join_token": {"token": "t"}},
        "cache": {"directory": str(tmp_path / "cache")},
    }
    return open_store(from_values(values, AgentConfig))


@pytest.fixture
async def lab():
    lab = Lab(clock=FakeClock())
    yield lab
    await lab.keys.close()


async def restarted(store: AgentStore, lab: Lab) -> World:
    """Another process with the same store, clock and server."""
    return World(store, Lab(clock=lab.clock))


async def test_the_resume_token_follows_what_was_applied(store: AgentStore, lab: Lab):
    world = World(store, lab)
    assert world.follower.token == ResumeToken()
    world.snapshot(entry("a"))
    assert world.follower.token == ResumeToken("e", 1)
    assert world.follower.last_sync_at == lab.clock.now()
    world.follower.on_change(Change(token=ResumeToken("e", 2), removed_entries=("a",)))
    assert world.follower.token == ResumeToken("e", 2)
    assert lab.cache.entries() == []
    assert world.follower.held(BUNDLE).consumers == Consumers(0, 0)


async def test_a_restart_serves_what_is_still_valid_and_resumes(store: AgentStore, lab: Lab):
    world = World(store, lab)
    world.keeper.belongs_to(PARENT)
    world.snapshot(entry("a"), entry("b", x509_svid_ttl_seconds=60), revision=7)
    await lab.rotator.round()
    await world.keeper.save()
    lab.clock.jump(100)  # type: ignore[attr-defined]
    again = await restarted(store, lab)
    assert again.keeper.load(PARENT)
    assert again.follower.token == ResumeToken("e", 7)
    before, after = lab.cache.svid("a"), again.lab.cache.svid("a")
    assert before is not None
    assert after is not None
    assert (after.chain, after.key, after.not_after, after.asked) == (
        before.chain,
        before.key,
        before.not_after,
        before.asked,
    )
    assert again.lab.cache.svid("b") is None  # expired meanwhile
    await again.lab.rotator.round()
    assert "a" not in again.lab.server.asked
    await again.lab.keys.close()


async def test_what_an_entry_no_longer_says_is_served_and_renewed(store: AgentStore, lab: Lab):
    world = World(store, lab)
    world.keeper.belongs_to(PARENT)
    world.snapshot(entry("a"))
    await lab.rotator.round()
    changed = replace(entry("a"), dns_names=("new.example.org",), revision_number=1)
    world.follower.on_change(Change(token=ResumeToken("e", 2), entries=(changed,)))
    await world.keeper.save()
    again = await restarted(store, lab)
    assert again.keeper.load(PARENT)
    again.lab.authority, again.lab.server.authority = lab.authority, lab.authority
    assert again.lab.cache.svid("a") is not None
    await again.lab.rotator.round()
    assert again.lab.server.asked == ["a"]
    await again.lab.keys.close()


async def test_another_agents_cache_is_not_taken_over(store: AgentStore, lab: Lab):
    world = World(store, lab)
    world.keeper.belongs_to(PARENT)
    world.snapshot(entry("a"))
    await world.keeper.save()
    again = await restarted(store, lab)
    assert not again.keeper.load(SpiffeId(TD, "/spire/agent/join_token/other"))
    assert not again.lab.cache.ready


async def test_nothing_is_saved_for_nobody(store: AgentStore, lab: Lab):
    world = World(store, lab)
    world.snapshot(entry("a"))
    await world.keeper.save()
    world.keeper.belongs_to(PARENT)
    await world.keeper.save()
    world.keeper.belongs_to(None)
    store.erase()
    world.snapshot(entry("b"))
    await world.keeper.save()
    assert store.load_feed(PARENT) is None


async def test_changes_are_saved_soon(store: AgentStore, lab: Lab):
    import asyncio

    world = World(store, lab)
    world.keeper.belongs_to(PARENT)
    runner = asyncio.create_task(world.keeper.run())
    world.snapshot(entry("a"))
    try:
        for _ in range(500):
            await lab.clock.advance(1)  # type: ignore[attr-defined]
            saved = store.load_feed(PARENT)
            if saved is not None:
                break
            await asyncio.sleep(0.01)
        assert saved is not None
        assert [e.id for e in saved.entries] == ["a"]
    finally:
        runner.cancel()


async def test_a_push_makes_the_rotator_try_again(store: AgentStore, lab: Lab):
    world = World(store, lab)
    lab.server.refuse = {"a"}
    world.snapshot(entry("a"))
    await lab.rotator.round()
    assert lab.rotator.failure("a") == "ENTRY_NOT_AUTHORIZED"
    lab.server.refuse = set()
    changed = replace(entry("a"), revision_number=1)
    world.follower.on_change(Change(token=ResumeToken("e", 2), entries=(changed,)))
    await lab.rotator.round()
    assert lab.cache.svid("a") is not None


async def test_a_new_root_lets_held_leaves_pass(store: AgentStore, lab: Lab):
    world = World(store, lab)
    old, new = lab.authority, Authority(now=lab.clock.now())
    lab.server.authority = new
    world.snapshot(entry("a"))
    await lab.rotator.round()
    assert lab.rotator.failure("a") == "SVID_UNTRUSTED"
    world.follower.on_change(Change(token=ResumeToken("e", 2), bundles=(old.bundle(new),)))
    await lab.rotator.round()
    assert lab.cache.svid("a") is not None


async def test_tokens_of_removed_entries_are_forgotten(store: AgentStore, lab: Lab):
    world = World(store, lab)
    world.snapshot(entry("a"), entry("b"))
    await lab.jwts.get(entry("a"), ["x"])
    await lab.jwts.get(entry("b"), ["x"])
    world.follower.on_change(Change(token=ResumeToken("e", 2), removed_entries=("a",)))
    assert len(lab.jwts) == 1
    world.snapshot(entry("b"))
    assert len(lab.jwts) == 1
    world.snapshot()
    assert len(lab.jwts) == 0


async def test_tokens_of_a_tainted_key_are_forgotten(store: AgentStore, lab: Lab):
    world = World(store, lab)
    world.snapshot(entry("a"))
    await lab.jwts.get(entry("a"), ["x"])
    tainted = lab.authority.bundle()
    key = replace(tainted.jwt_authorities[0], tainted=True)
    bundle = replace(tainted, jwt_authorities=(key,))
    world.follower.on_change(Change(token=ResumeToken("e", 2), bundles=(bundle,)))
    assert len(lab.jwts) == 0


async def test_a_server_that_is_polled_names_no_policies_and_who_is_new_there_has_none(
    store: AgentStore, lab: Lab
) -> None:
    """What came when it pushed stays in force, and lets nobody to a workload of which it was not told."""
    world = World(store, lab)
    held, bundles = world.follower.policies, (lab.authority.bundle(),)
    one = policy_set(1, authorization("open", "root", rules=[{}]))
    running = asyncio.create_task(held.run())

    def unknown(name: str) -> str:
        assert held.in_force is not None
        return held.in_force.matched(f"spiffe://{TD}/{name}", ()).unknown

    try:
        world.follower.on_snapshot(
            Snapshot(token=ResumeToken("e", 1), entries=(entry("a"),), bundles=bundles, policies=one)
        )
        await eventually(lambda: held.in_force is not None)
        both = (entry("a"), entry("b"))
        world.follower.on_snapshot(Snapshot(token=ResumeToken("", 2), entries=both, bundles=bundles))
        assert (held.polled, held.revision, unknown("a"), unknown("b")) == (True, 1, "", NEWCOMER)
        world.follower.on_change(Change(token=ResumeToken("e", 3), policies=one))  # it pushes again, and it is the same
        await eventually(lambda: not unknown("b"))
        assert not held.polled
    finally:
        running.cancel()


async def test_policies_are_taken_in_kept_by_a_server_that_names_none_and_forgotten_with_a_ban(
    store: AgentStore, lab: Lab, monkeypatch: pytest.MonkeyPatch
):
    world = World(store, lab)
    held, one, two = world.follower.policies, policy_set(1), policy_set(2)
    assert world.follower.kinds == (ENTRY, BUNDLE)
    world.keeper.belongs_to(PARENT)
    bundles = (lab.authority.bundle(),)
    world.follower.on_snapshot(Snapshot(token=ResumeToken("e", 1), bundles=bundles, policies=one))
    assert (held.revision, world.follower.kinds) == (1, (ENTRY, BUNDLE, POLICY))
    world.snapshot(revision=2)  # a server that does not know of them
    assert held.revision == 1
    world.follower.on_change(Change(token=ResumeToken("e", 3), policies=two))
    assert held.revision == 2

    problem = FailedPrecondition("no room", reason="STATE_NOT_WRITABLE")
    real = store._save_cache

    def refuse(name: str, *rest: Any) -> None:
        store.cache_problem = problem if name == "policies" else None
        if name != "policies":
            real(name, *rest)

    monkeypatch.setattr(store, "_save_cache", refuse)
    await world.keeper.save()
    assert store.load_feed(PARENT).token == ResumeToken()  # what it would resume from is not there
    monkeypatch.undo()
    await world.keeper.save()
    later = await restarted(store, lab)
    assert later.keeper.load(PARENT)
    assert (later.follower.token, later.follower.policies.revision) == (ResumeToken("e", 3), 2)

    world.follower.on_change(Change(token=ResumeToken("e", 4), removed_policies=True))
    assert (held.taken_away, held.payload) == (True, b"")
    await world.keeper.save()
    later = await restarted(store, lab)
    assert later.keeper.load(PARENT)
    assert (later.follower.token, later.follower.policies.taken_away) == (ResumeToken("e", 4), True)

    world.follower.on_change(Change(token=ResumeToken("e", 5), policies=two))
    await world.keeper.stop()
    world.follower.forget()
    assert (held.payload, held.revision, held.taken_away) == (None, 0, False)
