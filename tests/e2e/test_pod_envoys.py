"""Two pods of a real Kubernetes API server, each with a real Envoy: mutual TLS as these pods, until one is another.

The node is that of the pods' own tests: our agent, proven by its pod's token, with a stand-in for the kubelet and trees
of ours for /proc of the Envoys. What tells the two Envoys apart is their pods alone: program and user are the same.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from ca.up import envoy_policy
from ca.up import http as up_http
from ca.up.envoy_config import INBOUND, OUTBOUND, Peering, inbound, outbound
from sds.envoy_subscriber import ResourceState, ResourceStatus
from tests.attestor.node.test_k8s_psat_real import Node
from tests.attestor.workload.k8s_node import in_pod
from tests.attestor.workload.test_k8s_real import MAIN, SIDECAR, Lab, cluster, kubelet, lab, node, uid
from tests.sds.lab import eventually
from tests.support.envoys import Envoy
from tests.support.kube import Object
from tests.support.kubelet import status
from tests.support.pair import until
from tests.support.server import TRUST_DOMAIN

__all__ = ["cluster", "kubelet", "lab", "node"]  # fixtures

pytestmark = [pytest.mark.real("envoy"), pytest.mark.real("kube-apiserver"), pytest.mark.xdist_group("kube")]

DOMAIN = f"spiffe://{TRUST_DOMAIN}"
CONTAINERS = {"web": MAIN, "api": SIDECAR}
PEER = {"web": "api", "api": "web"}


class Pods:
    """web's Envoy ══ mTLS ══► api's Envoy → application, each Envoy the process of its pod's one container."""

    def __init__(self, lab: Lab, node: Node, home: Path) -> None:
        self.lab = lab
        self.home = home
        self.namespace = node.cluster.namespace()
        self.pods = {name: self._pod(node, name) for name in CONTAINERS}

    def _pod(self, node: Node, name: str) -> Object:
        node.cluster.service_account(self.namespace, name)
        said = {"containerStatuses": [status("main", CONTAINERS[name])]}
        labels = {"app": name}
        return node.cluster.pod(self.namespace, name, node=node.name, account=name, labels=labels, status=said)

    async def register(self) -> None:
        for name in self.pods:
            await self.lab.entry(f"/{name}", f"ns:{self.namespace}", f"sa:{name}", f"pod-label:app:{name}")

    def peering(self, name: str, envoy: Envoy) -> Peering:
        return Peering(
            name=envoy.name,
            own_id=f"{DOMAIN}/{name}",
            peer_id=f"{DOMAIN}/{PEER[name]}",
            trust_domain_id=DOMAIN,
            workload_socket=self.lab.agent.config.workload_socket,
            admin_socket=envoy.admin_socket,
        )

    async def apply(self, policy: dict[str, object]) -> None:
        """As `caadmin policy apply` does."""
        change = {"object": policy, "force": True}
        answer = await up_http.post(self.lab.server.config.admin_socket_path, "/v1/policy/apply", {"changes": [change]})
        assert answer.status == 200, answer.body

    @contextmanager
    def envoy(
        self, name: str, configured: Callable[[Peering], dict[str, object]], *, copy: str = ""
    ) -> Iterator[Envoy]:
        """One in the pod `name`. The agent, of this thread, sees it only after its /proc tree is there."""
        envoy = Envoy(name + copy, self.home / (name + copy))
        try:
            envoy.start(configured(self.peering(name, envoy)))
            assert envoy.process is not None
            self.lab.trees.put(envoy.process.pid, in_pod(uid(self.pods[name]), CONTAINERS[name]))
            yield envoy
        finally:
            envoy.stop()

    def certificate(self, envoy: Envoy) -> ResourceStatus | None:
        """How far the certificate of this Envoy's own identity got, by the agent's account."""
        own = f"{DOMAIN}/{envoy.name.partition('-')[0]}"
        streams = [client.stream for client in self.lab.agent.clients.all() if client.stream.node_id == envoy.name]
        return next((stream.statuses[own] for stream in streams if own in stream.statuses), None)

    async def comes_to(self, envoy: Envoy, state: ResourceState, detail: str = "") -> None:
        def is_so() -> bool:
            found = self.certificate(envoy)
            return found is not None and found.state is state and detail in found.detail

        await eventually(is_so, seconds=60)


@asynccontextmanager
async def application(path: Path) -> AsyncIterator[Path]:
    """Answers every request with 200."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield path


@pytest.fixture
async def pods(lab: Lab, node: Node) -> AsyncIterator[Pods]:
    with tempfile.TemporaryDirectory(prefix="bg-") as home:
        made = Pods(lab, node, Path(home))
        await made.register()
        yield made


def passes(envoy: Envoy) -> None:
    """A request through web's Envoy reaches api's, and each says that the other is who it should be."""
    url = f"http://127.0.0.1:{envoy.port(OUTBOUND)}/"

    def passed() -> httpx.Response | None:
        answer = httpx.get(url, timeout=10, trust_env=False)
        return answer if answer.status_code == 200 else None

    answer = until("a request passes", passed, seconds=60)
    assert answer is not None
    assert answer.headers["x-demo-client"] == f"{DOMAIN}/web"
    assert answer.headers["x-demo-server"] == f"{DOMAIN}/api"


async def test_envoys_of_two_pods_speak_as_their_pods_until_one_is_relabelled(pods: Pods, node: Node) -> None:
    """An Envoy keeps what it was given until that expires; no other in that pod is given it."""
    async with application(pods.home / "app.sock") as served:
        with pods.envoy("api", lambda own: inbound(own, served)) as api:
            await pods.comes_to(api, ResourceState.ACKED)
            port = await asyncio.to_thread(api.port, INBOUND)
            with pods.envoy("web", lambda own: outbound(own, port)) as web:
                await pods.comes_to(web, ResourceState.ACKED)
                await asyncio.to_thread(passes, web)
                node.cluster.relabel(pods.pods["web"], app="other")
                await pods.comes_to(web, ResourceState.ACKED, "no longer given: no registration entry")
            with pods.envoy("web", lambda own: outbound(own, port), copy="-again") as again:
                await pods.comes_to(again, ResourceState.UNKNOWN, "no registration entry")
                assert await asyncio.to_thread(again.serial) == ""
                node.cluster.relabel(pods.pods["web"], app="web")
                await pods.comes_to(again, ResourceState.ACKED)
                await asyncio.to_thread(passes, again)
                node.cluster.delete_pod(pods.pods["web"])
                await pods.comes_to(again, ResourceState.ACKED, "no longer given: no registration entry")


async def test_a_pods_envoy_goes_by_the_policies_of_its_labels(pods: Pods, node: Node) -> None:
    """Nobody describes the pod: its namespace and labels are attested. Without a policy it refuses everything."""
    async with application(pods.home / "app.sock") as served:
        with pods.envoy("api", lambda own: inbound(own, served, envoy_policy.sidecar("api"))) as api:
            await pods.comes_to(api, ResourceState.ACKED)
            port = await asyncio.to_thread(api.port, INBOUND)
            with pods.envoy("web", lambda own: outbound(own, port)) as web:
                await pods.comes_to(web, ResourceState.ACKED)
                url = f"http://127.0.0.1:{await asyncio.to_thread(web.port, OUTBOUND)}/orders"

                async def comes_to(status: int) -> None:
                    await asyncio.to_thread(until, f"it is {status}", lambda: answered(url) == status, seconds=60)

                await comes_to(403)
                await pods.apply(web_may_read(pods.namespace, app="api"))
                await comes_to(200)
                node.cluster.relabel(pods.pods["api"], app="api", canary="yes")
                await pods.apply(web_may_read(pods.namespace, app="api", canary="no"))
                await comes_to(403)
                await pods.apply(web_may_read(pods.namespace, app="api", canary="yes"))
                await comes_to(200)


def answered(url: str) -> int:
    return httpx.get(url, timeout=10, trust_env=False).status_code


def web_may_read(namespace: str, **labels: str) -> dict[str, object]:
    """A policy for the pods with these labels."""
    rule = {
        "from": [{"source": {"principals": [f"{TRUST_DOMAIN}/web"]}}],
        "to": [{"operation": {"methods": ["GET"], "paths": ["/orders"]}}],
    }
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "web-may-read", "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "rules": [rule]},
    }
