"""Lists in pages, watches and the ways to change an object, at the real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from ca.errors import AlreadyExists, Denied, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from ca.runtime.kube import KubeClient
from ca.runtime.kube_watch import Event, event_of, version_of, whole_list
from tests.support.kube import Cluster, fresh, kube_lab

pytestmark = pytest.mark.xdist_group("kube")


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return kube_lab()


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[KubeClient]:
    found = KubeClient.from_kubeconfig(cluster.kubeconfig(), timeout_seconds=30)
    yield found
    found.close()


def maps(cluster: Cluster) -> str:
    return f"/api/v1/namespaces/{cluster.namespace()}/configmaps"


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def events(client: KubeClient, path: str, version: str, count: int, **options: Any) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(60), aclosing(client.watch(path, version, **options)) as watched:
        async for event in watched:
            if event.type != "BOOKMARK":
                found.append(event)
            if len(found) == count:
                break
    return found


async def test_a_watch_gives_what_changes_after_the_list(cluster: Cluster, client: KubeClient) -> None:
    path = maps(cluster)
    await client.create(path, config_map("a", x="1"))
    listing = await client.list(path)
    assert [one["metadata"]["name"] for one in listing.items] == ["a"]
    watching = asyncio.create_task(events(client, path, listing.resource_version, 3))
    await client.create(path, config_map("b", x="1"))
    await client.patch(f"{path}/b", {"data": {"x": "2"}})
    await client.delete(f"{path}/a")
    seen = [(one.type, one.object["metadata"]["name"]) for one in await watching]
    assert seen == [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a")]


async def test_a_watch_ends_when_its_time_is_over_and_goes_on_where_it_was(
    cluster: Cluster, client: KubeClient
) -> None:
    path = maps(cluster)
    version = (await client.list(path)).resource_version
    async for event in client.watch(path, version, seconds=1):
        version = version_of(event.object)  # a bookmark: nothing else can be
        assert event.type == "BOOKMARK"
    await client.create(path, config_map("later"))
    (event,) = await events(client, path, version, 1, metadata_only=True)
    assert (event.object["kind"], event.object["metadata"]["name"]) == ("PartialObjectMetadata", "later")


async def test_a_version_that_is_too_old_is_gone(cluster: Cluster, client: KubeClient) -> None:
    """What the API server remembers of a new kind begins when the kind did."""
    kind = fresh("thing").replace("-", "")
    names = {"kind": kind.title(), "plural": f"{kind}s", "singular": kind, "listKind": f"{kind.title()}List"}
    schema = {"openAPIV3Schema": {"type": "object"}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind}s.test.example.org"},
        "spec": {
            "group": "test.example.org",
            "names": names,
            "scope": "Cluster",
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    cluster.apply(definition)
    path = f"/apis/test.example.org/v1/{kind}s"
    async with asyncio.timeout(60):
        while True:
            try:
                await client.list(path)
                break
            except (NotFound, Unavailable):
                await asyncio.sleep(0.05)
    with pytest.raises(NotFound) as caught:
        await events(client, path, "1", 1)
    assert caught.value.reason == "KUBE_GONE"


async def test_who_may_not_watch_is_told_the_verb(cluster: Cluster) -> None:
    client = KubeClient.from_kubeconfig(cluster.kubeconfig(cluster.user("nobody")))
    with pytest.raises(Denied) as caught:
        await events(client, "/api/v1/nodes", "0", 1)
    assert (caught.value.reason, "watch `nodes`" in caught.value.detail) == ("KUBE_FORBIDDEN", True)
    client.close()


async def test_a_list_is_whole_in_pages_of_any_size(cluster: Cluster, client: KubeClient) -> None:
    path = maps(cluster)
    for number in range(7):
        await client.create(path, config_map(f"m{number}", x="y" * 1000))
    for size in (1, 3, 7, 100):
        found = await client.list(path, page_size=size)
        assert sorted(one["metadata"]["name"] for one in found.items) == [f"m{number}" for number in range(7)]
    small = KubeClient.from_kubeconfig(cluster.kubeconfig(), max_bytes=4000)
    assert len((await small.list(path)).items) == 7  # by smaller pages
    small.close()


async def test_a_list_that_ended_between_pages_begins_anew() -> None:
    asked: list[str] = []

    async def get(path: str) -> dict[str, Any]:
        asked.append(path)
        if "continue=" in path and len(asked) == 2:
            raise NotFound("gone", reason="KUBE_GONE")
        more = {} if "continue=" in path else {"continue": "a&b"}
        return {"metadata": {"resourceVersion": "7"} | more, "items": [{"n": len(asked)}]}

    found = await whole_list(get, "/x?a=b", 2)
    assert ([one["n"] for one in found.items], found.resource_version) == ([3, 4], "7")
    assert asked[1] == "/x?a=b&limit=2&continue=a%26b"


@pytest.mark.parametrize("page", [{}, {"metadata": {}}, {"metadata": {"resourceVersion": "1"}, "items": [3]}])
async def test_a_list_that_is_none_is_no_empty_list(page: dict[str, Any]) -> None:
    async def get(path: str) -> dict[str, Any]:
        return page

    with pytest.raises(Unavailable):
        await whole_list(get, "/x", 2)


@pytest.mark.parametrize("value", [{}, {"type": "NEW", "object": {}}, {"type": "ADDED", "object": []}, {"type": []}])
def test_an_event_that_is_none_is_no_event(value: dict[str, Any]) -> None:
    with pytest.raises(Unavailable):
        event_of(value)


async def test_objects_are_changed_by_every_verb(cluster: Cluster, client: KubeClient) -> None:
    path = maps(cluster)
    made = await client.create(path, config_map("a", x="1"))
    with pytest.raises(AlreadyExists) as exists:
        await client.create(path, config_map("a"))
    assert exists.value.reason == "KUBE_EXISTS"
    updated = await client.update(f"{path}/a", made | {"data": {"x": "2"}})
    with pytest.raises(FailedPrecondition) as conflict:
        await client.update(f"{path}/a", made | {"data": {"x": "3"}})
    assert conflict.value.reason == "KUBE_CONFLICT"
    assert updated["data"] == {"x": "2"}
    assert (await client.patch(f"{path}/a", {"data": {"y": "3"}}))["data"] == {"x": "2", "y": "3"}
    operations = [{"op": "remove", "path": "/data/x"}]
    assert (await client.patch(f"{path}/a", operations, "json"))["data"] == {"y": "3"}
    applied = await client.patch(f"{path}/new?fieldManager=us", config_map("new", z="1"), "apply")
    assert applied["data"] == {"z": "1"}
    with pytest.raises(InvalidArgument) as invalid:
        await client.create(path, config_map("No Name"))
    assert (invalid.value.reason, "No Name" in invalid.value.detail) == ("KUBE_INVALID", True)
    await client.delete(f"{path}/a")
    with pytest.raises(NotFound):
        await client.delete(f"{path}/a")


async def test_a_status_is_changed_apart_from_its_object(cluster: Cluster, client: KubeClient) -> None:
    name = fresh("node")
    cluster.node(name)
    conditions = [{"type": "Ready", "status": "True"}]
    changed = await client.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": conditions}})
    assert changed["status"]["conditions"][0]["type"] == "Ready"
