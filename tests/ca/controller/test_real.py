"""Our controller at the real API server: pods get entries at once, and nothing that should live is taken away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml

from ca.controller.controller import Controller
from ca.errors import NotFound
from ca.proto.spire import server_entry_pb2
from tests.ca.controller.lab import PAGE, Objects, Site, config, entries, paths, running, until
from tests.docs.pages import blocks
from tests.support.kube import Cluster, fresh
from tests.support.server import RunningServer, entry

pytestmark = [pytest.mark.real("kube-apiserver"), pytest.mark.xdist_group("kube")]

ENTRY_SECONDS = 1.0
"""From the pod to its entry."""


@pytest.fixture
async def controller(cluster: Cluster, server: RunningServer) -> AsyncIterator[Controller]:
    async with running(config(cluster, server)) as controller:
        await until(lambda: controller.reconciler.rounds > 0)
        yield controller


async def test_a_pod_has_its_entry_within_a_second_and_as_long_as_it_lives(
    server: RunningServer, controller: Controller, objects: Objects, site: Site
) -> None:
    ours = objects.spiffe_id(
        namespaceSelector=site.here,
        ttl="30m",
        jwtTtl="90s",
        hint="main",
        dnsNameTemplates=["{{ .PodMeta.Name }}.{{ .PodMeta.Namespace }}.{{ .ClusterDomain }}"],
        workloadSelectorTemplates=["k8s:ns:{{ .PodMeta.Namespace }}", "k8s:sa:{{ .PodSpec.ServiceAccountName }}"],
    )
    pod = site.pod()

    async def there() -> bool:
        return site.path(pod) in await paths(server)

    took = await until(there)
    assert took < 5 * ENTRY_SECONDS
    (found,) = [one for one in (await entries(server)).values() if one.spiffe_id.path == site.path(pod)]
    assert found.id.startswith("k8s.demo.")
    assert found.parent_id.path == f"/spire/agent/k8s_psat/demo/{site.node['metadata']['uid']}"
    values = {f"{one.type}:{one.value}" for one in found.selectors}
    assert values == {f"k8s:pod-uid:{pod['metadata']['uid']}", f"k8s:ns:{site.namespace}", "k8s:sa:default"}
    assert (found.x509_svid_ttl, found.jwt_svid_ttl, found.hint) == (1800, 90, "main")
    assert found.dns_names == [f"{pod['metadata']['name']}.{site.namespace}.cluster.local"]
    expected = {"namespacesSelected": 1, "podsSelected": 1, "entriesToSet": 1}
    await until(lambda: expected.items() <= objects.get(ours).get("status", {}).get("stats", {}).items())
    assert objects.condition(ours)["status"] == "True"
    site.cluster.delete_pod(pod)

    async def gone() -> bool:
        return not await there()

    assert await until(gone) < 5 * ENTRY_SECONDS
    print(f"the entry was there after {took * 1000:.0f} ms")


async def test_entries_of_others_and_objects_of_another_class_are_left_alone(
    server: RunningServer, controller: Controller, objects: Objects, site: Site
) -> None:
    manual = entry("/by-hand", "/spire/agent/x", "k8s:ns:a")
    near = entry("/near", "/spire/agent/x", "k8s:ns:b", id="k8s.demo.but-no-uuid")
    foreign = entry("/far", "/spire/agent/x", "k8s:ns:c", id="k8s.demo.2.6f0c0d5e-8b1a-5d0e-9a53-7c1a2b3c4d5e")
    made = {one.id: one for one in await server.create(manual, near, foreign)}
    pod = site.pod()
    other = objects.spiffe_id(namespaceSelector=site.here, className="another")
    ours = objects.spiffe_id(
        namespaceSelector=site.here, spiffeIDTemplate="spiffe://{{ .TrustDomain }}/ours/{{ .PodMeta.Name }}"
    )
    name = pod["metadata"]["name"]

    async def are(*expected: str) -> bool:
        return await paths(server) == {"/by-hand", "/near", "/far", *expected}

    await until(lambda: are(f"/ours/{name}"))
    objects.delete(other)
    site.cluster.relabel(pod, a="b")
    await until(lambda: are(f"/ours/{name}"))
    objects.delete(ours)
    await until(are)
    now = await entries(server)
    assert {one: now[one] for one in made} == made


async def test_what_somebody_entered_already_is_masked_and_not_touched(
    server: RunningServer, controller: Controller, objects: Objects, site: Site
) -> None:
    pod = site.pod()
    node = site.node["metadata"]["uid"]
    same = entry(site.path(pod), f"/spire/agent/k8s_psat/demo/{node}", f"k8s:pod-uid:{pod['metadata']['uid']}")
    (manual,) = await server.create(same)
    ours = objects.spiffe_id(namespaceSelector=site.here, admin=True)
    await until(lambda: objects.get(ours).get("status", {}).get("stats", {}).get("entriesMasked") == 1)
    objects.delete(ours)
    await until(lambda: not controller.world.rules)
    assert (await entries(server)) == {manual.id: manual}


async def test_an_object_that_is_made_wrong_says_so_and_keeps_what_it_had(
    server: RunningServer, controller: Controller, objects: Objects, site: Site
) -> None:
    ours = objects.spiffe_id(namespaceSelector=site.here)
    pod = site.pod()

    async def there() -> bool:
        return site.path(pod) in await paths(server)

    await until(there)
    objects.change(ours, spiffeIDTemplate="spiffe://example.org/{{ .PodMeta.Nmae }}")
    await until(lambda: objects.condition(ours).get("reason") == "Invalid")
    assert "did you mean `.PodMeta.Name`?" in objects.condition(ours)["message"]
    assert await there()
    assert controller.health.report()[1]["warnings"]
    events = site.cluster.admin.call("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    assert ours["metadata"]["uid"] in {one["regarding"]["uid"] for one in events}
    objects.change(ours, spiffeIDTemplate="spiffe://example.org/{{ .PodMeta.Labels.app }}")
    await until(lambda: objects.condition(ours).get("reason") == "RenderFailed")
    assert not await there(), "a pod without the label has no identity by it"
    site.cluster.relabel(pod, app="web")

    async def renamed() -> bool:
        return "/web" in await paths(server)

    await until(renamed)


async def test_static_entries_and_foreign_trust_domains(
    server: RunningServer, controller: Controller, objects: Objects
) -> None:
    spec = {
        "spiffeID": "spiffe://example.org/legacy",
        "parentID": "spiffe://example.org/spire/agent/x509pop/1",
        "selectors": ["unix:uid:1000"],
        "x509SVIDTTL": "1h",
        "dnsNames": ["legacy.example.org"],
    }
    static = objects.make("ClusterStaticEntry", fresh("static"), spec)
    await until(lambda: objects.get(static).get("status", {}).get("set") is True)
    (found,) = (await entries(server)).values()
    assert (found.x509_svid_ttl, list(found.dns_names)) == (3600, ["legacy.example.org"])
    wrong = objects.make("ClusterStaticEntry", fresh("static"), spec | {"spiffeID": "spiffe://example.org/spire/x"})
    await until(lambda: objects.get(wrong).get("status", {}).get("rendered") is False)
    profile = {"bundleEndpointURL": "https://other.test/b", "bundleEndpointProfile": {"type": "https_web"}}
    far = objects.make("ClusterFederatedTrustDomain", fresh("td"), {"trustDomain": "other.test"} | profile)
    await until(lambda: objects.condition(far, "FederationNotEnabled").get("status") == "True")
    objects.delete(static)

    async def none() -> bool:
        return not await entries(server)

    await until(none)


async def test_names_of_services_follow_the_services(
    server: RunningServer, controller: Controller, objects: Objects, site: Site
) -> None:
    objects.spiffe_id(namespaceSelector=site.here, autoPopulateDNSNames=True)
    pod = site.pod()
    path = f"/apis/discovery.k8s.io/v1/namespaces/{site.namespace}/endpointslices"
    reference = {"kind": "Pod", "uid": pod["metadata"]["uid"], "name": pod["metadata"]["name"]}
    body = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.0.9"], "targetRef": reference}],
    }
    full = f"web.{site.namespace}.svc.cluster.local"

    async def names() -> set[str]:
        return {name for one in (await entries(server)).values() for name in one.dns_names}

    async def named() -> bool:
        return {"web", f"web.{site.namespace}", f"web.{site.namespace}.svc", full} == await names()

    async def unnamed() -> bool:
        return bool(await entries(server)) and not await names()

    site.cluster.admin.call("POST", path, body)
    await until(named)
    site.cluster.admin.call("DELETE", f"{path}/web-1")
    await until(unnamed)


async def test_it_converges_after_every_restart_and_deletes_nothing_that_lives(
    cluster: Cluster, server: RunningServer, objects: Objects, site: Site
) -> None:
    """The controller's, the server's, and the API server's, whose watches have expired then (410)."""
    objects.spiffe_id(namespaceSelector=site.here)
    pods = [site.pod() for _ in range(5)]
    wanted = {site.path(pod) for pod in pods}
    given = config(cluster, server, resync_seconds=2)

    async def converged() -> bool:
        return await paths(server) == wanted

    async with running(given):
        await until(converged)
        ids = set(await entries(server))
    cluster.delete_pod(pods[0])
    wanted.discard(site.path(pods.pop(0)))
    async with running(given) as controller:
        await until(converged)
        assert set(await entries(server)) <= ids, "the same entries, not others of the same content"
        await server.restart()
        new = site.pod()
        wanted.add(site.path(new))
        await until(converged)
        cluster.stop()
        await until(lambda: not controller.health.ready)
        assert await converged()
        cluster.start()  # in this thread: with another one it would end
        later = site.pod()
        wanted.add(site.path(later))
        await until(converged)
        await until(lambda: controller.health.ready)
        request = server_entry_pb2.BatchDeleteEntryRequest(ids=[next(iter(await entries(server)))])
        await server.local.entries.BatchDeleteEntry(request)
        await until(converged)


async def test_a_watch_that_has_expired_lists_again(
    cluster: Cluster, server: RunningServer, objects: Objects, site: Site
) -> None:
    """The API server says 410 for a version that it no longer has."""
    objects.spiffe_id(namespaceSelector=site.here)
    pod = site.pod()
    controller = Controller(config(cluster, server))
    real, expire, said = controller.kube.watch, asyncio.Event(), []

    async def watch(path: str, version: str, **options: Any) -> AsyncIterator[Any]:
        old = expire.is_set() and path.endswith("clusterspiffeids") and not said
        try:
            async for event in real(path, "1" if old else version, seconds=1, **options):
                yield event
        except NotFound as error:
            said.append(error.reason)
            raise

    controller.kube.watch = watch  # type: ignore[method-assign]
    try:
        await controller.start()
        await until(lambda: controller.reconciler.rounds)
        before = await entries(server)
        assert [one.spiffe_id.path for one in before.values()] == [site.path(pod)]
        expire.set()
        await until(lambda: said)
        objects.spiffe_id(namespaceSelector=site.here, spiffeIDTemplate="spiffe://example.org/new")

        async def more() -> bool:
            return "/new" in await paths(server)

        await until(more)
        assert said == ["KUBE_GONE"]
        assert before.items() <= (await entries(server)).items(), "not even written again"
    finally:
        await controller.close()


async def test_a_node_that_was_taken_over_makes_itself_nobody(
    server: RunningServer, controller: Controller, objects: Objects, site: Site
) -> None:
    """The API server takes a mirror pod from a kubelet in any namespace and with any label; we take it for nobody."""
    objects.spiffe_id(
        namespaceSelector=site.here, spiffeIDTemplate="spiffe://{{ .TrustDomain }}/{{ .PodMeta.Labels.app }}"
    )
    node = site.node["metadata"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": node["name"], "uid": node["uid"], "controller": True}
    mirror = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"web-{node['name']}",
            "labels": {"app": "payments"},
            "annotations": {"kubernetes.io/config.mirror": "x" * 3000},
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": node["name"], "containers": [{"name": "main", "image": "registry.test/main:1"}]},
    }
    kubelet = site.cluster.node_user(node["name"])
    made = await asyncio.to_thread(kubelet.call, "POST", f"/api/v1/namespaces/{site.namespace}/pods", mirror)
    site.pod(labels={"app": "web"})
    await until(lambda: made["metadata"]["uid"] in controller.world.pods)

    async def there() -> bool:
        return "/web" in await paths(server)

    await until(there)
    assert await paths(server) == {"/web"}


async def test_templates_decide_and_name_what_only_the_whole_node_has(
    server: RunningServer, controller: Controller, objects: Objects, site: Site
) -> None:
    node = site.node["metadata"]["name"]
    site.cluster.admin.call("PATCH", f"/api/v1/nodes/{node}", {"spec": {"providerID": "kind://a/b"}})
    (page,) = [block for block in blocks(PAGE, "yaml") if "by-tier" in block]
    template = yaml.safe_load(page)["spec"]["spiffeIDTemplate"]
    for labels in ({"tier": "gold"}, {"tier": "lead"}):
        site.pod(labels=labels)
    objects.spiffe_id(
        namespaceSelector=site.here,
        spiffeIDTemplate=template,
        workloadSelectorTemplates=["cloud:{{ .NodeSpec.ProviderID }}"],
    )

    async def there() -> bool:
        return await paths(server) == {"/gold/default", "/plain/default"}

    await until(there)
    for one in (await entries(server)).values():
        assert "kind://a/b" in {selector.value for selector in one.selectors}
