"""Memory follows the log whole or not at all, and whoever listens hears of everything that changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ca.errors import Unavailable
from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.spire import server_bundle_pb2
from tests.ca.api.refusals import Code, refused
from tests.ca.api.test_node import Stream
from tests.support.server import Identity, RunningServer, entry, eventually, running_server

TD = TrustDomain("example.org")


def agent_id(identity: Identity) -> SpiffeId:
    return SpiffeId(TD, identity.path)


async def entry_and_agent_change(server: RunningServer, identity: Identity, entry_id: str, version: str) -> None:
    """Both in one pass of the follower."""
    async with server.server.follower._lock:
        await server.server.store.entries.delete([entry_id])
        await server.server.store.agents.set_version(agent_id(identity), version)
        await server.server.store.bundles.set(TrustBundle(trust_domain=TrustDomain(f"{version}.org")))


@pytest.mark.parametrize("reader", ["agents", "bundles"])
async def test_a_read_that_fails_half_way_loses_no_push(monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    async with running_server() as server:
        identity, caller = await server.agent()
        (doomed,) = await server.create(entry("/doomed", identity.path))
        stream = Stream(caller)
        await stream.open()
        table = getattr(server.server.store, reader)
        name = {"agents": "get_many", "bundles": "get"}[reader]
        read, failures = getattr(table, name), 0

        async def hiccup(*arguments: Any) -> Any:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise Unavailable("the store hiccups", reason="STORE")
            return await read(*arguments)

        monkeypatch.setattr(table, name, hiccup)
        await entry_and_agent_change(server, identity, doomed.id, "v2")
        await stream.next()
        assert stream.entries == {}
        assert failures > 1


async def test_a_cancelled_caller_loses_no_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that made the change follows it itself; whoever called may hang up in the middle."""
    async with running_server() as server:
        identity, caller = await server.agent()
        (doomed,) = await server.create(entry("/doomed", identity.path))
        stream = Stream(caller)
        await stream.open()
        agents = server.server.store.agents
        read, reading, waiting = agents.get_many, asyncio.Event(), True

        async def slow(*arguments: Any) -> Any:
            if waiting:
                reading.set()
                await asyncio.Event().wait()
            return await read(*arguments)

        monkeypatch.setattr(agents, "get_many", slow)
        await entry_and_agent_change(server, identity, doomed.id, "v2")
        await reading.wait()
        (follower,) = [task for task in asyncio.all_tasks() if task.get_name() == "follower"]
        follower.cancel()
        waiting = False
        await server.server.follower.catch_up()
        await stream.next()
        assert stream.entries == {}


async def test_a_listener_that_fails_keeps_nobody_else_from_hearing() -> None:
    async with running_server() as server:
        identity, caller = await server.agent()
        stream = Stream(caller)
        await stream.open()

        def broken(_: object) -> None:
            raise RuntimeError("a mistake of ours")

        server.server.follower._listeners.insert(0, broken)
        (made,) = await server.create(entry("/made", identity.path))
        await stream.next()
        assert set(stream.entries) == {made.id}


async def test_a_ban_that_only_the_whole_store_tells_of_closes_connections() -> None:
    """Another server banned the agent, and the log was compacted before this one read of it."""
    async with running_server() as server:
        identity, caller = await server.agent()
        await caller.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
        stream = Stream(caller)
        await stream.open()

        def connected() -> bool:
            return any(p.svid and p.svid.id.path == identity.path for p in server.server.gate.connections())

        assert connected()
        async with server.server.follower._lock:
            await server.server.store.agents.ban(agent_id(identity))
            await server.server.store.changes.compact(0)
        with refused(Code.PERMISSION_DENIED, reason="AGENT_BANNED"):
            await stream.until_the_end()
        await eventually(lambda: not connected(), seconds=3)


async def test_an_eviction_that_only_the_whole_store_tells_of() -> None:
    async with running_server() as server:
        identity, caller = await server.agent()
        stream = Stream(caller)
        await stream.open()
        async with server.server.follower._lock:
            await server.server.store.agents.delete(agent_id(identity))
            await server.server.store.changes.compact(0)
        with refused(Code.PERMISSION_DENIED, reason="AGENT_NOT_ATTESTED"):
            await stream.until_the_end()


async def test_those_who_wait_share_a_pass_that_began_after_they_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty agents that attest at once need not read the log fifty times; a pass that was under way is not enough."""
    async with running_server() as server:
        follower, changes = server.server.follower, server.server.store.changes
        read, passes, gate = changes.since, 0, asyncio.Event()

        async def slow(*arguments: Any) -> Any:
            nonlocal passes
            passes += 1
            found = await read(*arguments)
            await gate.wait()  # what is committed from now on is not in it
            return found

        monkeypatch.setattr(changes, "since", slow)
        under_way = asyncio.create_task(follower.catch_up())
        await eventually(lambda: passes == 1)
        await server.server.store.bundles.set(TrustBundle(trust_domain=TrustDomain("late.org")))
        waiting = [asyncio.create_task(follower.catch_up()) for _ in range(50)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(under_way, *waiting)
        assert follower.trust.get(TrustDomain("late.org")) is not None
        assert passes <= 3  # the one under way, the one for all who waited, and the follower's own


async def test_what_was_created_here_is_followed_as_it_would_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server() as server:
        identity, _ = await server.agent()
        store, follower = server.server.store, server.server.follower
        asked: list[str] = []
        read = store.entries.get_many

        async def counted(names: Any) -> Any:
            asked.extend(names)
            return await read(names)

        monkeypatch.setattr(store.entries, "get_many", counted)
        wanted = entry(
            "/w", identity.path, "k8s:ns:a", "k8s:sa:b", dns_names=["b.test", "a.test"], hint="h", expires_at=2**33
        )
        (made,) = await server.create(wanted)
        assert not asked
        assert server.server.index.entry(made.id) == (await read([made.id]))[made.id]
        async with follower._lock:  # created and changed, or deleted, before anybody looks
            (changed, gone) = [one.entry for one in await store.entries.create([_plain("/c"), _plain("/d")])]
            assert changed is not None
            assert gone is not None
            await store.entries.update(changed.id, {"hint": "new"})
            await store.entries.delete([gone.id])
        await follower.catch_up()
        found = server.server.index.entry(changed.id)
        assert found is not None
        assert (found.hint, server.server.index.entry(gone.id)) == ("new", None)


async def test_what_attested_here_is_followed_as_it_would_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server() as server:
        store, reads = server.server.store, 0
        await server.agent()
        read, get_many = store.changes._read, store.agents.get_many

        async def counted(*arguments: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*arguments)

        async def fails(*arguments: Any) -> Any:
            raise AssertionError("it was written here, a moment ago")

        monkeypatch.setattr(store.changes, "_read", counted)
        monkeypatch.setattr(store.agents, "get_many", fails)
        identity = await server.attest()
        assert not reads
        agent = server.server.agents.get(agent_id(identity))
        assert agent is not None
        assert {agent.id: agent} == await get_many([agent_id(identity)])


async def test_a_ban_is_not_undone_by_the_attestation_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ban is in memory at once, the follower still on its way with the news of what came before."""
    async with running_server() as server:
        identity, _ = await server.agent()
        follower, store, table = server.server.follower, server.server.store, server.server.agents
        known = table.get(agent_id(identity))
        assert known is not None
        await follower.catch_up()
        since, told, gate = store.changes.since, asyncio.Event(), asyncio.Event()

        async def slow(*arguments: Any) -> Any:
            found = await since(*arguments)
            told.set()
            await gate.wait()
            return found

        monkeypatch.setattr(store.changes, "since", slow)
        await store.agents.upsert(known)
        await told.wait()
        await store.agents.ban(known.id)
        await table.refresh(known.id)
        heard: list[bool] = []
        table.on_change(lambda _, agent: heard.append(agent is not None and agent.banned))
        gate.set()
        await follower.catch_up()
        assert all(heard)
        now = table.get(known.id)
        assert now is not None
        assert now.banned


async def test_what_repeats_in_entries_that_were_created_here_is_one_object() -> None:
    """A hundred thousand entries below few parents must not hold a hundred thousand parents."""
    async with running_server() as server:
        made = await server.create(
            *(entry(f"/{name}", "/spire/agent/x", "k8s:sa:default", f"k8s:ns:{name}") for name in "ab")
        )
        one, other = (server.server.index.entry(message.id) for message in made)
        assert one is not None
        assert other is not None
        assert one.parent_id is other.parent_id
        assert one.spiffe_id.trust_domain is other.spiffe_id.trust_domain
        (shared,) = one.selectors & other.selectors
        for found in (one, other):
            assert any(selector is shared for selector in found.selectors)


async def test_what_was_not_committed_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server() as server:
        store = server.server.store

        async def fails(*arguments: Any) -> Any:
            raise Unavailable("no", reason="STORE")

        with monkeypatch.context() as broken:
            broken.setattr("ca.store.database._number", fails)
            with pytest.raises(Unavailable):
                await store.entries.create([_plain("/x", entry_id="lost")])
        await server.create(entry("/y", "/spire/agent/x"))
        await server.server.follower.catch_up()
        assert server.server.index.entry("lost") is None


def _plain(path: str, *, entry_id: str = "") -> RegistrationEntry:
    parent = SpiffeId(TD, "/spire/agent/x")
    return RegistrationEntry(
        id=entry_id, spiffe_id=SpiffeId(TD, path), parent_id=parent, selectors=frozenset({Selector("unix", "uid:1")})
    )
