"""Server and agent outside of the cluster, as the service accounts that the chart made: what they need is granted."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca.proto.spire import server_entry_pb2, server_entry_pb2_grpc, types_pb2
from ca.runtime.kube_permissions import OF_AGENT, OF_SERVER, Permission
from tests.attestor.workload.k8s_node import Trees
from tests.helm.charts import Object
from tests.helm.mesh import CONTAINER, Mesh, ask
from tests.helm.releases import Release
from tests.support.kube import Cluster, Refused, User, fresh
from tests.support.kube_managed import Kubelets, managed_cluster
from tests.support.kubelet import FINE, status
from tests.support.pair import TRUST_DOMAIN, Pair

pytestmark = [pytest.mark.real("kube-controller-manager"), pytest.mark.xdist_group("managed")]

VALUES = {"server": {"nodeAttestors": {"k8sPsat": {"allowedPodLabelKeys": ["app.kubernetes.io/component"]}}}}
Rule = tuple[str, str, str]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    cluster = managed_cluster()
    namespace = cluster.namespace(fresh("mesh"))
    node = fresh("node")
    release = Release(cluster, namespace, tmp_path_factory.mktemp("release"))
    with Kubelets(cluster, node, namespace):
        release.install(VALUES, "--set", f"trustDomain={TRUST_DOMAIN}", "--wait", "--timeout", "60s")
        yield Mesh(release, node)
        release.uninstall()


def web(mesh: Mesh) -> Object:
    """A pod of somebody's on the node."""
    namespace = mesh.cluster.namespace(fresh("shop"))
    said = {"containerStatuses": [status("main", CONTAINER)]}
    return mesh.cluster.pod(namespace, "web", node=mesh.node, status=said)


def create_entry(server: Pair, parent: str, namespace: str) -> None:
    wanted = types_pb2.Entry(
        spiffe_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path="/web"),
        parent_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=parent),
        selectors=[types_pb2.Selector(type="k8s", value=f"ns:{namespace}")],
    )
    with server._channel(server.admin_socket) as channel:
        stub = server_entry_pb2_grpc.EntryStub(channel)
        answer = stub.BatchCreateEntry(server_entry_pb2.BatchCreateEntryRequest(entries=[wanted]), timeout=10)
    assert answer.results[0].status.code == 0


async def test_an_agent_joins_and_a_pods_process_has_its_svid(mesh: Mesh, tmp_path: Path) -> None:
    trees = Trees(tmp_path)
    with mesh.server() as server:
        async with mesh.agent(server, trees) as (agent, kubelet):
            assert agent.identity.svid is not None
            uid = mesh.cluster.admin.call("GET", f"/api/v1/nodes/{mesh.node}")["metadata"]["uid"]
            assert agent.identity.svid.id.path == f"/spire/agent/k8s_psat/main/{uid}"
            pod = web(mesh)
            create_entry(server, agent.identity.svid.id.path, pod["metadata"]["namespace"])
            assert await ask(server.workload_socket, trees, pod) == f"spiffe://{TRUST_DOMAIN}/web"
            assert set(kubelet.used) == {FINE}


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


def test_they_may_do_what_they_need_and_nothing_more(mesh: Mesh) -> None:
    home = mesh.release.namespace
    bundle = {(verb, "/configmaps", "burgee-bundle") for verb in ("get", "patch")}
    assert granted(mesh, "burgee-server", home) == as_rules(OF_SERVER) | bundle
    everywhere = {rule for rule in as_rules(OF_SERVER) if rule[1] != "/pods"}
    assert granted(mesh, "burgee-server", "kube-system") == everywhere
    for namespace in (home, "kube-system"):
        assert granted(mesh, "burgee-agent", namespace) == as_rules(OF_AGENT)


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
