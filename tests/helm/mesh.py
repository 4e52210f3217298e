"""A release whose programs run outside of the cluster: with its configuration, as its service accounts.

Paths and addresses are others. Tokens are those that the node's kubelet gets for the release's pods.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from attestor.workload.k8s import K8sAttestor
from ca.controller.config import ControllerConfig
from ca.controller.controller import Controller
from ca.runtime.config import from_values
from sds.agent import Agent
from sds.config import AgentConfig
from tests.attestor.workload.k8s_node import Trees, in_pod
from tests.docs.reason_codes import ROOT
from tests.helm.charts import Object, config_of, helm
from tests.helm.releases import Release
from tests.sds.lab import eventually
from tests.support.kube_managed import until
from tests.support.kubelet import ClusterGate, StandInKubelet, pods_of
from tests.support.pair import Pair

CONTAINER = "a1" * 32


class Mesh:
    """A release whose pods are said to run on a node."""

    def __init__(self, release: Release, node: str, *, agents: str = "") -> None:
        self.release = release
        self.namespaces = {"server": release.namespace, "agent": agents or release.namespace}
        self.cluster = release.cluster
        self.node = node
        self.objects = list(
            yaml.safe_load_all(
                helm("get", "manifest", "burgee", "-n", release.namespace, kubeconfig=release.kubeconfig)
            )
        )

    def pod(self, component: str) -> Object:
        selector = f"app.kubernetes.io/component%3D{component}"
        path = f"/api/v1/namespaces/{self.namespaces[component]}/pods?labelSelector={selector}"

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
        path = f"/api/v1/namespaces/{self.namespaces[component]}/serviceaccounts/{account}/token"
        token: str = self.cluster.node_user(self.node).call("POST", path, request)["status"]["token"]
        return token

    def config(self, who: str) -> dict[str, Any]:
        value: dict[str, Any] = yaml.safe_load(config_of(self.objects, who))
        return value

    def published_bundle(self, trust: dict[str, Any]) -> str:
        """What the kubelet mounts where the agents' configuration has its first trust."""
        pod = self.pod("agent")["spec"]
        (volume,) = [one["configMap"] for one in pod["volumes"] if one["name"] == "trust"]
        (item,) = volume["items"]
        (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "trust"]
        assert trust == {"bundle_file": f"{mount['mountPath']}/{item['path']}"}
        path = f"/api/v1/namespaces/{self.namespaces['agent']}/configmaps/{volume['name']}"
        text: str = until(
            "the bundle is published",
            lambda: (self.cluster.admin.call("GET", path).get("data") or {}).get(item["key"]),
        )
        return text

    @contextmanager
    def server(self) -> Iterator[Pair]:
        """The server's program; its logs are printed when the test fails."""
        home = Path(tempfile.mkdtemp(prefix="bg-"))
        (home / "server-token").write_text(self.token("server"))
        made = Pair(home, server=self._server_options(home))
        try:
            made.start_server()
            yield made
        except BaseException:
            print(made.logs())
            raise
        finally:
            made.close()
            shutil.rmtree(home, ignore_errors=True)

    @asynccontextmanager
    async def controller(self, server: Pair) -> AsyncIterator[Controller]:
        """The controller at the server's admin socket, as the server's service account: it is in its pod."""
        options = self.config("controller") | {
            "server": {"admin_socket": str(server.admin_socket)},
            "kubeconfig": str(self.cluster.token_kubeconfig(server.home / "server-token")),
            "metrics_address": None,
        }
        controller = Controller(from_values(options, ControllerConfig))
        try:
            await controller.start()
            yield controller
        finally:
            await controller.close()

    @asynccontextmanager
    async def agent(self, server: Pair, trees: Trees) -> AsyncIterator[tuple[Agent, StandInKubelet]]:
        """An agent that serves, whose callers are in containers as `trees` has it."""
        with StandInKubelet(pods_of(self.cluster, self.node), ClusterGate(self.cluster, self.node)) as kubelet:
            agent = Agent(from_values(self._agent_options(server, kubelet), AgentConfig))
            attestor = agent.attestors["k8s"]
            assert isinstance(attestor, K8sAttestor)
            attestor._find = trees.find
            try:
                await agent.start()
                await eventually(lambda: agent.cache.ready, seconds=60)
                yield agent, kubelet
            finally:
                await agent.close()

    def _server_options(self, home: Path) -> dict[str, Any]:
        rendered = self.config("server")
        (cluster,) = rendered["node_attestors"]["k8s_psat"]["clusters"].values()
        cluster["kube_config_file"] = str(self.cluster.token_kubeconfig(home / "server-token"))
        for publisher in rendered.get("bundle_publishers", {}).values():
            publisher["config"]["kube_config_file"] = cluster["kube_config_file"]
        elsewhere = ("data_dir", "bind_address", "bind_port", "admin_socket", "metrics_address")
        return {key: value for key, value in rendered.items() if key not in elsewhere}

    def _agent_options(self, server: Pair, kubelet: StandInKubelet) -> dict[str, Any]:
        home, options = server.home, self.config("agent")
        (home / "node-token").write_text(self.token("agent", "spire-server"))
        options["node_attestor"]["k8s_psat"]["token_path"] = str(home / "node-token")
        options["workload_attestors"]["k8s"] |= kubelet.config(home / "kubelet", self.token("agent"))
        (home / "trust.crt").write_text(self.published_bundle(options["trust"]))
        return options | {
            "data_dir": str(home / "agent"),
            "servers": [f"127.0.0.1:{server.port}"],
            "workload_socket": str(server.workload_socket),
            "admin_socket": {"path": str(server.agent_admin_socket)},
            "trust": {"bundle_file": str(home / "trust.crt")},
            "cache": {"persist": "none"},
            "metrics_address": None,
        }


async def ask(socket: Path, trees: Trees, pod: Object) -> str:
    """What a process in the pod is told."""
    script = ROOT / "tests/sds/workload_process.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [str(script), str(socket), "x509", str(os.getuid())]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=subprocess.PIPE, cwd=ROOT, env=environment
    )
    trees.put(process.pid, in_pod(pod["metadata"]["uid"], CONTAINER))  # long before it has loaded what it calls with
    assert process.stdout is not None
    try:
        return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
