"""`caadmin doctor cluster` against a real Kubernetes API server: who may do what server and agents need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ca.cli.conftest import Caadmin
from tests.ca.cli.test_doctor import levels
from tests.support.kube import Cluster, kube_lab

SERVER = ("create tokenreviews of authentication.k8s.io", "get pods", "get nodes")
AGENT = "get nodes/pods"


@pytest.mark.real("kube-apiserver")
@pytest.mark.xdist_group("kube")
class TestCluster:
    @pytest.fixture
    def cluster(self) -> Cluster:
        return kube_lab()

    def grant(self, cluster: Cluster, name: str, *rules: dict[str, Any]) -> Path:
        """A kubeconfig of somebody who may do this."""
        rbac = "rbac.authorization.k8s.io"
        role = {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": list(rules)}
        binding = {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "name": name, "apiGroup": rbac}],
        }
        cluster.apply(role, binding)
        return cluster.kubeconfig(cluster.user(name))

    def asked(self, caadmin: Caadmin, kubeconfig: Path, *, code: int) -> dict[str, str]:
        said = caadmin("doctor", "cluster", "--kubeconfig", str(kubeconfig), "-o", "json")
        assert said.code == code, said.out + said.err
        return levels(said.json["cluster"])

    def test_whoever_may_do_all_of_it(self, caadmin: Caadmin, cluster: Cluster) -> None:
        found = self.asked(caadmin, cluster.kubeconfig(), code=0)
        assert set(found.values()) == {"ok"}
        assert len(found) == 5

    def test_a_servers_account_need_not_be_an_agents(self, caadmin: Caadmin, cluster: Cluster) -> None:
        reviews = {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
        looks = {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get"]}
        found = self.asked(caadmin, self.grant(cluster, "doctor-server", reviews, looks), code=0)
        assert [found[f"server: {name}"] for name in SERVER] == ["ok", "ok", "ok"]
        assert found[f"agent: {AGENT}"] == "warning"

    def test_a_part_of_what_a_server_needs_will_not_do(self, caadmin: Caadmin, cluster: Cluster) -> None:
        looks = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
        found = self.asked(caadmin, self.grant(cluster, "doctor-part", looks), code=1)
        assert [found[f"server: {name}"] for name in SERVER] == ["failed", "ok", "failed"]

    def test_nothing_at_all(self, caadmin: Caadmin, cluster: Cluster) -> None:
        found = self.asked(caadmin, cluster.kubeconfig(cluster.user("doctor-nobody")), code=1)
        assert found["API server"] == "ok"
        assert [found[f"server: {name}"] for name in SERVER] == ["failed", "failed", "failed"]


def test_an_api_server_that_is_away(caadmin: Caadmin, tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(
        "current-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n"
        "clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: a, user: {token: t}}]\n"
    )
    said = caadmin("doctor", "cluster", "--kubeconfig", str(config))
    assert said.code == 1
    assert "FAILED" in said.out
    assert caadmin("doctor", "cluster", "--kubeconfig", str(tmp_path / "none")).code == 2
