"""What a certificate of a pod costs us: the CPU of server and controller, without the API server's."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from ca.proto.spire import server_entry_pb2, server_entry_pb2_grpc, types_pb2
from tests.bench.load import ROOT, Figures
from tests.bench.target import cpu_seconds
from tests.ca.controller.lab import prepare
from tests.support.kube import Cluster, Object, fresh, kube_lab
from tests.support.kube_programs import BINARIES
from tests.support.pair import TRUST_DOMAIN, Pair, until
from tests.support.pod_certificates import certified_pod, condition, request_certificate, status_of
from tests.support.server import spiffe_id

PODS = 200
NODES = 4
SIGNER = "bench.example.com/svid"
ALIAS = "/k8s/demo"
CALLERS = 16
"""Requests that come at the same time, as when a deployment rolls out."""
OTHERS = 1000
"""Entries that are for other pods: each is looked at."""


def can_run() -> bool:
    """Whether Kubernetes was built."""
    return all((BINARIES / name).exists() for name in ("etcd", "kube-apiserver"))


def pod_certificates(rounds: int) -> Figures:
    """Each pod is asked for once a round, as its kubelet would; all of them are answered."""
    cluster = kube_lab()
    prepare(cluster)
    namespace = cluster.namespace()
    nodes = [cluster.node(fresh("node"))["metadata"]["name"] for _ in range(NODES)]
    with ThreadPoolExecutor(8) as pool:
        pods = list(
            pool.map(
                lambda number: certified_pod(
                    cluster, namespace, node=nodes[number % NODES], signer=SIGNER, labels={"app": "shop"}
                ),
                range(PODS),
            )
        )
    with tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch:
        server = Pair(Path(scratch))
        try:
            server.start_server()
            controller = _controller(server, cluster, Path(scratch))
            try:
                _asked(cluster, pods[:20])
                pids = server.pid("server"), controller.pid
                costs = [_cost_ms(cluster, pods, pids) for _ in range(rounds)]
            finally:
                controller.terminate()
                controller.wait(20)
        finally:
            server.close()
    server_ms, controller_ms = (statistics.median(one) for one in zip(*costs, strict=True))
    return {
        "pod_certificate_cpu_ms": server_ms + controller_ms,
        "pod_certificate_server_cpu_ms": server_ms,
    }


def _cost_ms(cluster: Cluster, pods: list[Object], pids: tuple[int, int]) -> tuple[float, ...]:
    before = [cpu_seconds(pid) for pid in pids]
    _asked(cluster, pods)
    return tuple((cpu_seconds(pid) - had) / len(pods) * 1e3 for pid, had in zip(pids, before, strict=True))


def _asked(cluster: Cluster, pods: list[Object]) -> None:
    def ask(pod: Object) -> None:
        path = request_certificate(cluster, pod, signer=SIGNER)

        def done() -> bool:
            return condition(status_of(cluster, path)) == ("Issued", "Issued")

        until("the request is answered", done, seconds=60, every=0.25)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(ask, pods))


def _controller(server: Pair, cluster: Cluster, scratch: Path) -> subprocess.Popen[bytes]:
    """As a process of its own, beside entries for all pods of the cluster below an alias of its nodes."""
    entries = [
        _entry(ALIAS, "/spire/server", "k8s_psat:cluster:demo"),
        _entry("/shop", ALIAS, "k8s:sa:default", "k8s:pod-label:app:shop"),
        *(_entry(f"/other/{number}", ALIAS, "k8s:sa:default", f"k8s:ns:n{number}") for number in range(OTHERS)),
    ]
    with grpc.insecure_channel(f"unix:{server.admin_socket}") as channel:
        stub = server_entry_pb2_grpc.EntryStub(channel)
        for some in (entries[:500], entries[500:]):
            answer = stub.BatchCreateEntry(server_entry_pb2.BatchCreateEntryRequest(entries=some), timeout=60)
            assert {result.status.code for result in answer.results} == {0}, answer.results[0]
    config: dict[str, Any] = {
        "trust_domain": TRUST_DOMAIN,
        "cluster": "demo",
        "server": {"admin_socket": str(server.admin_socket)},
        "kubeconfig": str(cluster.kubeconfig()),
        "metrics_address": None,
        "pod_certificates": {"signer_name": SIGNER, "entry_wait_seconds": 600},
        "log": {"level": "warning"},
    }
    path = scratch / "controller.yaml"
    path.write_text(json.dumps(config))
    return subprocess.Popen([sys.executable, "-m", "ca.controller", "--config", str(path)], cwd=ROOT)


def _entry(path: str, parent: str, *selectors: str) -> types_pb2.Entry:
    pairs = [selector.split(":", 1) for selector in selectors]
    return types_pb2.Entry(
        spiffe_id=spiffe_id(path, TRUST_DOMAIN),
        parent_id=spiffe_id(parent, TRUST_DOMAIN),
        selectors=[types_pb2.Selector(type=kind, value=value) for kind, value in pairs],
    )
