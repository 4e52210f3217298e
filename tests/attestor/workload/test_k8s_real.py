"""Pods of a real Kubernetes API server: their processes get their SVIDs, and who is not one of them does not.

Server and agent are ours, the agent proven by its pod's projected token. The kubelet is a stand-in that serves the pods
which the API server has bound to the node, and asks the API server who may see them. A tree of ours stands for /proc of
the processes, which are real and really call.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from attestor.workload.k8s import Config, K8sAttestor
from ca.identity.bundle_pem import format_pem
from ca.proto.spire import server_entry_pb2, types_pb2
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from sds.agent import Agent
from sds.config import AgentConfig
from tests.attestor.node.test_k8s_psat_real import ACCOUNT, NAMESPACE, Node, server_access, server_config
from tests.attestor.processes import Pinned, pinned
from tests.attestor.workload.k8s_node import FAST, HASTY, Trees, in_pod, reason, tree, until, values
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.sds.lab import eventually
from tests.support.kube import Cluster, Object, kube_lab
from tests.support.kubelet import FINE, ClusterGate, StandInKubelet, pods_of, status
from tests.support.server import RunningServer, running_server, spiffe_id

pytestmark = [pytest.mark.real("kube-apiserver"), pytest.mark.xdist_group("kube")]

PAGE = ROOT / "docs/plugins/workload-attestor-k8s.md"
WORKLOAD = ROOT / "tests/sds/workload_process.py"
MAIN, SIDECAR = "a1" * 32, "b2" * 32


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """With the rights that the plugins' pages ask for, and no more."""
    cluster = kube_lab()
    server_access(cluster)
    rights(cluster)
    return cluster


def rights(cluster: Cluster) -> None:
    """Those that the page has."""
    (text,) = [block for block in blocks(PAGE, "yaml") if "ClusterRoleBinding" in block]
    cluster.apply(*yaml.safe_load_all(text))


@pytest.fixture
def node(cluster: Cluster) -> Node:
    return Node(cluster)


@pytest.fixture
def kubelet(node: Node) -> Iterator[StandInKubelet]:
    with StandInKubelet(pods_of(node.cluster, node.name), ClusterGate(node.cluster, node.name)) as running:
        yield running


def kubelet_config(kubelet: StandInKubelet, node: Node, directory: Path, **options: Any) -> dict[str, Any]:
    """With the token that is mounted into the agent's pod: for the API server itself."""
    token = node.cluster.token_for(node.pod, node.cluster.issuer)
    return kubelet.config(directory, token) | options


def web(node: Node, *, started: bool = True, **more: Any) -> Object:
    """A pod with a sidecar on the node, as its kubelet reports it."""
    cluster = node.cluster
    said = {
        "containerStatuses": [status("main", MAIN if started else "", "registry.test/web:1.4")],
        "initContainerStatuses": [status("proxy", SIDECAR, "registry.test/proxy:2")],
    }
    spec = {
        "containers": [{"name": "main", "image": "registry.test/web:1.4"}],
        "initContainers": [{"name": "proxy", "image": "registry.test/proxy:2", "restartPolicy": "Always"}],
    }
    namespace = cluster.namespace()
    return cluster.pod(namespace, "web", node=node.name, labels={"app": "web"}, spec=spec, status=said, **more)


def uid(pod: Object) -> str:
    return str(pod["metadata"]["uid"])


class Lab:
    """A server, and an agent on the node whose processes are in containers as `trees` has it."""

    def __init__(self, server: RunningServer, agent: Agent, trees: Trees, socket: Path) -> None:
        self.server = server
        self.agent = agent
        self.trees = trees
        self._socket = socket

    async def entry(self, path: str, *selectors: str) -> None:
        assert self.agent.identity.svid is not None
        wanted = types_pb2.Entry(
            spiffe_id=spiffe_id(path),
            parent_id=spiffe_id(self.agent.identity.svid.id.path),
            selectors=[types_pb2.Selector(type="k8s", value=value) for value in selectors],
        )
        answer = await self.server.local.entries.BatchCreateEntry(
            server_entry_pb2.BatchCreateEntryRequest(entries=[wanted])
        )
        entry_id = answer.results[0].entry.id
        await eventually(lambda: self.agent.cache.svid(entry_id) is not None, seconds=30)

    @asynccontextmanager
    async def process(self, cgroup: str) -> AsyncIterator[asyncio.StreamReader]:
        """A workload that asks for its X.509-SVIDs; what it prints."""
        arguments = [str(WORKLOAD), str(self._socket), "x509", str(os.getuid())]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        self.trees.put(process.pid, cgroup)  # long before it has loaded what it calls with
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def line(output: asyncio.StreamReader) -> str:
    return (await asyncio.wait_for(output.readline(), 60)).decode().strip()


@pytest.fixture
async def lab(cluster: Cluster, node: Node, kubelet: StandInKubelet, tmp_path: Path) -> AsyncIterator[Lab]:
    async with node_lab(cluster, node, kubelet, tmp_path) as lab:
        yield lab


@asynccontextmanager
async def node_lab(cluster: Cluster, node: Node, kubelet: StandInKubelet, directory: Path) -> AsyncIterator[Lab]:
    config = server_config(demo=server_access(cluster))
    with tempfile.TemporaryDirectory(prefix="bg-") as short:
        home = Path(short)
        async with running_server(node_attestors=config) as server:
            (home / "bundle.pem").write_text(format_pem(server.server.trust.own))
            (home / "agent-token").write_text(node.token)
            options = {
                "trust_domain": "example.org",
                "data_dir": str(home / "agent"),
                "servers": ["{}:{}".format(*server.server.address)],
                "workload_socket": str(home / "w" / "w.sock"),
                "admin_socket": {"path": str(home / "a" / "a.sock")},
                "trust": {"bundle_file": str(home / "bundle.pem")},
                "node_attestor": {"k8s_psat": {"cluster": "demo", "token_path": str(home / "agent-token")}},
                "workload_attestors": {"unix": {}, "k8s": kubelet_config(kubelet, node, home / "kubelet")},
                "cache": {"persist": "none"},
                "metrics_address": None,
                "attest_interval_seconds": 1.0,
            }
            agent = Agent(from_values(options, AgentConfig))
            trees = Trees(directory)
            attestor = agent.attestors["k8s"]
            assert isinstance(attestor, K8sAttestor)
            attestor._find = trees.find
            try:
                await agent.start()
                await eventually(lambda: agent.cache.ready, seconds=60)
                yield Lab(server, agent, trees, home / "w" / "w.sock")
            finally:
                await agent.close()


async def test_a_pods_process_gets_the_pods_svid(lab: Lab, node: Node, kubelet: StandInKubelet) -> None:
    assert lab.agent.identity.svid is not None
    assert lab.agent.identity.svid.id.path == f"/spire/agent/k8s_psat/demo/{node.uid}"
    pod = web(node)
    namespace = pod["metadata"]["namespace"]
    await lab.entry("/web", f"ns:{namespace}", "sa:default", "container-name:main")
    await lab.entry("/proxy", f"ns:{namespace}", "sa:default", "container-name:proxy")
    async with lab.process(in_pod(uid(pod), MAIN)) as main, lab.process(in_pod(uid(pod), SIDECAR)) as proxy:
        assert await line(main) == "spiffe://example.org/web"
        assert await line(proxy) == "spiffe://example.org/proxy"
    async with lab.process("0::/system.slice/app.service\n") as stranger:
        assert (await line(stranger)).startswith("PERMISSION_DENIED")
    assert set(kubelet.used) == {FINE}, "by no right but `nodes/pods`"


async def test_a_pod_that_is_relabelled_gains_and_loses_identities_while_its_stream_lives(lab: Lab, node: Node) -> None:
    pod = web(node)
    await lab.entry("/web", "pod-label:app:web", f"pod-uid:{uid(pod)}")
    await lab.entry("/canary", "pod-label:track:canary", f"pod-uid:{uid(pod)}")
    async with lab.process(in_pod(uid(pod), MAIN)) as output:
        assert await line(output) == "spiffe://example.org/web"
        took = []
        for label, expected in (("canary", {"web", "canary"}), (None, {"web"})):
            node.cluster.relabel(pod, track=label)
            began = time.monotonic()
            assert set((await line(output)).split()) == {f"spiffe://example.org/{name}" for name in expected}
            took.append(time.monotonic() - began)
    assert max(took) <= 5 * 5
    print(f"relabelled, and told after {took[0]:.1f} and {took[1]:.1f} s")


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Pinned]:
    """A process in a container that no pod has yet."""
    with pinned(os.getpid(), tree(tmp_path / "proc", in_pod("c0ffee00-0000-4000-8000-000000000001", MAIN))) as process:
        yield process


async def test_each_fault_has_its_own_reason(
    cluster: Cluster, node: Node, kubelet: StandInKubelet, caller: Pinned, tmp_path: Path
) -> None:
    def attestor(token: str | None = None, **options: Any) -> K8sAttestor:
        config = kubelet_config(kubelet, node, tmp_path / "agent", **HASTY, **options)
        if token is not None:
            (tmp_path / "agent" / "token").write_text(token)
        return K8sAttestor(from_values(config, Config))

    assert await reason(attestor(), caller) == "K8S_POD_UNKNOWN"
    wrong_audience = cluster.token_for(node.pod, "spire-server")
    assert await reason(attestor(wrong_audience), caller) == "KUBELET_UNAUTHENTICATED"
    without_rights = Node(cluster, account="default")
    other_account = cluster.token_for(without_rights.pod, cluster.issuer)
    assert await reason(attestor(other_account), caller) == "KUBELET_FORBIDDEN"
    elsewhere = web(without_rights)
    with pinned(os.getpid(), tree(tmp_path / "elsewhere", in_pod(uid(elsewhere), MAIN))) as process:
        assert await reason(attestor(), process) == "K8S_POD_UNKNOWN", "it runs on another node"
    here = web(node)
    with pinned(os.getpid(), tree(tmp_path / "here", in_pod(uid(here), MAIN))) as process:
        assert f"pod-uid:{uid(here)}" in await values(attestor(), process)
        assert await reason(attestor(), caller) == "K8S_POD_MISMATCH", "the container is that pod's, the cgroup is not"
        cluster.delete_pod(here)
        assert await reason(attestor(), process) == "K8S_POD_UNKNOWN", "it was deleted"


async def test_a_token_of_a_pod_that_is_gone(
    cluster: Cluster, node: Node, kubelet: StandInKubelet, caller: Pinned, tmp_path: Path
) -> None:
    """One that the API server has seen it may vouch for during ten seconds more; so here is one that it has not."""
    config = kubelet_config(kubelet, node, tmp_path, **HASTY)
    assert await reason(K8sAttestor(from_values(config, Config)), caller) == "K8S_POD_UNKNOWN"
    unseen = kubelet_config(kubelet, node, tmp_path, **HASTY)
    cluster.delete_pod(node.pod)
    attestor = K8sAttestor(from_values(unseen, Config))
    async with asyncio.timeout(60):
        while await reason(attestor, caller) != "KUBELET_UNAUTHENTICATED":  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.5)


async def test_a_pod_that_is_starting_is_waited_for(node: Node, kubelet: StandInKubelet, tmp_path: Path) -> None:
    pod = web(node, started=False)
    config = kubelet_config(kubelet, node, tmp_path / "agent", **FAST)
    attestor = K8sAttestor(from_values(config, Config))
    with pinned(os.getpid(), tree(tmp_path / "proc", in_pod(uid(pod), MAIN))) as process, collecting() as notes:
        looking = asyncio.create_task(values(attestor, process))
        await until(lambda: attestor.snapshots.requests >= 2)
        node.cluster.set_status(pod, containerStatuses=[status("main", MAIN, "registry.test/web:1.4")])
        assert "container-name:main" in await looking
    assert dict(notes)["pod"].endswith(uid(pod))


async def test_rights_are_those_of_an_account(cluster: Cluster, node: Node, kubelet: StandInKubelet) -> None:
    """What the tests above rest on: the account may see this node's pods, and run nothing in them."""
    gate = ClusterGate(cluster, node.name)
    user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
    assert gate.permission(user) == FINE
    assert not gate._may(user, "nodes/proxy")
    assert gate.permission(f"system:serviceaccount:{NAMESPACE}:default") is None
