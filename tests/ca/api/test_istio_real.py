"""Istio's clients, a real Kubernetes API server, and our server with the rights of the page and no more."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from ca.authority.state import AuthorityKind
from ca.identity.bundle_pem import format_pem
from ca.ports import FindingLevel
from ca.proto.burgee import doctor_pb2
from ca.publish.kube_copy import MARK
from ca.runtime.config import load_yaml
from ca.runtime.server_config import ServerConfig
from ca.service.istio_roots import KEY, NAME
from tests.ca.api.istio_lab import WEB, client_of, fault
from tests.ca.api.refusals import Code, refused
from tests.conformance.programs import go_program
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.istio_client import (
    IstioClient,
    new_key,
    pilot_csr,
    read_as_pilot_agent,
    read_as_ztunnel,
    ztunnel_csr,
)
from tests.support.kube import Cluster, Object, Refused, User, fresh, kube_lab, other_cluster
from tests.support.openssl_ca import need_openssl, run
from tests.support.server import RunningServer, eventually, running_server

pytestmark = [pytest.mark.real("kube-apiserver"), pytest.mark.xdist_group("kube")]

PAGE = ROOT / "docs/with-istio.md"


def documents(text: str) -> list[Object]:
    return [one for one in yaml.safe_load_all(text) if isinstance(one, dict)]


def manifests() -> Iterator[Object]:
    """Every object of Kubernetes on the page."""
    for block in blocks(PAGE, "yaml"):
        yield from (one for one in documents(block) if {"apiVersion", "kind"} <= one.keys())


def documented_config() -> Object:
    """The page's example of the server's configuration."""
    (text,) = [block for block in blocks(PAGE, "yaml") if "dns_names" in block]
    value: Object = yaml.safe_load(text)
    return value


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    running = kube_lab()
    for namespace, accounts in {
        "burgee": ["burgee-server", "burgee-everywhere"],
        "istio-system": ["ztunnel"],
        "shop": ["web", "api"],
    }.items():
        running.namespace(namespace)
        for account in accounts:
            running.service_account(namespace, account)
    listed = [one for one in manifests() if "rbac" in one["apiVersion"] and "everywhere" not in one["metadata"]["name"]]
    running.apply(*listed)
    return running


def access(cluster: Cluster, account: str = "burgee-server") -> Path:
    token = cluster.directory / f"{account}-istio-token"
    token.write_text(cluster.account_token("burgee", account, cluster.issuer, 3600))
    return cluster.token_kubeconfig(token)


@asynccontextmanager
async def served(cluster: Cluster, kubeconfig: Path, **changes: Any) -> AsyncIterator[RunningServer]:
    """As the page configures it, on a free port of this machine."""
    istio: Object = documented_config()["istio"]
    istio |= {"bind_address": "127.0.0.1", "bind_port": 0}
    istio["dns_names"] = [*istio["dns_names"], "localhost"]
    istio["clusters"]["Kubernetes"] |= {"kube_config_file": str(kubeconfig), **changes}
    async with running_server(istio=istio) as running:
        yield running


@pytest.fixture
async def server(cluster: Cluster) -> AsyncIterator[RunningServer]:
    async with served(cluster, access(cluster)) as running:
        yield running


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[IstioClient]:
    async with client_of(server) as made:
        yield made


class Node:
    """A node of its own, on which a ztunnel runs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.name = fresh("node")
        cluster.node(self.name)
        self.ztunnel = self.pod("istio-system", "ztunnel")

    @property
    def kubelet(self) -> User:
        return self.cluster.node_user(self.name)

    def pod(self, namespace: str, account: str) -> Object:
        return self.cluster.pod(namespace, node=self.name, account=account, audience="istio-ca")

    def token(self, pod: Object) -> str:
        """As the kubelet mounts it."""
        return self.cluster.token_for(pod, "istio-ca", by=self.kubelet)


@pytest.fixture
def node(cluster: Cluster) -> Node:
    return Node(cluster)


@pytest.mark.parametrize("kind", ["rsa", "p256"])
async def test_a_sidecars_certificate_verifies_by_openssl(
    server: RunningServer, client: IstioClient, node: Node, tmp_path: Path, kind: str
) -> None:
    need_openssl()
    token = node.token(node.pod("shop", "web"))
    chain = await client.ask(pilot_csr(new_key(kind), WEB), token)
    leaf, roots = read_as_pilot_agent(chain)
    read_as_ztunnel(chain, WEB)
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    (tmp_path / "chain.pem").write_text("".join(chain))
    (tmp_path / "roots.pem").write_bytes(b"".join(root.public_bytes(Encoding.PEM) for root in roots))
    for purpose in ("sslserver", "sslclient"):
        files = ["-CAfile", str(tmp_path / "roots.pem"), "-untrusted", str(tmp_path / "chain.pem")]
        said = run("verify", "-x509_strict", "-purpose", purpose, *files, str(tmp_path / "leaf.pem"))
        assert b"OK" in said


async def test_grpcurl_gets_a_certificate_too(server: RunningServer, node: Node, tmp_path: Path) -> None:
    """Another implementation of gRPC and TLS, which looks at the host name; it reads the service's proto file."""
    assert server.server.istio is not None
    (tmp_path / "roots.pem").write_text(format_pem(server.server.trust.own))
    request = {"csr": pilot_csr(new_key("p256"), WEB), "validity_duration": "86400", "metadata": {"CertSigner": ""}}
    token = node.token(node.pod("shop", "web"))
    command = [
        *(str(go_program("grpcurl")), "-cacert", str(tmp_path / "roots.pem"), "-import-path", str(ROOT)),
        *("-proto", "ca/proto/istio/ca.proto", "-H", f"authorization: Bearer {token}", "-H", "clusterid: Kubernetes"),
        *("-d", json.dumps(request), f"localhost:{server.server.istio.address[1]}"),
        "istio.v1.auth.IstioCertificateService/CreateCertificate",
    ]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    read_as_ztunnel(json.loads(done.stdout)["certChain"], WEB)


async def test_tokens_that_do_not_hold_are_refused(
    cluster: Cluster, server: RunningServer, client: IstioClient, node: Node
) -> None:
    csr, pod = pilot_csr(new_key("p256"), WEB), node.pod("shop", "web")
    good = node.token(pod)

    async def refusal(token: str, reason: str) -> None:
        with refused(Code.UNAUTHENTICATED, "request authenticate failure", reason):
            await client.ask(csr, token)

    assert await client.ask(csr, good)
    assert await client.ask(csr, cluster.account_token("shop", "web", "istio-ca"))  # bound to no pod: a machine's
    await refusal(cluster.account_token("shop", "web", cluster.issuer), "K8S_TOKEN_AUDIENCE")
    await refusal(cluster.token_for(pod, "spire-server"), "K8S_TOKEN_AUDIENCE")
    other = other_cluster()
    other.namespace("shop")
    other.service_account("shop", "web")
    await refusal(other.account_token("shop", "web", "istio-ca"), "K8S_TOKEN_INVALID")
    unseen = node.token(pod)  # what the API server has reviewed it may remember for ten seconds
    cluster.delete_pod(pod)
    await refusal(unseen, "K8S_POD_DELETED")
    elsewhere = cluster.namespace()
    with refused(Code.PERMISSION_DENIED, reason="ISTIO_NAMESPACE"):
        await client.ask(csr, cluster.account_token(elsewhere, "default", "istio-ca"))


async def test_a_ztunnel_has_the_identities_of_its_node_and_no_others(
    cluster: Cluster, server: RunningServer, client: IstioClient, node: Node
) -> None:
    csr, api = ztunnel_csr(new_key("p256"), WEB), "spiffe://example.org/ns/shop/sa/api"
    proxy = node.token(node.ztunnel)

    async def refusal(reason: str, identity: str = WEB, token: str = proxy) -> None:
        with refused(Code.UNAUTHENTICATED, "request impersonation authentication failure", "ISTIO_IMPERSONATION"):
            await client.impersonate(csr, token, identity)
        assert fault(server) == reason

    await refusal("ISTIO_NOT_ON_NODE")
    web = node.pod("shop", "web")
    read_as_ztunnel(await client.impersonate(csr, proxy, WEB), WEB)
    Node(cluster).pod("shop", "api")
    await refusal("ISTIO_NOT_ON_NODE", api)
    failed = node.pod("shop", "api")
    read_as_ztunnel(await client.impersonate(csr, proxy, api), api)
    cluster.set_status(failed, phase="Failed")
    await refusal("ISTIO_IMPERSONATOR", api, node.token(web))
    await refusal("ISTIO_NAMESPACE", "spiffe://example.org/ns/kube-system/sa/default")
    await refusal("ISTIO_TRUST_DOMAIN", "spiffe://cluster.local/ns/shop/sa/web")
    await refusal("K8S_TOKEN_UNBOUND", WEB, cluster.account_token("istio-system", "ztunnel", "istio-ca"))
    await refusal("ISTIO_NOT_ON_NODE", "spiffe://example.org/ns/shop/sa/nobody")  # asks anew, for all of the node
    await refusal("ISTIO_NOT_ON_NODE", api)
    with refused(Code.PERMISSION_DENIED, reason="ISTIO_NAMESPACE"):
        other = cluster.namespace()
        await client.ask(csr, cluster.account_token(other, "default", "istio-ca"))
    cluster.delete_pod(node.ztunnel)
    await refusal("K8S_POD_DELETED")


async def test_the_doctor_names_what_is_not_granted(server: RunningServer) -> None:
    """The page's Role is there for `shop`, not for `istio-system`."""
    assert server.server.istio is not None
    found = {one.what.removeprefix("cluster Kubernetes: "): one for one in await server.server.istio.check()}
    roots = f"configmaps {NAME} in namespace"
    granted = {
        "create tokenreviews of authentication.k8s.io",
        "get pods in namespace istio-system",
        "list pods in namespace shop",
        f"get {roots} shop",
        f"patch {roots} shop",
        "create configmaps in namespace shop",
    }
    missing = {
        "list pods in namespace istio-system",
        f"get {roots} istio-system",
        f"patch {roots} istio-system",
        "create configmaps in namespace istio-system",
    }
    assert {what for what, one in found.items() if one.level is FindingLevel.OK} == granted
    assert {what for what, one in found.items() if one.level is FindingLevel.FAILED} == missing
    assert "by a Role in `istio-system`" in found["list pods in namespace istio-system"].hint
    report = (await server.local.admin.GetDoctorReport(doctor_pb2.DoctorRequest(), timeout=30)).findings
    assert sum(one.what.startswith("istio: cluster Kubernetes:") for one in report) == len(found)


def config_map(cluster: Cluster, namespace: str) -> Object | None:
    try:
        return cluster.admin.call("GET", f"/api/v1/namespaces/{namespace}/configmaps/{NAME}")
    except Refused as error:
        if error.status == 404:
            return None
        raise


def holds(cluster: Cluster, namespace: str, server: RunningServer) -> bool:
    found = config_map(cluster, namespace)
    return found is not None and found["data"] == {KEY: format_pem(server.server.trust.own)}


async def test_the_roots_are_kept_in_the_listed_namespaces(cluster: Cluster, server: RunningServer) -> None:
    """The Role of the page is there for `shop`; `istio-system` has none, and says so."""
    await eventually(lambda: holds(cluster, "shop", server), seconds=30)
    assert config_map(cluster, cluster.namespace()) is None
    await eventually(lambda: "istio_roots:Kubernetes" in server.server.health.warnings(), seconds=30)
    problem = server.server.health.warnings()["istio_roots:Kubernetes"]
    assert problem.reason == "KUBE_FORBIDDEN"
    assert "`istio-system`" in problem.detail
    await server.server.authority.prepare(AuthorityKind.X509)
    await eventually(lambda: len(server.roots) == 2)
    await eventually(lambda: holds(cluster, "shop", server), seconds=30)
    found = config_map(cluster, "shop")
    assert found is not None
    assert found["data"][KEY].count("BEGIN CERTIFICATE") == 2
    cluster.admin.call("DELETE", f"/api/v1/namespaces/shop/configmaps/{NAME}")


async def test_the_roots_are_kept_everywhere_and_never_over_what_is_somebody_elses(cluster: Cluster) -> None:
    (role, binding) = [one for one in manifests() if one["metadata"]["name"] == "burgee-istio-everywhere"]
    binding["subjects"][0]["name"] = "burgee-everywhere"
    (tokens,) = [
        one for one in manifests() if one["kind"] == "ClusterRoleBinding" and "tokens" in one["metadata"]["name"]
    ]
    tokens["metadata"]["name"], tokens["subjects"][0]["name"] = "burgee-everywhere-tokens", "burgee-everywhere"
    cluster.apply(role, binding, tokens)
    mine, theirs, edited = cluster.namespace(), cluster.namespace(), cluster.namespace()
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {KEY: "istiod's"}}
    foreign["metadata"]["labels"] = {"istio.io/config": "true"}
    cluster.admin.call("POST", f"/api/v1/namespaces/{theirs}/configmaps", foreign)
    async with served(cluster, access(cluster, "burgee-everywhere"), namespaces=["*"]) as server:
        await eventually(lambda: holds(cluster, mine, server) and holds(cluster, edited, server), seconds=30)
        kept = config_map(cluster, theirs)
        assert kept is not None
        assert kept["data"] == foreign["data"]
        await eventually(lambda: "istio_roots:Kubernetes" in server.server.health.warnings(), seconds=30)
        problem = server.server.health.warnings()["istio_roots:Kubernetes"]
        assert (problem.reason, theirs in problem.detail) == ("PUBLISH_FOREIGN", True)

        late = cluster.namespace()
        cluster.admin.call("PATCH", f"/api/v1/namespaces/{edited}/configmaps/{NAME}", {"data": {KEY: "edited"}})
        cluster.admin.call("DELETE", f"/api/v1/namespaces/{mine}/configmaps/{NAME}")
        cluster.admin.call(  # hands it over
            "PATCH",
            f"/api/v1/namespaces/{theirs}/configmaps/{NAME}",
            {"metadata": {"annotations": {MARK: "example.org"}}},
        )
        for namespace in (late, edited, mine, theirs):
            await eventually(lambda where=namespace: holds(cluster, where, server), seconds=30)
        await eventually(lambda: "istio_roots:Kubernetes" not in server.server.health.warnings(), seconds=30)
        assert await _asks(server, cluster)


async def _asks(server: RunningServer, cluster: Cluster) -> bool:
    async with client_of(server) as client:
        token = cluster.account_token("shop", "web", "istio-ca")
        return bool(await client.ask(pilot_csr(new_key("p256"), WEB), token))


def test_the_api_server_takes_every_manifest_of_the_page(cluster: Cluster) -> None:
    """Each object alone, as a dry run; unknown fields are errors."""
    seen = []
    for value in manifests():
        meta, version = value["metadata"], value["apiVersion"]
        prefix = "/api/v1" if version == "v1" else f"/apis/{version}"
        where = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
        try:
            cluster.admin.call(
                "POST", f"{prefix}{where}/{value['kind'].lower()}s?dryRun=All&fieldValidation=Strict", value
            )
        except Refused as error:
            if error.status != 409:  # there already, from this very page
                raise
        seen.append(value["kind"])
    assert {"Service", "Deployment", "Pod", "Role", "ClusterRole"} <= set(seen)


def test_the_pages_template_gives_a_proxy_what_the_pages_pod_has() -> None:
    """What Istio's injector would merge into a pod, and the configuration example."""
    (values,) = [block for block in blocks(PAGE, "yaml") if "sidecarInjectorWebhook" in block]
    template = yaml.safe_load(yaml.safe_load(values)["sidecarInjectorWebhook"]["templates"]["burgee"])["spec"]
    (pod,) = [one["spec"] for one in manifests() if one["kind"] == "Pod"]
    assert template["volumes"] == pod["volumes"]
    assert template["containers"][0]["volumeMounts"] == pod["containers"][0]["volumeMounts"]
    assert template["containers"][0]["name"] == pod["containers"][0]["name"] == "istio-proxy"
    load_yaml(yaml.safe_dump(documented_config()), ServerConfig)
