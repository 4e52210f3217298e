"""Nodes of a real Kubernetes API server: who is attested, and who is refused for which reason."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestor.node.k8s_psat import PsatVerifier, ServerConfig
from ca.errors import Denied, InvalidArgument
from ca.proto.spire import server_agent_pb2 as pb
from ca.proto.spire import server_agent_pb2_grpc
from ca.runtime.config import from_values
from tests.ca.api.refusals import refused
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.kube import Cluster, Object, Refused, fresh, kube_lab, other_cluster
from tests.support.kube_stand_in import KubeStandIn
from tests.support.node_host import FakeHost
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until
from tests.support.server import Identity, RunningServer, attest, entry, make_csr, running_server, spiffe_id

pytestmark = [pytest.mark.real("kube-apiserver"), pytest.mark.xdist_group("kube")]

PAGE = ROOT / "docs/plugins/node-attestor-k8s_psat.md"
NAMESPACE, ACCOUNT = "burgee", "burgee-agent"
Code = grpc.StatusCode


def documented_rights() -> list[Object]:
    """What the page says that the server needs."""
    (text,) = [block for block in blocks(PAGE, "yaml") if "ClusterRoleBinding" in block]
    return list(yaml.safe_load_all(text))


def server_access(cluster: Cluster) -> Path:
    """A kubeconfig of the server's own service account, which has the rights of the page and no more."""
    cluster.namespace(NAMESPACE)
    for account in (ACCOUNT, "burgee-server"):
        cluster.service_account(NAMESPACE, account)
    cluster.apply(*documented_rights())
    token = cluster.directory / "server-token"
    token.write_text(cluster.account_token(NAMESPACE, "burgee-server", cluster.issuer, 3600))
    return cluster.token_kubeconfig(token)


def server_config(**clusters: Path) -> dict[str, Any]:
    def configured(path: Path) -> dict[str, Any]:
        return {
            "service_account_allow_list": [f"{NAMESPACE}:{ACCOUNT}"],
            "kube_config_file": str(path),
            "allowed_node_label_keys": ["zone"],
            "allowed_pod_label_keys": ["app"],
        }

    return {"k8s_psat": {"clusters": {name: configured(path) for name, path in clusters.items()}}}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return kube_lab()


@pytest.fixture(scope="module")
def access(cluster: Cluster) -> Path:
    return server_access(cluster)


@pytest.fixture
async def server(access: Path) -> AsyncIterator[RunningServer]:
    async with running_server(node_attestors=server_config(demo=access)) as running:
        yield running


class Node:
    """A node of its own with the agent's pod on it, and the token that its kubelet got for that."""

    def __init__(self, cluster: Cluster, *, account: str = ACCOUNT) -> None:
        self.cluster = cluster
        self.node = cluster.node(fresh("node"), labels={"zone": "a"})
        self.name: str = self.node["metadata"]["name"]
        self.uid: str = self.node["metadata"]["uid"]
        self.pod = cluster.pod(NAMESPACE, node=self.name, account=account, labels={"app": "agent"})
        self.token = cluster.token_for(self.pod, by=cluster.node_user(self.name))


@pytest.fixture
def node(cluster: Cluster, access: Path) -> Node:
    return Node(cluster)


def payload(token: str, cluster: str = "demo") -> bytes:
    return json.dumps({"cluster": cluster, "token": token}).encode()


async def come(server: RunningServer, token: str, cluster: str = "demo") -> Identity:
    """Attests with this token."""
    key = ec.generate_private_key(ec.SECP256R1())
    result = await attest(await server.caller(), payload(token, cluster), make_csr(key), "k8s_psat")
    assert result.reattestable
    return Identity(path=result.svid.id.path, chain=tuple(result.svid.cert_chain), key=key)


async def refusal(server: RunningServer, token: str, reason: str, cluster: str = "demo") -> None:
    code = Code.UNAVAILABLE if reason.startswith("K8S_API") else Code.PERMISSION_DENIED
    with refused(code, reason=reason):
        await come(server, token, cluster)


async def test_a_pod_on_a_node_is_that_node(server: RunningServer, node: Node) -> None:
    identity = await come(server, node.token)
    assert identity.path == f"/spire/agent/k8s_psat/demo/{node.uid}"
    agent = await server.local.agents.GetAgent(pb.GetAgentRequest(id=spiffe_id(identity.path)))
    assert agent.can_reattest
    assert {s.value for s in agent.selectors} == {
        "cluster:demo",
        f"agent_ns:{NAMESPACE}",
        f"agent_sa:{ACCOUNT}",
        f"agent_pod_name:{node.pod['metadata']['name']}",
        f"agent_pod_uid:{node.pod['metadata']['uid']}",
        "agent_pod_label:app:agent",
        "agent_node_ip:10.1.2.3",
        f"agent_node_name:{node.name}",
        f"agent_node_uid:{node.uid}",
        "agent_node_label:zone:a",
    }


async def test_attesting_anew_supersedes_the_earlier_svid(server: RunningServer, node: Node) -> None:
    await server.create(entry("/nodes/a", "/spire/server", "k8s_psat:agent_node_label:zone:a"))
    first = await come(server, node.token)
    with_first = await server.caller(first)
    await with_first.agents.PostStatus(pb.PostStatusRequest(current_bundle_serial=1))
    second = await come(server, node.token)
    assert second.path == first.path
    with refused(Code.PERMISSION_DENIED):
        await with_first.agents.PostStatus(pb.PostStatusRequest(current_bundle_serial=1))
    await (await server.caller(second)).agents.PostStatus(pb.PostStatusRequest(current_bundle_serial=1))


async def test_a_token_for_another_audience(server: RunningServer, node: Node) -> None:
    for audience in ("somebody-else", node.cluster.issuer):
        await refusal(server, node.cluster.token_for(node.pod, audience), "K8S_TOKEN_AUDIENCE")


async def test_an_expired_token(server: RunningServer, node: Node) -> None:
    """As its API server made it, but an hour ago; it is signed by the same key."""
    claims = json.loads(base64.urlsafe_b64decode(node.token.split(".")[1] + "=="))
    assert (await come(server, node.cluster.sign(claims))).path.endswith(node.uid)
    earlier = {name: claims[name] - 3600 for name in ("iat", "nbf", "exp")}
    await refusal(server, node.cluster.sign(claims | earlier), "K8S_TOKEN_EXPIRED")


async def test_a_deleted_pod_attests_no_more(server: RunningServer, node: Node) -> None:
    """At once, though the API server's cache vouches for the token for up to ten seconds; and after that as well."""
    unseen = node.cluster.token_for(node.pod)
    await come(server, node.token)
    node.cluster.delete_pod(node.pod)
    await refusal(server, node.token, "K8S_POD_DELETED")
    until(
        "the API server knows that it is gone", lambda: "authenticated" not in node.cluster.review(unseen), seconds=60
    )
    await refusal(server, unseen, "K8S_POD_DELETED")
    again = node.cluster.pod(NAMESPACE, node.pod["metadata"]["name"], node=node.name, account=ACCOUNT)
    until("it knows the next one", lambda: "pod UID" in node.cluster.review(unseen).get("error", ""), seconds=60)
    await refusal(server, unseen, "K8S_POD_UID")
    assert await come(server, node.cluster.token_for(again))


async def test_a_pod_that_is_being_deleted_attests_no_more(server: RunningServer, node: Node) -> None:
    """Its kubelet has half a minute to end it; the API server goes on vouching."""
    node.cluster.delete_pod(node.pod, grace_seconds=30)
    assert node.cluster.review(node.token)["authenticated"]
    await refusal(server, node.token, "K8S_POD_DELETED")


async def test_a_pod_that_has_ended(server: RunningServer, node: Node) -> None:
    node.cluster.set_status(node.pod, phase="Failed", reason="Evicted")
    await refusal(server, node.token, "K8S_POD_ENDED")


async def test_the_wrong_node(server: RunningServer, node: Node) -> None:
    """A kubelet gets no token for a pod elsewhere; a token that was made for an earlier node of the name is refused."""
    elsewhere = node.cluster.node_user(node.cluster.node(fresh("node"))["metadata"]["name"])
    with pytest.raises(Refused) as caught:
        node.cluster.token_for(node.pod, by=elsewhere)
    assert caught.value.status == 403
    node.cluster.delete_node(node.name)
    await refusal(server, node.token, "K8S_NODE_UNKNOWN")
    new = node.cluster.node(node.name)
    await refusal(server, node.token, "K8S_NODE_MISMATCH")
    identity = await come(server, node.cluster.token_for(node.pod))
    assert identity.path.endswith(new["metadata"]["uid"])


async def test_a_pod_without_a_node(server: RunningServer, cluster: Cluster, access: Path) -> None:
    pod = cluster.pod(NAMESPACE, account=ACCOUNT)
    await refusal(server, cluster.token_for(pod), "K8S_POD_UNBOUND")


async def test_other_service_accounts_and_tokens_without_a_pod(server: RunningServer, node: Node) -> None:
    other = Node(node.cluster, account="default")
    await refusal(server, other.token, "K8S_SERVICE_ACCOUNT")
    await refusal(server, node.cluster.account_token(NAMESPACE, ACCOUNT), "K8S_TOKEN_UNBOUND")


async def test_other_clusters(access: Path, node: Node) -> None:
    """Each cluster's tokens are good for its own name alone, and nobody else's key for any."""
    other = other_cluster()
    clusters = {"demo": access, "other": server_access(other)}
    theirs = Node(other)
    async with running_server(node_attestors=server_config(**clusters)) as server:
        assert (await come(server, theirs.token, "other")).path == f"/spire/agent/k8s_psat/other/{theirs.uid}"
        await refusal(server, theirs.token, "K8S_TOKEN_INVALID")
        await refusal(server, node.token, "K8S_TOKEN_INVALID", "other")
        await refusal(server, node.token, "K8S_CLUSTER_UNKNOWN", "third")
        claims = json.loads(base64.urlsafe_b64decode(node.token.split(".")[1] + "=="))
        await refusal(server, other.sign(claims), "K8S_TOKEN_INVALID")


async def test_a_server_without_rights_attests_nobody(cluster: Cluster, node: Node) -> None:
    nobody = cluster.kubeconfig(cluster.user("nobody"))
    async with running_server(node_attestors=server_config(demo=nobody)) as server:
        await refusal(server, node.token, "K8S_API_DENIED")


async def test_the_stand_in_says_what_the_real_one_says(cluster: Cluster, node: Node) -> None:
    """What the other tests rest on: the same fields, and the same words that a reason is read from."""
    stand_in = KubeStandIn()
    stand_in.node("n1")
    pod = stand_in.pod("a", "b", node="n1")

    def theirs(token: str) -> Object:
        status: Object = stand_in.answer("POST", "/apis/authentication.k8s.io/v1/tokenreviews", _review(token))[1][
            "status"
        ]
        return status

    real, ours = cluster.review(node.token), theirs(stand_in.token_for(pod))
    assert set(ours) == set(real)
    assert set(ours["user"]["extra"]) <= set(real["user"]["extra"])
    assert set(ours["user"]["groups"]) >= {"system:serviceaccounts"} <= set(real["user"]["groups"])
    assert theirs("a.b.c") == cluster.review("a.b.c") == {"user": {}, "error": "invalid bearer token"}
    other_audience = cluster.review(cluster.token_for(node.pod, "x")), theirs(stand_in.token_for(pod, "x"))
    assert all(status["error"].startswith("[invalid bearer token, token audiences") for status in other_audience)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_flipped_bits_gain_nothing(access: Path, data: st.DataObject) -> None:
    """The real one reads tokens its own way: what it takes for the same token is the same node."""
    true = payload(_same_node().token)
    changed = bytearray(true)
    for flip in data.draw(st.lists(st.integers(0, len(true) * 8 - 1), min_size=1, max_size=2, unique=True)):
        changed[flip // 8] ^= 1 << flip % 8
    verifier = PsatVerifier(from_values(server_config(demo=access)["k8s_psat"], ServerConfig), FakeHost())
    try:
        found = await verifier.verify(bytes(changed), no_challenge)
    except (Denied, InvalidArgument):
        return
    assert found == await verifier.verify(true, no_challenge)


@functools.cache
def _same_node() -> Node:
    return Node(kube_lab())


async def no_challenge(_: bytes) -> bytes:
    raise AssertionError("service account tokens have no challenge")


def _review(token: str) -> bytes:
    return json.dumps({"spec": {"token": token, "audiences": ["spire-server"]}}).encode()


@pytest.fixture
def agent_in_a_pod(access: Path, node: Node, tmp_path: Path) -> Iterator[tuple[Pair, Node, Path]]:
    """Server and agent as programs; the agent has what a kubelet would have mounted."""
    token = tmp_path / "spire-agent"
    token.write_text(node.token)
    attestor = {"k8s_psat": {"cluster": "demo", "token_path": str(token)}}
    with pair(server={"node_attestors": server_config(demo=access)}, agent={"node_attestor": attestor}) as nodes:
        yield nodes, node, token


def test_an_agent_in_a_pod_from_its_start_to_its_pods_end(agent_in_a_pod: tuple[Pair, Node, Path]) -> None:
    nodes, node, token = agent_in_a_pod
    status = nodes.status()
    assert status.spiffe_id == f"spiffe://{TRUST_DOMAIN}/spire/agent/k8s_psat/demo/{node.uid}"
    assert status.reattestable
    nodes.create_entry("/web")
    until("the workload has its SVID", lambda: nodes.status().x509_svids == 1)
    # The kubelet renews the token; the agent, evicted, proves itself by the new one.
    token.write_text(node.cluster.token_for(node.pod, by=node.cluster.node_user(node.name)))
    evict(nodes)
    until("it attested anew by itself", lambda: nodes.count_agents() == 1 and nodes.status().state == "OK", seconds=60)
    node.cluster.delete_pod(node.pod)
    evict(nodes)
    gone = "the pod that the token was made for is gone"
    until("it may not again, and says why", lambda: gone in nodes.status().detail, seconds=60)
    assert nodes.count_agents() == 0
    assert "Traceback" not in nodes.logs()


def evict(nodes: Pair) -> None:
    with grpc.insecure_channel(f"unix:{nodes.admin_socket}") as channel:
        stub = server_agent_pb2_grpc.AgentStub(channel)
        stub.DeleteAgent(pb.DeleteAgentRequest(id=nodes._id(nodes.agent_path())), timeout=5)
