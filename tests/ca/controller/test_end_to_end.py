"""From a ClusterSPIFFEID to a process with its SVID, and back: everything real but the kubelet and the containers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from ca.controller.controller import Controller
from ca.proto.spire import types_pb2
from tests.attestor.node.test_k8s_psat_real import Node
from tests.attestor.workload.k8s_node import in_pod
from tests.attestor.workload.test_k8s_real import MAIN, Lab, cluster, kubelet, lab, line, node, uid, web
from tests.ca.controller.lab import Objects, config, entries, paths, prepare, running, until
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.kube import Cluster, fresh
from tests.support.server import entry, running_server

__all__ = ["cluster", "kubelet", "lab", "node"]  # fixtures

pytestmark = [pytest.mark.real("kube-apiserver"), pytest.mark.xdist_group("kube")]

PAGE = ROOT / "docs/coming-from-spire.md"


@pytest.fixture
def objects(cluster: Cluster) -> Iterator[Objects]:
    prepare(cluster)
    made = Objects(cluster)
    yield made
    made.close()


@asynccontextmanager
async def controlled(lab: Lab, node: Node) -> AsyncIterator[Controller]:
    async with running(config(node.cluster, lab.server)) as controller:
        await until(lambda: controller.reconciler.rounds > 0)
        yield controller


async def test_a_pods_process_gets_its_svid_by_a_cluster_spiffe_id_and_loses_it_with_the_pod(
    lab: Lab, node: Node, objects: Objects
) -> None:
    (manual,) = await lab.server.create(entry("/by-hand", "/spire/agent/x", "k8s:ns:a"))
    async with controlled(lab, node):
        name = fresh("site")
        objects.spiffe_id(
            podSelector={"matchLabels": {"app": "web"}},
            namespaceSelector={"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "Exists"}]},
            workloadSelectorTemplates=["k8s:container-name:main"],
            spiffeIDTemplate=f"spiffe://{{{{ .TrustDomain }}}}/{name}/{{{{ .PodMeta.Namespace }}}}",
        )
        pod = web(node)
        expected = f"spiffe://example.org/{name}/{pod['metadata']['namespace']}"

        def has() -> bool:
            return any(expected == str(svid.spiffe_id) for svid in lab.agent.cache.svids())

        took = await until(has)
        assert took < 5 * 1.0, "pod to SVID on the agent's stream"
        async with lab.process(in_pod(uid(pod), MAIN)) as output:
            assert await line(output) == expected
            began = time.monotonic()
            node.cluster.delete_pod(pod)
            assert (await line(output)).startswith("PERMISSION_DENIED")
            print(f"SVID after {took * 1000:.0f} ms, gone after {(time.monotonic() - began) * 1000:.0f} ms")

        async def gone() -> bool:
            """Pods of other tests may have theirs."""
            return expected.removeprefix("spiffe://example.org") not in await paths(lab.server)

        await until(gone)
        assert (await entries(lab.server))[manual.id] == manual


async def test_the_manifests_of_the_page_work_as_they_stand(cluster: Cluster, objects: Objects, tmp_path: Path) -> None:
    (text,) = [block for block in blocks(PAGE, "yaml") if "kind: ClusterStaticEntry" in block]
    async with running_server() as server, running(config(cluster, server)):
        made = [objects.make(one["kind"], one["metadata"]["name"], one["spec"]) for one in yaml.safe_load_all(text)]
        namespace, host = cluster.namespace(), cluster.node(fresh("node"))["metadata"]["name"]
        cluster.pod(namespace, "plain", node=host)
        labels = {"banking": "true", "app.kubernetes.io/name": "ledger"}
        cluster.pod(namespace, "bank", node=host, labels=labels)

        async def ours() -> set[str]:
            found = (await entries(server)).values()
            return {one.spiffe_id.path for one in found if _of(one, namespace) or "legacy" in one.spiffe_id.path}

        async def as_promised() -> bool:
            return await ours() == {f"/ns/{namespace}/sa/default", "/demo/ledger", "/legacy/database"}

        await until(as_promised)
        kinds = {"ClusterFederatedTrustDomain": "FederationNotEnabled"}
        for one in made:
            kind = kinds.get(one["kind"], "Ready")
            await until(lambda one=one, kind=kind: objects.condition(one, kind).get("status") == "True")
        await _dry_run(cluster, server, tmp_path)


def _of(found: types_pb2.Entry, namespace: str) -> bool:
    return namespace in found.spiffe_id.path.split("/") or any(
        one.value == f"ns:{namespace}" for one in found.selectors
    )


async def _dry_run(cluster: Cluster, server: Any, directory: Path) -> None:
    """The program itself: it says what it would do, and does nothing."""
    given = config(cluster, server, entry_id_prefix="other")
    path = directory / "controller.yaml"
    path.write_text(yaml.safe_dump(given.model_dump(mode="json", exclude_defaults=True)))
    before = await entries(server)
    command = [sys.executable, "-m", "ca.cli.burgee", "controller", "--config", str(path)]
    for option, said in (("--check", "is valid"), ("--dry-run", "to create, 0 to update, 0 to delete")):
        done = await asyncio.to_thread(
            subprocess.run, [*command, option], capture_output=True, text=True, timeout=60, cwd=ROOT
        )
        assert (done.returncode, said in done.stdout) == (0, True), done.stdout + done.stderr
    assert "create other.demo." in done.stdout
    assert await entries(server) == before


def test_a_wrong_configuration_is_said(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("trust_domain: example.org\ncluster: a/b\nserver: {}\nleese: {}\n")
    command = [sys.executable, "-m", "ca.controller", "--config", str(path), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    for said in ("leese", "did you mean `lease`?", "exactly one of", "`cluster`"):
        assert said in done.stderr, done.stderr
