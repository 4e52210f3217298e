"""A release in a real cluster: installed, looked at, used and removed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.helm.charts import CHART, Object, Values, helm, kubectl, values_file
from tests.support.kube import Cluster

KINDS = (
    "serviceaccounts,configmaps,services,statefulsets,daemonsets,deployments,poddisruptionbudgets,networkpolicies,"
    "roles,rolebindings,secrets,leases,persistentvolumeclaims,pods"
)
CLUSTERWIDE = f"{KINDS},clusterroles,clusterrolebindings,csidrivers,clustertrustbundles"
OF_THE_CLUSTER = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}


class Release:
    """One named `burgee`."""

    def __init__(self, cluster: Cluster, namespace: str, directory: Path) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.directory = directory
        self.kubeconfig = cluster.kubeconfig()

    def install(self, values: Values, *more: str) -> Object:
        """What helm says of it."""
        return self._deploy("install", values, *more)

    def upgrade(self, values: Values, *more: str) -> Object:
        return self._deploy("upgrade", values, *more)

    def uninstall(self) -> None:
        helm("uninstall", "burgee", "-n", self.namespace, "--wait", "--timeout", "60s", kubeconfig=self.kubeconfig)

    def kubectl(self, *arguments: str) -> str:
        done = subprocess.run(
            [kubectl(), f"--kubeconfig={self.kubeconfig}", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def left(self, *namespaces: str) -> set[tuple[str, str]]:
        """Kind and name of all that is in the namespaces, and of what is the release's in the whole cluster."""
        found = [self._get(KINDS, "-n", namespace) for namespace in (self.namespace, *namespaces)]
        found.append(self._get(CLUSTERWIDE, "--all-namespaces", "-l", "app.kubernetes.io/instance=burgee"))
        return {(one["kind"], one["metadata"]["name"]) for objects in found for one in objects if not _is_clusters(one)}

    def _get(self, *arguments: str) -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("get", "-o", "json", *arguments))["items"]
        return found

    def _deploy(self, verb: str, values: Values, *more: str) -> Object:
        file = values_file(self.directory, values)
        said = helm(
            verb, "burgee", CHART, "-n", self.namespace, "-f", file, "-o", "json", *more, kubeconfig=self.kubeconfig
        )
        answer: dict[str, Any] = json.loads(said)
        return answer


def _is_clusters(one: Object) -> bool:
    return (one["kind"], one["metadata"]["name"]) in OF_THE_CLUSTER
