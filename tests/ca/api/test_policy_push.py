"""Policies on the push stream: to whom, when, and what of them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from ca.proto.burgee import policy_pb2
from ca.service.policy.book import PolicyBook
from policy.book_values import Change
from tests.ca.api.test_node import Stream, delete
from tests.ca.policy.lab import ADMIN, allow, gone, put, workload
from tests.ca.policy.test_grants import Caller as Calling
from tests.support.server import RunningServer, entry, eventually, running_server


def held(stream: Stream) -> set[str]:
    """What the agent was sent last."""
    return {f"{one.kind} {one.namespace}/{one.name}" for one in stream.policies[-1].objects}


async def write(server: RunningServer, *changes: Change) -> Any:
    book: PolicyBook = server.server.policy
    return await book.write(changes, actor="uid:0", rights=ADMIN)


async def opened(server: RunningServer, *selectors: str, path: str = "/w") -> tuple[str, Stream]:
    """An agent with one entry, and its stream."""
    identity, caller = await server.agent()
    await server.create(entry(path, identity.path, *selectors))
    stream = Stream(caller)
    await stream.open()
    return identity.path, stream


async def quiet(stream: Stream) -> None:
    """Nothing comes."""
    reading = asyncio.ensure_future(stream.next())
    await asyncio.sleep(0.2)
    assert not reading.done()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


class TestWhat:
    async def test_the_mesh_is_told_before_there_is_any_policy(self) -> None:
        policy = {"trust_domain_aliases": ["old.org"], "open_namespaces": ["b", "a"], "ext_authz_providers": ["p"]}
        async with running_server(policy=policy) as server:
            _, stream = await opened(server, "k8s:ns:shop")
            (first,) = stream.policies
            assert first.mesh == policy_pb2.Mesh(
                trust_domains=["example.org", "old.org"],
                root_namespace="istio-system",
                open_namespaces=["a", "b"],
                providers=["p"],
            )
            assert (first.revision, list(first.objects)) == (0, [])

    async def test_an_agent_is_sent_the_namespaces_of_its_entries_and_the_meshs(self, server: RunningServer) -> None:
        namespaces = ("shop", "bank", "istio-system")
        await write(server, *(put(allow("p", namespace=ns)) for ns in namespaces))
        _, shop = await opened(server, "k8s:ns:shop", "k8s:sa:x")
        assert held(shop) == {"AuthorizationPolicy shop/p", "AuthorizationPolicy istio-system/p"}
        assert list(shop.policies[-1].namespaces) == ["istio-system", "shop"]
        _, unknown = await opened(server, "unix:uid:7", path="/vm")
        assert list(unknown.policies[-1].namespaces) == []  # all of them
        assert held(unknown) == {f"AuthorizationPolicy {ns}/p" for ns in namespaces}
        await write(server, put(workload("vm", "spiffe://example.org/vm", "bank")))
        await unknown.next()
        assert held(unknown) == {
            "AuthorizationPolicy bank/p",
            "AuthorizationPolicy istio-system/p",
            "Workload bank/vm",
        }
        assert held(shop) == {"AuthorizationPolicy shop/p", "AuthorizationPolicy istio-system/p"}
        assert list(unknown.policies[-1].namespaces) == ["bank", "istio-system"]
        (body,) = [one.body for one in shop.policies[-1].objects if one.namespace == "shop"]
        assert json.loads(body) == allow("p", namespace="shop")

    async def test_a_workload_object_goes_to_who_has_its_id(self, server: RunningServer) -> None:
        _, stream = await opened(server, "k8s:ns:shop")
        await write(server, put(workload("other", "spiffe://example.org/other")))
        await write(server, put(workload("mine", "spiffe://example.org/w", "elsewhere")))
        await stream.next()
        assert held(stream) == {"Workload elsewhere/mine"}
        assert stream.policies[-1].revision == 2


class TestWhen:
    async def test_only_who_needs_it_hears_of_a_change(self, server: RunningServer) -> None:
        _, shop = await opened(server, "k8s:ns:shop")
        _, bank = await opened(server, "k8s:ns:bank", path="/b")
        await write(server, put(allow("one")))
        await shop.next()
        assert held(shop) == {"AuthorizationPolicy shop/one"}
        await quiet(bank)
        await write(server, gone("one"))
        await shop.next()
        assert held(shop) == set()

    async def test_entries_that_change_what_is_needed(self, server: RunningServer) -> None:
        await write(server, put(allow("one")), put(allow("two", namespace="bank")))
        path, stream = await opened(server, "k8s:ns:shop")
        (made,) = await server.create(entry("/b", path, "k8s:ns:bank"))
        await stream.next()
        assert held(stream) == {"AuthorizationPolicy shop/one", "AuthorizationPolicy bank/two"}
        (more,) = await server.create(entry("/c", path, "k8s:ns:bank"))
        update = await stream.next()
        assert [resource.kind for resource in update.resources] == ["entry"]
        await delete(server, made.id, more.id)
        while held(stream) != {"AuthorizationPolicy shop/one"}:
            await stream.next()

    async def test_each_stream_begins_with_the_set(self, server: RunningServer) -> None:
        await write(server, put(allow("one")))
        identity, caller = await server.agent()
        await server.create(entry("/w", identity.path, "k8s:ns:shop"))
        first = Stream(caller)
        await first.open()
        again = Stream(caller)
        update = await again.open(epoch=first.epoch, revision=first.revision)
        assert not update.snapshot
        assert held(again) == held(first) == {"AuthorizationPolicy shop/one"}

    async def test_an_acknowledgement_is_kept(self, server: RunningServer) -> None:
        _, stream = await opened(server, "k8s:ns:shop")
        await write(server, put(allow("one")))
        await stream.next()
        await stream.ack(kind="policy", revision=1)
        acks = server.server.feed.acks
        await eventually(lambda: any("policy" in acks.of(agent) for agent in acks.connected))
        (agent,) = acks.connected
        assert acks.of(agent)["policy"].revision == 1
        assert server.server.feed.policies_sent(agent) == 1
        await write(server, put(allow("two", namespace="bank")))
        assert server.server.feed.policies_sent(agent) == 1  # which is as good as the second

    async def test_after_a_restart(self, server: RunningServer) -> None:
        await write(server, put(allow("one")))
        identity, _ = await server.agent()
        await server.create(entry("/w", identity.path, "k8s:ns:shop"))
        await server.restart()
        stream = Stream(await server.caller(identity))
        await stream.open()
        assert held(stream) == {"AuthorizationPolicy shop/one"}
        assert stream.policies[-1].revision == 1


async def test_the_first_admins_are_told_by_the_configuration_and_may_change_at_run_time() -> None:
    async with running_server(policy={"admins": ["spiffe://example.org/ops"]}) as server:

        def admins() -> set[str]:
            rights = server.server.policy.rights_of
            return {path for path in ("/ops", "/other") if rights(Calling(path)).is_admin}

        assert admins() == {"/ops"}
        changed = server.config.policy.model_copy(update={"admins": ("spiffe://example.org/other",)})
        server.server.reconfigure(server.config.model_copy(update={"policy": changed}))
        assert admins() == {"/other"}
        assert server.server.health.ready


@pytest.mark.xdist_group("policy-crowd")
async def test_many_streams_hear_of_a_write_at_once(server: RunningServer) -> None:
    streams = []
    for number in range(20):
        identity, caller = await server.agent()
        await server.create(entry(f"/w{number}", identity.path, "k8s:ns:shop"))
        for _ in range(4):
            stream = Stream(caller)
            await stream.open()
            streams.append(stream)
    await write(server, *(put(allow(f"p{number}")) for number in range(200)))
    await asyncio.gather(*(stream.next() for stream in streams))
    begun = time.perf_counter()
    await write(server, put(allow("new")))
    await asyncio.gather(*(stream.next() for stream in streams))
    taken = time.perf_counter() - begun
    assert all("AuthorizationPolicy shop/new" in held(stream) for stream in streams)
    print(f"{len(streams)} streams: {taken * 1000:.0f} ms")
    assert taken < 2.5  # five times what must be seen
