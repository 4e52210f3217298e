"""Server and agent outside of the cluster, as the service accounts that the chart made: what they need is granted.

Their configurations are the release's own, with other paths. Tokens are those that the kubelet gets for their pods.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from attestor.workload.k8s import K8sAttestor
from ca.proto.spire import server_entry_pb2, server_entry_pb2_grpc, types_pb2
from ca.runtime.config import from_values
from ca.runtime.kube_permissions import OF_AGENT, OF_SERVER, Permission
from sds.agent import Agent
from sds.config import AgentConfig
from tests.attestor.workload.k8s_node import Trees, in_pod
from tests.docs.reason_codes import ROOT
from tests.helm.charts import Object, config_of, helm
from tests.helm.releases import Release
from tests.sds.lab import eventually
from tests.support.kube import Cluster, Refused, User, fresh
from tests.support.kube_managed import Kubelets, managed_cluster, until
from tests.support.kubelet import FINE, ClusterGate, StandInKubelet, pods_of, status
from tests.support.pair import TRUST_DOMAIN, Pair

pytestmark = [pytest.mark.real("kube-controller-manager"), pytest.mark.xdist_group("managed")]

MAIN = "a1" * 32
LABELLED = {"server": {"nodeAttestors": {"k8sPsat": {"allowedPodLabelKeys": ["app.kubernetes.io/component"]}}}}
Rule = tuple[str, str, str]


class Mesh:
    """A release whose pods are said to run on a node, and what a kubelet would have mounted into them."""

    def __init__(self, release: Release, node: str) -> None:
        self.release = release
        self.cluster = release.cluster
        self.node = node
        self.objects = list(
            yaml.safe_load_all(
                helm("get", "manifest", "burgee", "-n", release.namespace, kubeconfig=release.kubeconfig)
            )
        )

    def pod(self, component: str) -> Object:
        selector = f"app.kubernetes.io/component%3D{component}"
        path = f"/api/v1/namespaces/{self.release.namespace}/pods?labelSelector={selector}"

        def running() -> Object | None:
            pods = self.cluster.admin.call("GET", path)["items"]
            return next((pod for pod in pods if pod["status"].get("phase") == "Running"), None)

        found: Object = until(f"the {component} runs", running)
        return found

    def token(self, component: str, *audiences: str) -> str:
        """As the node's kubelet gets it for the pod; without audiences it is for the API server."""
        pod = self.pod(component)
        bound = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        spec = {"audiences": list(audiences), "expirationSeconds": 3600, "boundObjectRef": bound}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        account = pod["spec"]["serviceAccountName"]
        path = f"/api/v1/namespaces/{self.release.namespace}/serviceaccounts/{account}/token"
        token: str = self.cluster.node_user(self.node).call("POST", path, request)["status"]["token"]
        return token

    def config(self, who: str) -> dict[str, Any]:
        value: dict[str, Any] = yaml.safe_load(config_of(self.objects, who))
        return value


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    cluster = managed_cluster()
    namespace = cluster.namespace(fresh("mesh"))
    node = fresh("node")
    release = Release(cluster, namespace, tmp_path_factory.mktemp("release"))
    with Kubelets(cluster, node, namespace):
        release.install(LABELLED, "--set", f"trustDomain={TRUST_DOMAIN}", "--wait", "--timeout", "60s")
        yield Mesh(release, node)
        release.uninstall()


@pytest.fixture
def server(mesh: Mesh, tmp_path: Path) -> Iterator[Pair]:
    """The server's program with the release's configuration."""
    (tmp_path / "server-token").write_text(mesh.token("server"))
    rendered = mesh.config("server")
    (cluster,) = rendered["node_attestors"]["k8s_psat"]["clusters"].values()
    cluster["kube_config_file"] = str(mesh.cluster.token_kubeconfig(tmp_path / "server-token"))
    elsewhere = ("data_dir", "bind_address", "bind_port", "admin_socket", "metrics_address")
    home = Path(tempfile.mkdtemp(prefix="bg-"))
    made = Pair(home, server={key: value for key, value in rendered.items() if key not in elsewhere})
    try:
        made.start_server()
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


def agent_options(mesh: Mesh, server: Pair, kubelet: StandInKubelet) -> dict[str, Any]:
    """The release's configuration, with what a kubelet mounts where this machine has it."""
    home, options = server.home, mesh.config("agent")
    (home / "node-token").write_text(mesh.token("agent", "spire-server"))
    options["node_attestor"]["k8s_psat"]["token_path"] = str(home / "node-token")
    options["workload_attestors"]["k8s"] |= kubelet.config(home / "kubelet", mesh.token("agent"))
    return options | {
        "data_dir": str(home / "agent"),
        "servers": [f"127.0.0.1:{server.port}"],
        "workload_socket": str(server.workload_socket),
        "admin_socket": {"path": str(server.agent_admin_socket)},
        "trust": {"bundle_file": str(server.bundle_file)},
        "cache": {"persist": "none"},
        "metrics_address": None,
    }


def web(mesh: Mesh) -> Object:
    """A pod of somebody's on the node."""
    namespace = mesh.cluster.namespace(fresh("shop"))
    said = {"containerStatuses": [status("main", MAIN)]}
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


async def test_an_agent_joins_and_a_pods_process_has_its_svid(mesh: Mesh, server: Pair, tmp_path: Path) -> None:
    gate = ClusterGate(mesh.cluster, mesh.node)
    with StandInKubelet(pods_of(mesh.cluster, mesh.node), gate) as kubelet:
        agent = Agent(from_values(agent_options(mesh, server, kubelet), AgentConfig))
        trees = Trees(tmp_path)
        attestor = agent.attestors["k8s"]
        assert isinstance(attestor, K8sAttestor)
        attestor._find = trees.find
        try:
            await agent.start()
            await eventually(lambda: agent.cache.ready, seconds=60)
            assert agent.identity.svid is not None
            uid = mesh.cluster.admin.call("GET", f"/api/v1/nodes/{mesh.node}")["metadata"]["uid"]
            assert agent.identity.svid.id.path == f"/spire/agent/k8s_psat/main/{uid}"
            pod = web(mesh)
            create_entry(server, agent.identity.svid.id.path, pod["metadata"]["namespace"])
            assert await ask(server.workload_socket, trees, pod) == f"spiffe://{TRUST_DOMAIN}/web"
        finally:
            await agent.close()
        assert set(kubelet.used) == {FINE}


async def ask(socket: Path, trees: Trees, pod: Object) -> str:
    """What a process in the pod is told."""
    script = ROOT / "tests/sds/workload_process.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [str(script), str(socket), "x509", str(os.getuid())]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=subprocess.PIPE, cwd=ROOT, env=environment
    )
    trees.put(process.pid, in_pod(pod["metadata"]["uid"], MAIN))  # long before it has loaded what it calls with
    assert process.stdout is not None
    try:
        return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


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
        verify=_context(cluster),
        headers={"Authorization": f"Bearer {cluster.account_token(namespace, account, cluster.issuer)}"},
        timeout=30,
        trust_env=False,
    )
    return user


def _context(cluster: Cluster) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(cluster.ca_file))


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
    assert granted(mesh, "burgee-server", home) == as_rules(OF_SERVER)
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
