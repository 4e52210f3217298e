"""A controller of ours between the real API server and a server of ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from ca.controller.config import ControllerConfig
from ca.controller.controller import Controller
from ca.proto.spire import server_entry_pb2, types_pb2
from ca.runtime.config import from_values
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.kube import Cluster, Object, Refused, fresh
from tests.support.server import RunningServer

API = "spire.spiffe.io/v1alpha1"
PAGE = ROOT / "docs/kubernetes-controller.md"
CRDS = ROOT / "helm/burgee/crds"
NAMESPACE, ACCOUNT = "burgee", "burgee-controller"
PLURALS = {
    "ClusterSPIFFEID": "clusterspiffeids",
    "ClusterStaticEntry": "clusterstaticentries",
    "ClusterFederatedTrustDomain": "clusterfederatedtrustdomains",
}


def prepare(cluster: Cluster) -> None:
    """Our kinds, and the controller's account with the rights of the page and no more."""
    for path in sorted(CRDS.glob("*.yaml")):
        cluster.apply(yaml.safe_load(path.read_text()))
    cluster.namespace(NAMESPACE)
    cluster.service_account(NAMESPACE, ACCOUNT)
    (rights,) = [block for block in blocks(PAGE, "yaml") if "ClusterRoleBinding" in block]
    cluster.apply(*yaml.safe_load_all(rights))
    deadline = time.monotonic() + 60
    while True:
        try:
            for plural in PLURALS.values():
                cluster.admin.call("GET", f"/apis/{API}/{plural}")
            return
        except Refused:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def config(cluster: Cluster, server: RunningServer | Path, **changes: Any) -> ControllerConfig:
    """As the documented service account. `server` may be its admin socket."""
    token = cluster.directory / f"{fresh('controller')}-token"
    token.write_text(cluster.account_token(NAMESPACE, ACCOUNT, cluster.issuer, 3600))
    values = {
        "trust_domain": "example.org",
        "cluster": "demo",
        "server": {"admin_socket": str(server if isinstance(server, Path) else server.config.admin_socket_path)},
        "kubeconfig": str(cluster.token_kubeconfig(token)),
        "metrics_address": None,
    }
    return from_values(values | changes, ControllerConfig)


@asynccontextmanager
async def running(given: ControllerConfig) -> AsyncIterator[Controller]:
    controller = Controller(given)
    try:
        await controller.start()
        yield controller
    finally:
        await controller.close()


class Objects:
    """Objects of ours that a test makes; all of them are gone when it ends."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._made: list[str] = []

    def spiffe_id(self, name: str = "", **spec: Any) -> Object:
        given = {"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/pod/{{ .PodMeta.Name }}"}
        return self.make("ClusterSPIFFEID", name or fresh("id"), given | spec)

    def make(self, kind: str, name: str, spec: Mapping[str, Any]) -> Object:
        path = f"/apis/{API}/{PLURALS[kind]}"
        body = {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}
        made = self._cluster.admin.call("POST", path, body)
        self._made.append(f"{path}/{name}")
        return made

    def change(self, value: Object, **spec: Any) -> Object:
        return self._cluster.admin.call("PATCH", self.path(value), {"spec": spec})

    def delete(self, value: Object) -> None:
        self._cluster.admin.call("DELETE", self.path(value))
        self._made.remove(self.path(value))

    def get(self, value: Object) -> Object:
        return self._cluster.admin.call("GET", self.path(value))

    def condition(self, value: Object, kind: str = "Ready") -> Object:
        found = self.get(value).get("status", {}).get("conditions", [])
        return next((one for one in found if one["type"] == kind), {})

    def close(self) -> None:
        while self._made:
            path = self._made.pop()
            self._cluster.admin.call("DELETE", path)

    @staticmethod
    def path(value: Object) -> str:
        return f"/apis/{API}/{PLURALS[value['kind']]}/{value['metadata']['name']}"


class Site:
    """A namespace of its own, labelled so that only objects of this test choose its pods, and a node."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.label = fresh("site")
        self.namespace = cluster.namespace(labels={"site": self.label})
        self.node = cluster.node(fresh("node"), labels={"zone": "a"})
        self.here = {"matchLabels": {"site": self.label}}
        self._pods = 0

    def pod(self, name: str = "", **more: Any) -> Object:
        return self.cluster.pod(self.namespace, name or fresh("pod"), node=self.node["metadata"]["name"], **more)

    def path(self, pod: Object) -> str:
        return f"/ns/{self.namespace}/pod/{pod['metadata']['name']}"


async def entries(server: RunningServer) -> dict[str, types_pb2.Entry]:
    """All of the server's, by ID."""
    answer = await server.local.entries.ListEntries(server_entry_pb2.ListEntriesRequest())
    return {one.id: one for one in answer.entries}


async def paths(server: RunningServer) -> set[str]:
    return {one.spiffe_id.path for one in (await entries(server)).values()}


async def until(holds: Callable[[], Any], seconds: float = 60.0) -> float:
    """Polls until `holds` (a function or a coroutine function) gives something true; how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return time.monotonic() - began
            await asyncio.sleep(0.01)
