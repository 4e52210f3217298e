"""A real API server with the real controller-manager: what is deployed gets pods, and what is deleted goes.

    cluster = managed_cluster()                # one per test process; skips where Kubernetes was not built
    with Kubelets(cluster, "n1"): ...          # binds pods to that node and says that they run, until the `with` ends

Whoever uses it carries `@pytest.mark.xdist_group("managed")`. It is another cluster than `kube_lab`, whose pods no
controller would let live.
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from tests.support.kube import Cluster, Object, Refused, _started, path_of
from tests.support.kube_programs import BINARIES, HOW, Program
from tests.support.real import require

LEFT_OUT = ("node-lifecycle-controller", "taint-eviction-controller", "node-ipam-controller")
"""They would call nodes dead that no machine reports for."""


@functools.cache
def managed_cluster() -> Cluster:
    """The managed cluster of this test process."""
    built = (BINARIES / "kube-controller-manager").exists()
    require("Kubernetes 1.37 (kube-controller-manager)", built, HOW)
    cluster = _started("managed")
    program = Program("kube-controller-manager", cluster.directory, _arguments(cluster))
    atexit.register(program.stop)
    program.until(lambda: _has_default_account(cluster), "make service accounts")
    return cluster


class Kubelets:
    """Plays scheduler, kubelet and container runtime for one node: pods are bound to it, run at once, and end at once.

    `namespaces` limits it to the pods of those.
    """

    def __init__(self, cluster: Cluster, node: str, *namespaces: str) -> None:
        self._cluster = cluster
        self._node = node
        self._namespaces = namespaces
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._cluster.node(self._node)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._cluster.delete_node(self._node)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for pod in self._cluster.admin.call("GET", "/api/v1/pods")["items"]:
                if not self._namespaces or pod["metadata"]["namespace"] in self._namespaces:
                    try:
                        self._step(pod)
                    except Refused as refused:
                        if refused.status not in (404, 409):
                            raise

    def _step(self, pod: Object) -> None:
        if pod["metadata"].get("deletionTimestamp"):
            if pod["spec"].get("nodeName") in (None, self._node):
                self._cluster.delete_pod(pod)
        elif not pod["spec"].get("nodeName") and _wanted_node(pod) in ("", self._node):
            target = {"apiVersion": "v1", "kind": "Node", "name": self._node}
            body = {"apiVersion": "v1", "kind": "Binding", "metadata": _named(pod), "target": target}
            self._cluster.admin.call("POST", f"{path_of(pod)}/binding", body)
        elif pod["spec"].get("nodeName") == self._node and pod["status"].get("phase") != "Running":
            self._cluster.set_status(pod, **_running(pod))


def until(what: str, probe: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """What `probe` gives as soon as it is true. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
    return found


def _wanted_node(pod: Object) -> str:
    """The one that a DaemonSet made the pod for."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    fields = [field for term in required.get("nodeSelectorTerms", ()) for field in term.get("matchFields", ())]
    return next((field["values"][0] for field in fields if field["key"] == "metadata.name"), "")


def _named(pod: Object) -> Mapping[str, str]:
    return {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}


def _running(pod: Object) -> Object:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": now}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    statuses = [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": container["image"],
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        }
        for container in pod["spec"]["containers"]
    ]
    return {
        "phase": "Running",
        "hostIP": "10.1.2.3",
        "podIP": "10.244.0.9",
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": statuses,
    }


def _has_default_account(cluster: Cluster) -> bool:
    try:
        cluster.admin.call("GET", "/api/v1/namespaces/default/serviceaccounts/default")
    except Refused:
        return False
    return True


def _arguments(cluster: Cluster) -> list[str]:
    return [
        f"--kubeconfig={cluster.kubeconfig()}",
        "--leader-elect=false",
        "--use-service-account-credentials=false",
        "--service-account-private-key-file=sa.key",
        "--root-ca-file=ca.pem",
        "--secure-port=0",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        f"--controllers={','.join(['*', *(f'-{name}' for name in LEFT_OUT)])}",
    ]
