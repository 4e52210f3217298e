"""Certificates for pods, asked for as kubelets do at the real API server, answered by our controller and our server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca.controller.config import ControllerConfig, LeaseConfig
from ca.controller.pod_certificates import PodCertificates, pod_certificates
from ca.identity.bundle_pem import parse_certificates
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.proto.burgee import admin_pb2
from ca.proto.spire.server_agent_pb2 import BanAgentRequest
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from ca.runtime.kube import KubeClient
from ca.store.values import AttestedAgent
from tests.ca.controller.lab import Objects, prepare, running
from tests.ca.upstream.openssl import need_openssl, verify
from tests.docs.pages import blocks
from tests.docs.reason_codes import ROOT
from tests.support.kube import Cluster, Object, Refused, fresh, kube_lab
from tests.support.pod_certificates import (
    answered,
    certified_pod,
    chain_of,
    condition,
    request_certificate,
    status_of,
    uri_of,
)
from tests.support.server import RunningServer, eventually, running_server, spiffe_id
from tests.support.server import entry as entry_message

pytestmark = [pytest.mark.xdist_group("kube"), pytest.mark.real("Kubernetes")]

PAGE = ROOT / "docs/kubernetes-without-agent.md"
NAMESPACE = "burgee-certificates"
ALIAS = "/k8s/demo"
SECONDS = 5.0
"""Five times what an answer may take."""


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """With the page's roles for two accounts, and a node."""
    lab = kube_lab()
    lab.namespace(NAMESPACE)
    for role in roles():
        name = role["metadata"]["name"]
        lab.service_account(NAMESPACE, name)
        lab.apply(role, binding(name))
    lab.node("pc-1")
    return lab


def roles() -> list[Object]:
    found = [yaml.safe_load(block) for block in blocks(PAGE, "yaml")]
    return [one for one in found if _kind(one) == "ClusterRole"]


def binding(name: str) -> Object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
    }


def kubeconfig(cluster: Cluster, account: str) -> str:
    """As the page's service account and nobody more."""
    token = cluster.directory / f"{fresh(account)}-token"
    token.write_text(cluster.account_token(NAMESPACE, account, cluster.issuer, 3600))
    return str(cluster.token_kubeconfig(token))


@dataclass(kw_only=True)
class Lab:
    """A server of ours, and signers that come and go."""

    cluster: Cluster
    server: RunningServer
    namespace: str

    def config(self, **changes: Any) -> ControllerConfig:
        values = {
            "trust_domain": "example.org",
            "cluster": "demo",
            "server": {"admin_socket": str(self.server.config.admin_socket_path)},
            "kubeconfig": kubeconfig(self.cluster, "burgee-pod-certificates"),
            "pod_certificates": {"entry_wait_seconds": 0, **changes},
        }
        return from_values(values, ControllerConfig)

    @asynccontextmanager
    async def signer(
        self, *, may_act: Callable[[], bool] = lambda: True, clock: Clock | None = None, **changes: Any
    ) -> AsyncIterator[PodCertificates]:
        config = self.config(**changes)
        assert config.kubeconfig is not None
        kube = KubeClient.from_kubeconfig(config.kubeconfig)
        made = pod_certificates(config, kube, clock or SystemClock(), may_act)
        assert made is not None
        task = asyncio.create_task(made.run())
        try:
            await eventually(lambda: made.mirror.synced)
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await made.close()
            kube.close()

    async def entry(self, path: str = "/shop", *selectors: str, **fields: Any) -> str:
        """For every pod of the namespace unless told otherwise; gives its ID."""
        wanted = selectors or (f"k8s:ns:{self.namespace}",)
        (made,) = await self.server.create(entry_message(path, ALIAS, *wanted, **fields))
        return str(made.id)

    def pod(self, **fields: Any) -> Object:
        return certified_pod(self.cluster, self.namespace, node="pc-1", **fields)

    async def ask(self, pod: Object | None = None, **fields: Any) -> str:
        return await asyncio.to_thread(lambda: request_certificate(self.cluster, pod or self.pod(), **fields))

    async def answer(self, path: str) -> Object:
        return await asyncio.to_thread(answered, self.cluster, path)

    async def outcome(self, pod: Object | None = None, **fields: Any) -> tuple[str, str]:
        return condition(await self.answer(await self.ask(pod, **fields)))

    async def issued(self) -> list[admin_pb2.Issued]:
        pages = self.server.local.admin.ListIssued(admin_pb2.ListIssuedRequest())
        return [one async for page in pages for one in page.records if one.requester]


@pytest.fixture
async def lab(cluster: Cluster) -> AsyncIterator[Lab]:
    async with running_server() as server:
        await server.create(entry_message(ALIAS, "/spire/server", "k8s_psat:cluster:demo"))
        yield Lab(cluster=cluster, server=server, namespace=cluster.namespace())


async def test_a_pod_gets_its_svid_and_openssl_verifies_it_to_the_trust_bundle(
    cluster: Cluster, tmp_path: Path
) -> None:
    need_openssl()
    name = "burgee.dev:svid:example.org"
    publisher = {"kube_config_file": kubeconfig(cluster, "burgee-cluster-trust-bundle")}
    publishers = {"pods": {"plugin": "cluster_trust_bundle", "config": publisher}}
    async with running_server(bundle_publishers=publishers) as server:
        lab = Lab(cluster=cluster, server=server, namespace=cluster.namespace())
        await server.create(entry_message(ALIAS, "/spire/server", "k8s_psat:cluster:demo"))
        entry_id = await lab.entry("/shop", f"k8s:ns:{lab.namespace}", "k8s:sa:default", "k8s:pod-label:app:shop")
        key = ec.generate_private_key(ec.SECP256R1())
        pod = lab.pod(labels={"app": "shop"})
        async with lab.signer():
            began = time.monotonic()
            status = await lab.answer(await lab.ask(pod, key=key))
            assert time.monotonic() - began < SECONDS
        leaf, *rest = chain_of(status)
        assert condition(status) == ("Issued", "Issued")
        assert uri_of(leaf) == "spiffe://example.org/shop"
        assert leaf.public_key() == key.public_key()
        published: list[bytes] = []

        def roots() -> bool:
            try:
                found = cluster.admin.call("GET", f"/apis/certificates.k8s.io/v1/clustertrustbundles/{name}")
            except Refused:
                return False
            published[:] = parse_certificates(found["spec"]["trustBundle"])
            return published == server.roots

        await eventually(roots)
        below = [one.public_bytes(Encoding.DER) for one in rest]
        said = verify(tmp_path, leaf.public_bytes(Encoding.DER), below, published, at=SystemClock().now(), strict=True)
        assert said == ""
        (record,) = await lab.issued()
        meta = pod["metadata"]
        assert record.requester == f"k8s_pod:demo:{meta['namespace']}/{meta['name']}@pc-1"
        assert record.entry_id == entry_id
        audited = [
            one async for page in server.local.admin.ListAudit(admin_pb2.ListAuditRequest()) for one in page.records
        ]
        (call,) = [one for one in audited if one.call.endswith("/BatchIssueX509SVID")]
        assert call.code == "OK"
        assert [item.name for item in call.items] == ["spiffe://example.org/shop"]
        assert all(text in call.items[0].about for text in (record.requester, entry_id, f"serial {leaf.serial_number}"))
    cluster.admin.call("DELETE", f"/apis/certificates.k8s.io/v1/clustertrustbundles/{name}")


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(public_exponent=65537, key_size=3072)],
    ids=["p384", "rsa"],
)
async def test_other_keys_that_are_certified(lab: Lab, key: Any) -> None:
    await lab.entry()
    async with lab.signer():
        assert await lab.outcome(key=key) == ("Issued", "Issued")


async def test_keys_that_are_not_certified_are_denied_in_kubernetes_words(lab: Lab) -> None:
    await lab.entry()
    async with lab.signer():
        assert await lab.outcome(key=ed25519.Ed25519PrivateKey.generate()) == ("Denied", "UnsupportedKeyType")
        key = ec.generate_private_key(ec.SECP521R1())
        assert await lab.outcome(key=key) == ("Denied", "UnsupportedKeyType")
    assert await lab.issued() == []


async def test_a_pod_without_an_entry_is_denied_and_the_log_names_the_nearest(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    await lab.entry("/other", f"k8s:ns:{lab.namespace}", "k8s:sa:other")
    async with lab.signer():
        status = await lab.answer(await lab.ask())
    assert condition(status) == ("Denied", "VOUCHED_NO_ENTRY")
    assert "certificateChain" not in status
    assert "k8s:sa:other" not in status["conditions"][0]["message"], "other people's entries are none of theirs"
    assert "k8s:sa:other" in capsys.readouterr().err


async def test_an_entry_that_comes_a_moment_later_is_waited_for(lab: Lab) -> None:
    async with lab.signer(entry_wait_seconds=60) as signer:
        path = await lab.ask()
        await eventually(lambda: len(signer.mirror.items) == 1)
        await asyncio.sleep(0.5)
        assert condition(status_of(lab.cluster, path)) == ("", "")
        await lab.entry()
        assert condition(await lab.answer(path)) == ("Issued", "Issued")


async def test_entries_below_the_nodes_own_agent_count_and_those_of_other_nodes_do_not(lab: Lab) -> None:
    node = lab.cluster.admin.call("GET", "/api/v1/nodes/pc-1")["metadata"]["uid"]
    for path, uid in (("/here", node), ("/there", "11111111-1111-4111-8111-111111111111")):
        parent = f"/spire/agent/k8s_psat/demo/{uid}"
        await lab.server.create(entry_message(path, parent, f"k8s:ns:{lab.namespace}"))
    async with lab.signer():
        status = await lab.answer(await lab.ask())
    assert uri_of(chain_of(status)[0]) == "spiffe://example.org/here"


async def test_what_a_container_alone_has_is_nothing_of_the_pods(lab: Lab) -> None:
    await lab.entry("/main", f"k8s:ns:{lab.namespace}", "k8s:container-name:main")
    await lab.entry("/image", f"k8s:ns:{lab.namespace}", "k8s:pod-image:registry.test/main:1")
    async with lab.signer():
        assert await lab.outcome() == ("Denied", "VOUCHED_NO_ENTRY")


async def test_of_several_identities_the_volume_names_one(lab: Lab) -> None:
    await lab.entry("/one")
    await lab.entry("/two")
    key = "burgee.dev/spiffe-id"
    async with lab.signer():
        assert await lab.outcome() == ("Denied", "VOUCHED_AMBIGUOUS")
        status = await lab.answer(await lab.ask(annotations={key: "spiffe://example.org/two"}))
        assert uri_of(chain_of(status)[0]) == "spiffe://example.org/two"
        for text, expected in (
            ("spiffe://example.org/three", ("Denied", "VOUCHED_NO_ENTRY")),
            ("spiffe://other.org/one", ("Failed", "TRUST_DOMAIN")),
            ("spiffe://example.org/spire/server", ("Failed", "SPIFFE_ID_RESERVED")),
        ):
            assert await lab.outcome(annotations={key: text}) == expected
        unknown = await lab.outcome(annotations={"burgee.dev/other": "x"})
        assert unknown == ("Denied", "InvalidUnverifiedUserAnnotations")


async def test_an_entry_shorter_than_kubernetes_least_fails_the_request(lab: Lab) -> None:
    await lab.entry(x509_svid_ttl=3599)
    async with lab.signer():
        status = await lab.answer(await lab.ask())
    assert condition(status) == ("Failed", "ENTRY_TTL_SHORT")
    assert "3599" in status["conditions"][0]["message"]
    assert await lab.issued() == []


@pytest.mark.parametrize(("ttl", "asked", "lives"), [(3600, 86400, 3610), (3600, 3600, 3600), (50000, 7200, 7200)])
async def test_it_lives_as_the_entry_says_within_what_the_pod_allows(
    lab: Lab, ttl: int, asked: int, lives: int
) -> None:
    await lab.entry(x509_svid_ttl=ttl)
    async with lab.signer():
        status = await lab.answer(await lab.ask(max_seconds=asked))
    (leaf,) = chain_of(status)
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == lives
    assert status["notBefore"] < status["beginRefreshAt"] < status["notAfter"]


async def test_a_banned_node_gets_nothing(lab: Lab) -> None:
    await lab.entry()
    node = lab.cluster.admin.call("GET", "/api/v1/nodes/pc-1")["metadata"]["uid"]
    agent = SpiffeId.parse(f"spiffe://example.org/spire/agent/k8s_psat/demo/{node}")
    server, far = lab.server.server, SystemClock().now() + timedelta(hours=1)
    await server.store.agents.upsert(AttestedAgent(id=agent, attestation_type="k8s_psat", serial="1", not_after=far))
    await server.follower.catch_up()
    await lab.server.local.agents.BanAgent(BanAgentRequest(id=spiffe_id(agent.path)))
    async with lab.signer():
        assert await lab.outcome() == ("Denied", "AGENT_BANNED")
    assert await lab.issued() == []


async def test_requests_that_do_not_fit_what_there_is(lab: Lab) -> None:
    """A kubelet could not make them: whoever else may create requests could."""
    await lab.entry()
    admin, other = lab.cluster.admin, "22222222-2222-4222-8222-222222222222"
    lab.cluster.service_account(lab.namespace, "boss")
    cases: list[tuple[dict[str, str], str]] = [
        ({"podUID": other}, "K8S_POD_UID"),
        ({"serviceAccountName": "boss"}, "K8S_POD_ACCOUNT"),
        ({"nodeUID": other}, "K8S_NODE_MISMATCH"),
        ({"nodeName": "pc-2"}, "K8S_NODE_MISMATCH"),
        ({"podName": "nobody"}, "K8S_POD_DELETED"),
    ]
    async with lab.signer():
        for changes, reason in cases:
            assert await lab.outcome(by=admin, **changes) == ("Denied", reason), changes
        plain = lab.cluster.pod(lab.namespace, node="pc-1")
        assert await lab.outcome(plain, by=admin) == ("Denied", "K8S_POD_NO_VOLUME")
        ended = lab.cluster.set_status(lab.pod(), phase="Succeeded")
        assert await lab.outcome(ended, by=admin) == ("Denied", "K8S_POD_ENDED")
    assert await lab.issued() == []


async def test_a_kubelet_cannot_ask_for_pods_of_others(lab: Lab) -> None:
    """What we rest on: were it not so, the API server would be another than the one that we are made for."""
    lab.cluster.node("pc-2")
    with pytest.raises(Refused):
        await lab.ask(by=lab.cluster.node_user("pc-2"))


async def test_other_signers_requests_are_nothing_to_us(lab: Lab) -> None:
    await lab.entry()
    other = "other.example.com/svid"
    async with lab.signer() as signer:
        path = await lab.ask(_pod(lab, other), signer=other)
        assert await lab.outcome() == ("Issued", "Issued")
        assert condition(status_of(lab.cluster, path)) == ("", "")
        assert not signer.mirror.items


async def test_what_was_asked_while_nobody_was_there_is_answered_and_only_once(lab: Lab) -> None:
    await lab.entry()
    paths = [await lab.ask() for _ in range(3)]
    async with lab.signer():
        first = [await lab.answer(path) for path in paths]
    async with lab.signer() as signer:
        await eventually(lambda: signer.mirror.synced)
        await asyncio.sleep(0.3)
    assert [status_of(lab.cluster, path) for path in paths] == first
    assert len(await lab.issued()) == 3


async def test_two_controllers_take_turns_and_one_answer_stays(lab: Lab) -> None:
    await lab.entry()
    turn = {"first": True, "second": False}
    async with (
        lab.signer(may_act=lambda: turn["first"]) as first,
        lab.signer(may_act=lambda: turn["second"]) as second,
    ):
        assert await lab.outcome() == ("Issued", "Issued")
        turn["first"] = False
        path = await lab.ask()
        await eventually(lambda: len(first.mirror.items) == len(second.mirror.items) == 1)
        assert condition(status_of(lab.cluster, path)) == ("", "")
        turn["second"] = True
        assert condition(await lab.answer(path)) == ("Issued", "Issued")
        assert len(await lab.issued()) == 2
        turn["first"] = True  # both believe that it is theirs
        for path in [await lab.ask() for _ in range(5)]:
            status = await lab.answer(path)
            serial = chain_of(status)[0].serial_number
            assert str(serial) in {one.serial_or_kid for one in await lab.issued()}
            assert status == status_of(lab.cluster, path)


async def test_a_server_that_is_away_is_waited_for(lab: Lab) -> None:
    await lab.entry()
    async with lab.signer() as signer:
        assert await lab.outcome() == ("Issued", "Issued")
        await lab.server.stop()
        path = await lab.ask()
        await eventually(lambda: signer.problem() is not None)
        assert condition(status_of(lab.cluster, path)) == ("", "")
        lab.server._stack = type(lab.server._stack)()
        await lab.server.start()
        assert condition(await lab.answer(path)) == ("Issued", "Issued")
        assert signer.problem() is None


async def test_many_at_once_are_all_answered(lab: Lab) -> None:
    await lab.entry()
    async with lab.signer():
        pods = [lab.pod() for _ in range(20)]
        paths = await asyncio.gather(*(lab.ask(pod) for pod in pods))
        statuses = await asyncio.gather(*(lab.answer(path) for path in paths))
    assert {condition(status) for status in statuses} == {("Issued", "Issued")}
    assert len({chain_of(status)[0].serial_number for status in statuses}) == 20


async def test_a_pod_that_a_clusterspiffeid_selects_gets_its_certificate_from_the_whole_controller(lab: Lab) -> None:
    """Pod and request are made together: the entry is made while the request waits."""
    await asyncio.to_thread(prepare, lab.cluster)
    objects, label = Objects(lab.cluster), fresh("certified")
    signer = f"{label}.example.com/svid"
    config = lab.config(signer_name=signer, entry_wait_seconds=60)
    whole = config.model_copy(
        update={
            "kubeconfig": lab.cluster.kubeconfig(),
            "metrics_address": None,
            "lease": LeaseConfig(namespace=NAMESPACE, name=label, renew_seconds=0.2, duration_seconds=2),
        }
    )
    objects.spiffe_id(podSelector={"matchLabels": {"app": label}})
    try:
        async with running(whole) as controller:
            await eventually(controller.leads)
            pod = await asyncio.to_thread(
                lambda: certified_pod(lab.cluster, lab.namespace, node="pc-1", signer=signer, labels={"app": label})
            )
            status = await lab.answer(await lab.ask(pod, signer=signer))
            name = f"spiffe://example.org/ns/{lab.namespace}/pod/{pod['metadata']['name']}"
            assert uri_of(chain_of(status)[0]) == name
            assert "watch:podcertificaterequests" not in controller.health.problems()
    finally:
        objects.close()


def test_the_pages_manifests_are_what_the_api_server_takes(cluster: Cluster) -> None:
    pods = [one for block in blocks(PAGE, "yaml") if (one := yaml.safe_load(block)) and _kind(one) == "Pod"]
    assert pods
    cluster.service_account("default", "default")
    for pod in pods:
        path = "/api/v1/namespaces/default/pods?dryRun=All&fieldValidation=Strict"
        made = cluster.admin.call("POST", path, pod)
        assert made["spec"]["volumes"][0]["projected"]["sources"] == pod["spec"]["volumes"][0]["projected"]["sources"]


def _kind(value: Any) -> str:
    return str(value.get("kind")) if isinstance(value, dict) else ""


def _pod(lab: Lab, signer: str) -> Object:
    return certified_pod(lab.cluster, lab.namespace, node="pc-1", signer=signer)
