"""The chart before a real API server with the real controller-manager: accepted, deployed, changed, and gone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conformance.programs import go_program
from tests.helm.charts import MATRIX, Object, helm, named, rendered
from tests.helm.prometheus_crds import CRDS
from tests.helm.releases import Release
from tests.helm.schemas import write_schemas
from tests.support.kube import Cluster, Refused, fresh
from tests.support.kube_managed import Kubelets, managed_cluster, until

pytestmark = [pytest.mark.real("kube-controller-manager"), pytest.mark.xdist_group("managed")]

PRIVILEGED = "mesh-agents"
ELSEWHERE = (PRIVILEGED, "istio-system")
"""Namespaces that some of the values name."""


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    cluster = managed_cluster()
    cluster.apply(*CRDS, *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ELSEWHERE))
    plurals = {crd["spec"]["names"]["plural"] for crd in CRDS}
    until("it serves what Prometheus' operator reads", lambda: plurals <= _served(cluster, "monitoring.coreos.com/v1"))
    return cluster


@pytest.fixture(scope="module")
def kubelets(cluster: Cluster) -> Iterator[Kubelets]:
    with Kubelets(cluster, "node-1") as running:
        yield running


@pytest.fixture
def release(cluster: Cluster, tmp_path: Path) -> Iterator[Release]:
    namespace = cluster.namespace(fresh("chart"))
    made = Release(cluster, namespace, tmp_path)
    yield made
    if "burgee" in helm("list", "-q", "-n", namespace, kubeconfig=made.kubeconfig).split():
        made.uninstall()
    cluster.admin.call("DELETE", f"/api/v1/namespaces/{namespace}")


@pytest.fixture(scope="module")
def schemas(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_schemas(cluster, tmp_path_factory.mktemp("schemas"))


def judged(location: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = [go_program("kubeconform"), "-strict", "-summary", "-schema-location", location, file]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_every_object_fits_the_schemas_of_this_api_server(schemas: str, tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    objects = [one for values in MATRIX.values() for one in rendered(tmp_path, values)]
    file.write_text(yaml.safe_dump_all(objects))
    done = judged(schemas, file)
    assert done.returncode == 0, done.stdout
    assert f"Valid: {len(objects)}, Invalid: 0, Errors: 0, Skipped: 0" in done.stdout
    objects[0]["metadata"]["lables"] = {}
    file.write_text(yaml.safe_dump(objects[0]))
    assert "lables" in judged(schemas, file).stdout


@pytest.mark.parametrize("name", MATRIX)
def test_the_api_server_accepts_every_object(name: str, cluster: Cluster, release: Release, tmp_path: Path) -> None:
    """In a dry run, strictly; the namespace of the agents is another where the values say so."""
    for one in rendered(tmp_path, MATRIX[name], namespace=release.namespace):
        dry_run(cluster, one)


def dry_run(cluster: Cluster, one: Object) -> Object:
    prefix = "/api/v1" if one["apiVersion"] == "v1" else f"/apis/{one['apiVersion']}"
    namespace = one["metadata"].get("namespace")
    where = f"/namespaces/{namespace}" if namespace else ""
    plural = {"y": "ies"}.get(one["kind"][-1]) if one["kind"].endswith("y") else None
    resource = (one["kind"][:-1] + plural if plural else one["kind"] + "s").lower()
    return cluster.admin.call("POST", f"{prefix}{where}/{resource}?dryRun=All&fieldValidation=Strict", one)


def test_pod_security_lets_the_server_into_restricted_and_the_agent_into_privileged_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    spaces = {
        level: cluster.namespace(fresh(level), labels={"pod-security.kubernetes.io/enforce": level})
        for level in ("restricted", "baseline", "privileged")
    }

    def admitted(kind: str, name: str, level: str, values: str = "defaults") -> bool:
        template = named(rendered(tmp_path, MATRIX[values]), kind, name)["spec"]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": spaces[level]}}
        pod["spec"] = template["spec"] | {"serviceAccountName": "default", "priorityClassName": ""}
        pod["spec"]["volumes"] = [*pod["spec"]["volumes"], {"name": "data", "emptyDir": {}}]
        pod["spec"]["volumes"] = list({v["name"]: v for v in reversed(pod["spec"]["volumes"])}.values())
        try:
            dry_run(cluster, pod)
        except Refused as refused:
            if "violates PodSecurity" not in str(refused):
                raise
            return False
        return True

    for values in ("defaults", "vault"):
        assert admitted("StatefulSet", "burgee-server", "restricted", values)
    for values in ("defaults", "apart"):
        assert admitted("DaemonSet", "burgee-agent", "privileged", values)
        assert not admitted("DaemonSet", "burgee-agent", "baseline", values)


def test_it_is_deployed_upgraded_through_all_values_and_gone(
    cluster: Cluster, kubelets: Kubelets, release: Release
) -> None:
    until("what other tests left is gone", lambda: not release.left(PRIVILEGED))
    said = release.install({}, "--wait", "--timeout", "60s")
    assert said["info"]["status"] == "deployed"
    assert f"kubectl -n {release.namespace} rollout status" in said["info"]["notes"]
    pods = {name for kind, name in release.left() if kind == "Pod"}
    assert "burgee-server-0" in pods
    assert any(name.startswith("burgee-agent-") for name in pods)
    # What was published stays through upgrades, and the server's volume claim cannot change any more.
    release.kubectl(
        "-n", release.namespace, "patch", "configmap", "burgee-bundle", "-p", '{"data": {"bundle.crt": "PEM"}}'
    )
    claim = {"size": "1Gi", "storageClass": ""}
    for name, values in MATRIX.items():
        server = values.get("server", {})
        kept = {"persistence": server["persistence"] | claim} if "persistence" in server else {}
        assert release.upgrade(values | {"server": server | kept})["info"]["status"] == "deployed", name
        if name == "labels":
            bundle = cluster.admin.call("GET", f"/api/v1/namespaces/{release.namespace}/configmaps/burgee-bundle")
            assert bundle["data"] == {"bundle.crt": "PEM"}
    release.upgrade(MATRIX["defaults"])
    release.uninstall()
    until("its objects are gone", lambda: release.left(PRIVILEGED) == {("PersistentVolumeClaim", CLAIM)})


CLAIM = "data-burgee-server-0"


def test_nothing_is_left_where_the_volume_may_go(cluster: Cluster, kubelets: Kubelets, release: Release) -> None:
    release.install({"server": {"persistence": {"whenDeleted": "Delete"}}}, "--wait", "--timeout", "60s")
    until("its volume is claimed", lambda: ("PersistentVolumeClaim", CLAIM) in release.left())
    release.uninstall()
    until("nothing is left", lambda: not release.left())


def _served(cluster: Cluster, group: str) -> set[str]:
    try:
        return {one["name"] for one in cluster.admin.call("GET", f"/apis/{group}")["resources"]}
    except Refused:
        return set()
