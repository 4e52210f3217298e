"""Server and agent outside of the cluster, as the service accounts that the chart made: what they need is granted."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.controller.status import PLURALS
from ca.runtime.kube_permissions import OF_AGENT, OF_SERVER, Permission
from tests.attestor.workload.k8s_node import Trees
from tests.helm.charts import Object
from tests.helm.mesh import CONTAINER, Mesh, ask
from tests.helm.releases import Release
from tests.sds.lab import eventually
from tests.support.kube import Cluster, Refused, User, fresh
from tests.support.kube_managed import Kubelets, managed_cluster, until
from tests.support.kubelet import FINE, status
from tests.support.pair import TRUST_DOMAIN

pytestmark = [pytest.mark.real("kube-controller-manager"), pytest.mark.xdist_group("managed")]

VALUES = {"server": {"nodeAttestors": {"k8sPsat": {"allowedPodLabelKeys": ["app.kubernetes.io/component"]}}}}
TRUSTS = ("--set", f"trustDomain={TRUST_DOMAIN}")
RESOURCES = "/apis/spire.spiffe.io/v1alpha1/clusterspiffeids"
LEASES = "/apis/coordination.k8s.io/v1"
Rule = tuple[str, str, str]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    cluster = managed_cluster()
    namespace = cluster.namespace(fresh("mesh"))
    node = fresh("node")
    release = Release(cluster, namespace, tmp_path_factory.mktemp("release"))
    with Kubelets(cluster, node, namespace):
        release.install(VALUES, *TRUSTS, "--wait", "--timeout", "60s")
        yield Mesh(release, node)
        release.uninstall()
        cluster.admin.call("DELETE", f"/api/v1/namespaces/{namespace}")


def web(mesh: Mesh) -> Object:
    """A pod of somebody's on the node."""
    namespace = mesh.cluster.namespace(fresh("shop"), labels={"shop": "yes"})
    said = {"containerStatuses": [status("main", CONTAINER)]}
    return mesh.cluster.pod(namespace, "web", node=mesh.node, status=said)


async def test_a_pod_has_its_identity_from_its_first_moment_to_its_last(mesh: Mesh, tmp_path: Path) -> None:
    """Server, agent and controller, by no rights but the release's: a ClusterSPIFFEID becomes an SVID."""
    trees = Trees(tmp_path)
    rule = cluster_spiffe_id(fresh("rule"))
    mesh.cluster.admin.call("POST", RESOURCES, rule)
    with mesh.server() as server:
        async with mesh.controller(server) as controller, mesh.agent(server, trees) as (agent, kubelet):
            assert agent.identity.svid is not None
            uid = mesh.cluster.admin.call("GET", f"/api/v1/nodes/{mesh.node}")["metadata"]["uid"]
            assert agent.identity.svid.id.path == f"/spire/agent/k8s_psat/main/{uid}"
            pod = web(mesh)
            namespace = pod["metadata"]["namespace"]
            await eventually(lambda: len(agent.cache.entries()) == 1, seconds=60)
            wanted = f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/default"
            assert await ask(server.workload_socket, trees, pod) == wanted
            assert set(kubelet.used) == {FINE}
            mesh.cluster.delete_pod(pod)
            await eventually(lambda: not agent.cache.entries(), seconds=60)
            path = f"{RESOURCES}/{rule['metadata']['name']}"
            await eventually(lambda: ready(mesh, path), seconds=60)
            healthy, body = controller.health.report(live_only=False)
            assert healthy, body
    lease = mesh.cluster.admin.call("GET", f"{LEASES}/namespaces/{mesh.release.namespace}/leases/burgee-controller")
    assert lease["spec"]["leaseTransitions"] == 1
    mesh.cluster.admin.call("DELETE", path)


def cluster_spiffe_id(name: str) -> Object:
    """For the pods of namespaces that `web` makes."""
    return {
        "apiVersion": "spire.spiffe.io/v1alpha1",
        "kind": "ClusterSPIFFEID",
        "metadata": {"name": name},
        "spec": {
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/"
            "{{ .PodSpec.ServiceAccountName }}",
            "namespaceSelector": {"matchLabels": {"shop": "yes"}},
        },
    }


def ready(mesh: Mesh, path: str) -> bool:
    found = mesh.cluster.admin.call("GET", path).get("status", {}).get("conditions", ())
    return any((one["type"], one["status"]) == ("Ready", "True") for one in found)


def rules(cluster: Cluster, account: str, home: str, namespace: str) -> set[Rule]:
    """What a service account may do in a namespace, as the API server tells it: verb, group and resource, names."""
    user = _as_account(cluster, home, account)
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    found = user.call("POST", path, review | {"spec": {"namespace": namespace}})["status"]
    assert not found["incomplete"]
    of_resources = {
        (verb, f"{group}/{resource}", ",".join(rule.get("resourceNames", ())))
        for rule in found["resourceRules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    of_paths = {
        (verb, path, "")
        for rule in found["nonResourceRules"]
        for verb in rule["verbs"]
        for path in rule["nonResourceURLs"]
    }
    return of_resources | of_paths


def _as_account(cluster: Cluster, namespace: str, account: str) -> User:
    user = User(cluster, fresh("nobody"))
    user.http = type(user.http)(
        base_url=cluster.url,
        verify=ssl.create_default_context(cafile=str(cluster.ca_file)),
        headers={"Authorization": f"Bearer {cluster.account_token(namespace, account, cluster.issuer)}"},
        timeout=30,
        trust_env=False,
    )
    return user


def granted(mesh: Mesh, account: str, namespace: str) -> set[Rule]:
    """What it has beyond that which any service account of the cluster has."""
    home = mesh.release.namespace
    return rules(mesh.cluster, account, home, namespace) - rules(mesh.cluster, "default", home, namespace)


def as_rules(permissions: tuple[Permission, ...]) -> set[Rule]:
    return {
        (one.verb, f"{one.group}/{one.resource}" + (f"/{one.subresource}" if one.subresource else ""), "")
        for one in permissions
    }


CUSTOM = [f"spire.spiffe.io/{name}" for name in PLURALS.values()]
WATCHED = ["/pods", "/nodes", "/namespaces", "discovery.k8s.io/endpointslices", *CUSTOM]
OF_CONTROLLER = {(verb, resource, "") for verb in ("list", "watch") for resource in WATCHED} | {
    ("patch", f"{resource}/status", "") for resource in CUSTOM
}


def test_they_may_do_what_they_need_and_nothing_more(mesh: Mesh) -> None:
    home = mesh.release.namespace
    bundle = {(verb, "/configmaps", "burgee-bundle") for verb in ("get", "patch")}
    lease = {(verb, "coordination.k8s.io/leases", "burgee-controller") for verb in ("get", "update", "patch")}
    assert granted(mesh, "burgee-server", home) == as_rules(OF_SERVER) | OF_CONTROLLER | bundle | lease
    everywhere = {rule for rule in as_rules(OF_SERVER) if rule[1] != "/pods"} | OF_CONTROLLER
    assert granted(mesh, "burgee-server", "kube-system") == everywhere
    assert granted(mesh, "burgee-server", "default") == everywhere | {("create", "events.k8s.io/events", "")}
    for namespace in (home, "kube-system"):
        assert granted(mesh, "burgee-agent", namespace) == as_rules(OF_AGENT)


def test_each_feature_has_its_own_rights(mesh: Mesh) -> None:
    home = mesh.release.namespace
    mesh.release.upgrade(VALUES | {"controller": {"enabled": False}}, *TRUSTS)
    everywhere = {rule for rule in as_rules(OF_SERVER) if rule[1] != "/pods"}
    eventually_granted(mesh, "kube-system", everywhere)
    mesh.release.upgrade(VALUES | {"controller": {"config": {"pod_certificates": {}}}}, *TRUSTS)
    requests = "certificates.k8s.io/podcertificaterequests"
    signing = {
        *(("get", resource, "") for resource in ("/pods", "/nodes", requests)),
        ("list", requests, ""),
        ("watch", requests, ""),
        ("update", f"{requests}/status", ""),
        ("sign", "certificates.k8s.io/signers", "burgee.dev/svid"),
    }
    eventually_granted(mesh, "kube-system", everywhere | OF_CONTROLLER | signing)
    istio = {"enabled": True, "namespaces": [home], "impersonators": [f"{home}/ztunnel"]}
    mesh.release.upgrade(VALUES | {"controller": {"enabled": False}, "istio": istio}, *TRUSTS)
    root = {(verb, "/configmaps", "istio-ca-root-cert") for verb in ("get", "patch")}
    proxies = root | {("create", "/configmaps", ""), ("list", "/pods", ""), ("get", "/pods", "")}
    bundle = {(verb, "/configmaps", "burgee-bundle") for verb in ("get", "patch")}
    eventually_granted(mesh, home, everywhere | bundle | proxies)
    eventually_granted(mesh, "kube-system", everywhere)
    mesh.release.upgrade(VALUES, *TRUSTS)
    eventually_granted(mesh, "kube-system", everywhere | OF_CONTROLLER)
    assert granted(mesh, "burgee-agent", home) == as_rules(OF_AGENT)


def eventually_granted(mesh: Mesh, namespace: str, wanted: set[Rule]) -> None:
    """The API server learns of changed roles by a watch of its own."""
    try:
        until("the rights are so", lambda: granted(mesh, "burgee-server", namespace) == wanted, seconds=20)
    except AssertionError:
        assert granted(mesh, "burgee-server", namespace) == wanted


def test_what_they_are_not_granted_is_refused(mesh: Mesh) -> None:
    home = mesh.release.namespace
    for account, path in (
        ("burgee-server", "/api/v1/namespaces/kube-system/pods/x"),
        ("burgee-server", f"/api/v1/namespaces/{home}/secrets"),
        ("burgee-agent", f"/api/v1/namespaces/{home}/pods"),
        ("burgee-agent", f"/api/v1/nodes/{mesh.node}"),
        ("burgee-agent", f"/api/v1/nodes/{mesh.node}/proxy/pods"),
    ):
        with pytest.raises(Refused) as caught:
            _as_account(mesh.cluster, home, account).call("GET", path)
        assert caught.value.status == 403
