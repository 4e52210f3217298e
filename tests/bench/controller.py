"""What a controller takes for a cluster: all of it at once, and one pod that changes; at the real API server."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ca.controller.config import ControllerConfig
from tests.attestor.node.test_k8s_psat_real import Node, server_access
from tests.attestor.workload.k8s_node import in_pod
from tests.attestor.workload.test_k8s_real import MAIN, line, node_lab, rights, uid, web
from tests.bench.load import Figures
from tests.bench.target import UNLIMITED
from tests.ca.controller.lab import Objects, config, prepare, running, until
from tests.support.kube import Cluster, fresh, kube_lab
from tests.support.kube_programs import BINARIES
from tests.support.kubelet import ClusterGate, StandInKubelet, pods_of
from tests.support.pair import TRUST_DOMAIN, Pair

PODS, RULES, NODES = 1000, 10, 20
CHANGES = 60


def can_run() -> bool:
    """Whether Kubernetes was built."""
    return all((BINARIES / name).exists() for name in ("etcd", "kube-apiserver"))


def controller(rounds: int) -> Figures:
    """`rounds` are of the whole cluster; changes are so many altogether."""
    cluster = kube_lab()
    prepare(cluster)
    objects = Objects(cluster)
    try:
        whole = _whole(cluster, objects, rounds)
        latency = asyncio.run(_changes(cluster, objects))
    finally:
        objects.close()
    latency.sort()
    return {
        "controller_whole_s": whole,
        "controller_change_p50_ms": statistics.median(latency) * 1e3,
        "controller_change_p99_ms": latency[int(len(latency) * 0.99)] * 1e3,
    }


def _whole(cluster: Cluster, objects: Objects, rounds: int) -> float:
    """From the controller's start to the last of the entries, on a server that has none."""
    label = fresh("bench")
    namespace = cluster.namespace(labels={"bench": label})
    nodes = [cluster.node(fresh("node"))["metadata"]["name"] for _ in range(NODES)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cluster.pod(namespace, f"p{number}", node=nodes[number % NODES]), range(PODS)))
    for number in range(RULES):
        objects.spiffe_id(
            namespaceSelector={"matchLabels": {"bench": label}},
            spiffeIDTemplate=f"spiffe://{TRUST_DOMAIN}/{number}/" + "{{ .PodMeta.Namespace }}/{{ .PodMeta.Name }}",
            dnsNameTemplates=["{{ .PodMeta.Name }}.{{ .PodMeta.Namespace }}.svc"],
            workloadSelectorTemplates=["k8s:sa:{{ .PodSpec.ServiceAccountName }}"],
        )
    took = [_reconciled(cluster) for _ in range(rounds)]
    cluster.admin.call("DELETE", f"/api/v1/namespaces/{namespace}/pods?gracePeriodSeconds=0")
    objects.close()
    return statistics.median(took)


def _reconciled(cluster: Cluster) -> float:
    with tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch:
        server = Pair(Path(scratch), server=UNLIMITED)
        try:
            server.start_server()
            return asyncio.run(_all_there(config(cluster, Path(server.admin_socket), trust_domain=TRUST_DOMAIN)))
        finally:
            server.close()


async def _all_there(given: ControllerConfig) -> float:
    began = time.monotonic()
    async with running(given) as controller:
        await until(lambda: controller.reconciler.entries == PODS * RULES)
        return time.monotonic() - began


async def _changes(cluster: Cluster, objects: Objects) -> list[float]:
    """A pod is relabelled so that an object chooses it, or no longer does: until its process was told."""
    server_access(cluster)
    rights(cluster)
    node = Node(cluster)
    with (
        tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch,
        StandInKubelet(pods_of(cluster, node.name), ClusterGate(cluster, node.name)) as kubelet,
    ):
        async with node_lab(cluster, node, kubelet, Path(scratch)) as lab, running(config(cluster, lab.server)):
            pod = web(node)
            objects.spiffe_id(podSelector={"matchLabels": {"app": "web"}})
            objects.spiffe_id(
                podSelector={"matchLabels": {"bench": "yes"}}, spiffeIDTemplate="spiffe://example.org/more"
            )
            took = []
            async with lab.process(in_pod(uid(pod), MAIN)) as output:
                assert "more" not in await line(output)
                for change in range(CHANGES):
                    began = time.monotonic()
                    await asyncio.to_thread(cluster.relabel, pod, bench=None if change % 2 else "yes")
                    told = await line(output)
                    took.append(time.monotonic() - began)
                    assert ("more" in told) is (change % 2 == 0), told
            return took
