"""The CA that Istio's proxies call, against a stand-in of the cluster's API: who gets which certificate."""

from __future__ import annotations

import asyncio
import base64
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.authority.state import AuthorityKind
from ca.errors import BurgeeError, ConfigError, Unavailable
from ca.identity.svid import verify_x509_svid
from ca.proto.burgee import admin_pb2
from ca.runtime.config import from_values
from ca.runtime.kube import KubeClient
from ca.runtime.server_config import ServerConfig
from ca.service.configured import check
from ca.service.istio_pods import NodePods
from ca.service.server_svid import ServerSvid
from ca.service.sign_on import SignOn
from ca.store.audit import AuditFilter
from tests.ca.api.refusals import Code, refused
from tests.contracts.upstreams import DISK_FILES, disk_files
from tests.support.clock import FakeClock
from tests.support.istio_client import (
    DAY_SECONDS,
    IstioClient,
    Key,
    new_key,
    pilot_csr,
    read_as_pilot_agent,
    read_as_ztunnel,
    ztunnel_csr,
)
from tests.support.kube_stand_in import KubeStandIn, Object
from tests.support.server import RunningServer, eventually, running_server

DNS = "burgee-istio.burgee.svc"
WEB = "spiffe://example.org/ns/shop/sa/web"
METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


class Api(KubeStandIn):
    """Lists pods of a namespace by node, too."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Object]:
        where = urlsplit(path)
        if method == "GET" and where.path.endswith("/pods") and "fieldSelector" in where.query:
            if refused := [s for (m, prefix), s in self.refuse.items() if m == "LIST" and path.startswith(prefix)]:
                return refused[0], {"kind": "Status", "message": "the stand-in was told to refuse"}
            (selector,) = parse_qs(where.query)["fieldSelector"]
            node = selector.removeprefix("spec.nodeName=")
            pods = [o for p, o in self.objects.items() if p.startswith(f"{where.path}/") and _node(o) == node]
            return 200, {"metadata": {"resourceVersion": "1"}, "items": pods}
        return super().answer(method, path, body)


def _node(pod: Object) -> str:
    return str(pod["spec"]["nodeName"])


@pytest.fixture
def api() -> Iterator[Api]:
    running = Api().start()
    running.node("n1")
    running.node("n2")
    yield running
    running.stop()


def istio(api: KubeStandIn, *, cluster: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    one = {
        "kube_config_file": str(api.kubeconfig()),
        "namespaces": ["shop", "lab"],
        "impersonators": ["istio-system/ztunnel"],
        **(cluster or {}),
    }
    return {
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "dns_names": [DNS, "localhost"],
        "clusters": {"Kubernetes": one},
        **changes,
    }


@pytest.fixture
async def server(api: Api) -> AsyncIterator[RunningServer]:
    async with running_server(istio=istio(api)) as running:
        yield running


def client_of(server: RunningServer, name: str = DNS) -> IstioClient:
    assert server.server.istio is not None
    roots = b"".join(x509.load_der_x509_certificate(root).public_bytes(Encoding.PEM) for root in server.roots)
    return IstioClient(server.server.istio.address, roots, name)


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[IstioClient]:
    async with client_of(server) as made:
        yield made


def token_of(api: Api, namespace: str = "shop", account: str = "web", node: str = "n1", **fields: Any) -> str:
    pod = api.pod(namespace, f"{account}-1", node=node, account=account)
    return api.token_for(pod, **({"audience": "istio-ca"} | fields))


def ztunnel(api: Api, node: str = "n1") -> str:
    return token_of(api, "istio-system", "ztunnel", node)


def fault(server: RunningServer) -> str:
    """What was behind the latest refusal, for administrators."""
    latest = next(iter(server.server.attestation.ring))
    assert latest.attestor == "istio"
    assert latest.error is not None
    cause = latest.error.__cause__
    return cause.reason if isinstance(cause, BurgeeError) else latest.error.reason


def life(leaf: x509.Certificate) -> float:
    return (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() - 10


def holds_key(leaf: x509.Certificate, key: Key) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return leaf.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)


@pytest.mark.parametrize("kind", ["rsa", "p256", "p384"])
async def test_a_sidecars_agent_gets_its_service_accounts_certificate(
    api: Api, server: RunningServer, client: IstioClient, kind: str
) -> None:
    key = new_key(kind)
    chain = await client.ask(pilot_csr(key, WEB), token_of(api))
    leaf, roots = read_as_pilot_agent(chain)
    read_as_ztunnel(chain, WEB)
    assert all(element.endswith("-----END CERTIFICATE-----\n") for element in chain)
    assert [root.public_bytes(Encoding.DER) for root in roots] == server.roots
    assert holds_key(leaf, key)
    ders = [leaf.public_bytes(Encoding.DER)]
    found = verify_x509_svid(ders, server.server.trust.bundles, now=server.server.clock.now())
    assert str(found.id) == WEB
    assert not list(leaf.subject)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert len(names.value) == 1
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_encipherment) == (True, kind == "rsa")
    purposes = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert set(purposes) == {x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


async def test_what_was_issued_is_on_record_with_whose_token_it_was(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    leaf, _ = read_as_pilot_agent(await client.ask(pilot_csr(new_key("p256"), WEB), token_of(api)))
    (record,) = await server.server.store.issuance.find(spiffe_id=WEB)
    assert (record.agent, record.entry_id) == ("istio:Kubernetes:shop/web", "")
    assert record.serial_or_kid == str(leaf.serial_number)
    (audited,) = await server.server.store.audit.find(AuditFilter(call="CreateCertificate"))
    assert (audited.actor, audited.code, audited.call) == (record.agent, "OK", METHOD)
    assert [item.name for item in audited.items] == [WEB]
    async for page in server.local.admin.ListIssued(admin_pb2.ListIssuedRequest(spiffe_id=WEB)):
        assert [one.requester for one in page.records] == [record.agent]


async def test_of_the_csr_only_the_key_counts(api: Api, client: IstioClient) -> None:
    token = token_of(api)
    for other in ("spiffe://example.org/ns/shop/sa/admin", "spiffe://evil.org/ns/shop/sa/web"):
        leaf, _ = read_as_ztunnel(await client.ask(pilot_csr(new_key("p256"), other), token), WEB)
        assert not list(leaf.subject)


async def test_life_is_what_was_asked_for_as_far_as_the_configuration_goes(api: Api) -> None:
    token = token_of(api)
    csr = pilot_csr(new_key("p256"), WEB)
    async with running_server(istio=istio(api, default_ttl_seconds=1200)) as server, client_of(server) as client:
        for asked, granted in ((0, 1200), (-5, 1200), (600, 600), (DAY_SECONDS, 3600), (90 * DAY_SECONDS, 3600)):
            leaf, _ = read_as_pilot_agent(await client.ask(csr, token, seconds=asked))
            assert life(leaf) == granted, asked
        with refused(Code.INVALID_ARGUMENT, "CSR signing error (requested TTL of 7776001 s", "ISTIO_TTL"):
            await client.ask(csr, token, seconds=90 * DAY_SECONDS + 1)


def _weak() -> str:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return csr.sign(rsa.generate_private_key(65537, 1024), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _edwards() -> str:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return csr.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM).decode()


def _broken() -> str:
    good = x509.load_pem_x509_csr(pilot_csr(new_key("p256"), WEB).encode()).public_bytes(Encoding.DER)
    text = base64.encodebytes(good[:-1] + bytes([good[-1] ^ 1])).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize(
    ("csr", "reason"),
    [
        ("", "CSR_MALFORMED"),
        ("hello", "CSR_MALFORMED"),
        (pilot_csr(new_key("p256"), WEB) * 2, "CSR_MALFORMED"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nA\n-----END CERTIFICATE REQUEST-----\n", "CSR_MALFORMED"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n", "CSR_MALFORMED"),
        ("-----BEGIN " + "A" * 40_000, "CSR_TOO_LONG"),
        (_broken(), "CSR_SIGNATURE"),
        (_weak(), "KEY_TOO_WEAK"),
        (_edwards(), "CSR_ALGORITHM"),
    ],
    ids=["none", "junk", "two", "base64", "empty", "long", "signature", "weak", "ed25519"],
)
async def test_a_csr_that_proves_no_key_is_refused(api: Api, client: IstioClient, csr: str, reason: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "CSR signing error (", reason):
        await client.ask(csr, token_of(api))


async def test_tokens_that_do_not_hold_are_refused_in_istios_words(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    csr, good = pilot_csr(new_key("p256"), WEB), token_of(api)
    forged = good[:-8] + ("AAAAAAAA" if not good.endswith("AAAAAAAA") else "BBBBBBBB")

    async def refusal(token: str | None, reason: str, **more: Any) -> None:
        with refused(Code.UNAUTHENTICATED, "request authenticate failure", reason):
            await client.ask(csr, token, **more)
        assert fault(server) == reason

    await refusal(None, "ISTIO_TOKEN_MISSING")
    await refusal(None, "ISTIO_TOKEN_MISSING", headers=[("authorization", f"Basic {good}")])
    await refusal(good, "ISTIO_TOKEN_MALFORMED", headers=[("authorization", f"Bearer {good}")])
    await refusal(good, "ISTIO_TOKEN_MALFORMED", headers=[("clusterid", "Kubernetes")])
    await refusal("not-a-jwt", "ISTIO_TOKEN_MALFORMED")
    await refusal(good, "ISTIO_CLUSTER_UNKNOWN", cluster="other")
    await refusal(good, "ISTIO_CLUSTER_UNKNOWN", cluster="x" * 4000)
    await refusal(forged, "K8S_TOKEN_INVALID")
    await refusal(token_of(api, audience="spire-server"), "K8S_TOKEN_AUDIENCE")
    await refusal(token_of(api, seconds=-10), "K8S_TOKEN_EXPIRED")
    api.change = {"user": {"username": "alice", "groups": ["system:authenticated"]}}
    await refusal(good, "K8S_TOKEN_USER")
    api.change = {}
    assert await client.ask(csr, good)


async def test_a_namespace_that_is_not_listed_gets_nothing(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    with refused(Code.PERMISSION_DENIED, "namespace `kube-system`", "ISTIO_NAMESPACE"):
        await client.ask(pilot_csr(new_key("p256"), WEB), token_of(api, "kube-system", "admin"))
    assert not await server.server.store.issuance.find(spiffe_id="spiffe://example.org/ns/kube-system/sa/admin")
    async with (
        running_server(istio=istio(api, cluster={"namespaces": ["*"]})) as open_to_all,
        client_of(open_to_all) as anywhere,
    ):
        assert await anywhere.ask(pilot_csr(new_key("p256"), WEB), token_of(api, "kube-system", "admin"))


async def test_a_nodes_proxy_gets_the_certificates_of_the_pods_on_its_node(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    api.pod("shop", "web-1", node="n1", account="web")
    key = new_key("p256")
    chain = await client.impersonate(ztunnel_csr(key, WEB), ztunnel(api), WEB)
    leaf, _ = read_as_ztunnel(chain, WEB)
    assert holds_key(leaf, key)
    (record,) = await server.server.store.issuance.find(spiffe_id=WEB)
    assert record.agent == "istio:Kubernetes:istio-system/ztunnel@n1"


async def test_whoever_may_not_impersonate_learns_nothing(api: Api, server: RunningServer, client: IstioClient) -> None:
    csr, proxy = ztunnel_csr(new_key("p256"), WEB), ztunnel(api)
    web = api.pod("shop", "web-1", node="n1", account="web")
    there = "/api/v1/namespaces/istio-system/pods/ztunnel-1"

    async def refusal(reason: str, identity: str = WEB, token: str = proxy) -> None:
        with refused(
            Code.UNAUTHENTICATED, "request impersonation authentication failure", "ISTIO_IMPERSONATION"
        ) as told:
            await client.impersonate(csr, token, identity)
        assert told.error is not None
        assert not told.error.hint
        assert fault(server) == reason

    assert await client.impersonate(csr, proxy, WEB)
    await refusal("ISTIO_IMPERSONATOR", token=token_of(api, "shop", "api"))
    await refusal("ISTIO_IMPERSONATED_ID", "web")
    await refusal("ISTIO_IMPERSONATED_ID", "spiffe://example.org/ns/shop/sa/web/more")
    await refusal("ISTIO_IMPERSONATED_ID", "spiffe://example.org/ns/Shop/sa/web")
    await refusal("ISTIO_IMPERSONATED_ID", WEB + "x" * 3000)
    await refusal("ISTIO_TRUST_DOMAIN", "spiffe://cluster.local/ns/shop/sa/web")
    await refusal("ISTIO_NAMESPACE", "spiffe://example.org/ns/kube-system/sa/web")
    await refusal("ISTIO_NOT_ON_NODE", "spiffe://example.org/ns/shop/sa/absent")
    api.pod("lab", "probe", node="n2", account="probe")
    await refusal("ISTIO_NOT_ON_NODE", "spiffe://example.org/ns/lab/sa/probe")
    failed = api.pod("lab", "failed", node="n1", account="failed")
    failed["status"]["phase"] = "Failed"
    await refusal("ISTIO_NOT_ON_NODE", "spiffe://example.org/ns/lab/sa/failed")
    kept = dict(api.objects[there]["metadata"])
    api.objects[there]["metadata"]["uid"] = "another"
    await refusal("K8S_POD_UID")
    api.objects[there]["metadata"] = kept
    api.objects[there]["spec"]["serviceAccountName"] = "other"
    await refusal("K8S_POD_ACCOUNT")
    api.objects[there]["spec"] |= {"serviceAccountName": "ztunnel", "nodeName": "n2"}
    await refusal("K8S_NODE_MISMATCH")
    del api.objects[there]
    await refusal("K8S_POD_DELETED")
    assert web["metadata"]["name"] == "web-1"


async def test_a_token_that_is_bound_to_no_pod_serves_for_oneself_alone(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    csr, proxy = ztunnel_csr(new_key("p256"), WEB), ztunnel(api)
    api.change = {
        "user": {"username": "system:serviceaccount:istio-system:ztunnel", "groups": ["system:serviceaccounts"]}
    }
    with refused(Code.UNAUTHENTICATED, reason="ISTIO_IMPERSONATION"):
        await client.impersonate(csr, proxy, WEB)
    assert fault(server) == "K8S_TOKEN_UNBOUND"
    api.change = {"user": {"username": "system:serviceaccount:shop:web", "groups": ["system:serviceaccounts"]}}
    read_as_ztunnel(await client.ask(csr, proxy), WEB)


async def test_an_impersonation_must_be_a_text(api: Api, client: IstioClient) -> None:
    csr, token = ztunnel_csr(new_key("p256"), WEB), token_of(api)
    with refused(Code.INVALID_ARGUMENT, reason="ISTIO_METADATA"):
        await client.ask(csr, token, metadata={"ImpersonatedIdentity": ["spiffe://example.org/ns/shop/sa/web"]})
    assert await client.ask(csr, token, metadata={"ImpersonatedIdentity": "", "CertSigner": "x"})


async def test_what_may_pass_is_for_the_client_to_try_again(api: Api, server: RunningServer) -> None:
    csr, good, proxy = pilot_csr(new_key("p256"), WEB), token_of(api), ztunnel(api)
    async with client_of(server) as client:
        api.refuse[("POST", "/apis/authentication.k8s.io")] = 403
        with refused(Code.UNAVAILABLE, "lacks rights", "K8S_API_DENIED"):
            await client.ask(csr, good)
        api.refuse[("POST", "/apis/authentication.k8s.io")] = 500
        with refused(Code.UNAVAILABLE, reason="K8S_API_UNREACHABLE"):
            await client.ask(csr, good)
        api.refuse[("POST", "/apis/authentication.k8s.io")] = 404
        with refused(Code.UNAVAILABLE, reason="K8S_API_UNREACHABLE"):
            await client.ask(csr, good)
        api.refuse.clear()
        api.refuse[("LIST", "/api/v1/namespaces/shop/pods")] = 403
        with refused(Code.UNAVAILABLE, "lacks rights", "K8S_API_DENIED"):
            await client.impersonate(csr, proxy, WEB)
        api.refuse.clear()
        assert await client.ask(csr, good)


async def test_who_asks_too_often_is_told_to_come_again(api: Api) -> None:
    csr, mine, others = pilot_csr(new_key("p256"), WEB), token_of(api), token_of(api, "lab", "other")
    limited = istio(api, requests_per_second_per_caller=0.2)
    async with running_server(istio=limited) as server, client_of(server) as client:
        for _ in range(2):
            assert await client.ask(csr, mine)
        with refused(Code.RESOURCE_EXHAUSTED, reason="RATE_LIMITED"):
            await client.ask(csr, mine)
        assert await client.ask(csr, others)
    limited = istio(api, requests_per_second_per_address=0.2)
    async with running_server(istio=limited) as server, client_of(server) as client:
        for _ in range(2):
            with refused(Code.UNAUTHENTICATED):
                await client.ask(csr, "nobody")
        before = len(api.asked)
        with refused(Code.RESOURCE_EXHAUSTED, reason="RATE_LIMITED"):
            await client.ask(csr, mine)
        assert len(api.asked) == before


async def test_proxies_that_send_no_cluster_belong_to_the_only_or_the_default_one(api: Api) -> None:
    csr, token = pilot_csr(new_key("p256"), WEB), token_of(api)
    one = istio(api)["clusters"]["Kubernetes"]
    async with running_server(istio=istio(api)) as server, client_of(server) as client:
        assert await client.ask(csr, token, cluster=None)
        assert await client.ask(csr, token, cluster="")
    two = istio(api, clusters={"east": one, "west": one | {"namespaces": ["lab"]}})
    async with running_server(istio=two) as server, client_of(server) as client:
        assert await client.ask(csr, token, cluster="east")
        with refused(Code.PERMISSION_DENIED, reason="ISTIO_NAMESPACE"):
            await client.ask(csr, token, cluster="west")
        with refused(Code.UNAUTHENTICATED, reason="ISTIO_CLUSTER_UNKNOWN"):
            await client.ask(csr, token, cluster=None)
    async with running_server(istio=two | {"default_cluster": "east"}) as server, client_of(server) as client:
        assert await client.ask(csr, token, cluster=None)


async def test_the_listener_shows_its_dns_names_and_serves_nothing_else(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    csr, token = pilot_csr(new_key("p256"), WEB), token_of(api)
    async with client_of(server, "localhost") as by_another_name:
        assert await by_another_name.ask(csr, token)
    async with client_of(server, "somebody.else") as wrong:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wrong.ask(csr, token)
        assert caught.value.code() is Code.UNAVAILABLE  # the client's own verdict: nothing was sent
    for method in ("/spire.api.server.bundle.v1.Bundle/GetBundle", "/grpc.health.v1.Health/Check"):
        with refused(Code.UNIMPLEMENTED):
            await client.channel.unary_unary(method)(b"", timeout=10)
    with refused(Code.UNIMPLEMENTED):
        await (await server.caller()).raw(METHOD)


async def test_the_listeners_certificate_is_renewed_under_open_connections(
    api: Api, server: RunningServer, client: IstioClient
) -> None:
    assert server.server.istio is not None
    csr, token = pilot_csr(new_key("p256"), WEB), token_of(api)
    assert await client.ask(csr, token)
    before = await _shown(server)
    await server.server.istio.certificate.renew()
    after = await _shown(server)
    assert before.serial_number != after.serial_number
    names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [DNS, "localhost"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/spire/server"]
    assert await client.ask(csr, token)


async def _shown(server: RunningServer) -> x509.Certificate:
    assert server.server.istio is not None
    host, port = server.server.istio.address
    return x509.load_pem_x509_certificate((await asyncio.to_thread(ssl.get_server_certificate, (host, port))).encode())


async def test_the_listener_opens_by_itself_once_the_server_can_sign(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where keys are out of reach at the start. Until then it is a warning: agents have a listener of their own."""
    start, renew, can_sign = SignOn.start, ServerSvid.renew, asyncio.Event()

    async def start_without(self: SignOn) -> None:
        await start(self)
        self.done = False

    async def renew_later(self: ServerSvid) -> None:
        if not can_sign.is_set():
            raise Unavailable("nothing signs", reason="NO_AUTHORITY")
        await renew(self)

    monkeypatch.setattr(SignOn, "start", start_without)
    monkeypatch.setattr("ca.api.istio_server.ServerSvid", type("Later", (ServerSvid,), {"renew": renew_later}))
    async with running_server(istio=istio(api)) as server:
        assert server.server.istio is not None
        assert server.server.istio.address == ("", 0)
        assert server.server.health.warnings()["istio"].reason == "ISTIO_CLOSED"
        can_sign.set()
        await eventually(lambda: bool(server.server.istio and server.server.istio.address[1]))
        assert "istio" not in server.server.health.warnings()
        async with client_of(server) as client:
            assert await client.ask(pilot_csr(new_key("p256"), WEB), token_of(api))


async def test_a_second_root_comes_along_in_the_last_element(api: Api, server: RunningServer) -> None:
    await server.server.authority.prepare(AuthorityKind.X509)  # published before it signs
    await eventually(lambda: len(server.roots) == 2)
    async with client_of(server) as client:
        chain = await client.ask(pilot_csr(new_key("p256"), WEB), token_of(api))
    leaf, roots = read_as_ztunnel(chain, WEB)
    assert len(chain) == 2
    assert [root.public_bytes(Encoding.DER) for root in roots] == server.roots
    assert read_as_pilot_agent(chain) == (leaf, roots)


async def test_intermediates_come_one_by_one(api: Api, tmp_path: Path) -> None:
    disk_files(tmp_path)
    config = {name: str(tmp_path / file) for name, file in DISK_FILES.items()}
    upstream = {"plugin": "disk", "config": config}
    async with running_server(istio=istio(api), upstream=upstream) as server, client_of(server) as client:
        chain = await client.ask(pilot_csr(new_key("p256"), WEB), token_of(api))
        assert len(chain) == 4
        leaf, roots = read_as_ztunnel(chain, WEB)
        assert read_as_pilot_agent(chain) == (leaf, roots)
        path = [x509.load_pem_x509_certificate(element.encode()) for element in chain[:-1]]
        for below, above in zip(path, [*path[1:], *roots], strict=True):
            below.verify_directly_issued_by(above)


async def test_pods_of_a_node_are_remembered_for_moments_and_new_ones_seen_at_once(api: Api) -> None:
    clock = FakeClock()
    pods = NodePods(KubeClient.from_kubeconfig(api.kubeconfig()), clock)
    api.pod("shop", "web-1", node="n1", account="web")

    def asked() -> int:
        return sum("fieldSelector" in path for _, path, _ in api.asked)

    assert await pods.has("n1", "shop", "web")
    assert await pods.has("n1", "shop", "web")
    assert asked() == 1
    assert not await pods.has("n1", "shop", "api")
    api.pod("shop", "api-1", node="n1", account="api")
    assert await pods.has("n1", "shop", "api")
    assert asked() == 3
    await asyncio.gather(*(pods.has("n1", "shop", f"none-{number}") for number in range(50)))
    assert asked() <= 5
    del api.objects["/api/v1/namespaces/shop/pods/web-1"]
    await clock.advance(6)
    assert not await pods.has("n1", "shop", "web")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dns_names": []}, "dns_names"),
        ({"dns_names": ["a b"]}, "invalid"),
        ({"clusters": {}}, "clusters"),
        ({"default_cluster": "nope"}, "default_cluster"),
        ({"clusters": {"K": {"namespaces": []}}}, "namespaces"),
        ({"clusters": {"K": {"namespaces": ["Shop"]}}}, "namespace"),
        ({"clusters": {"K": {}}}, "namespaces"),
        ({"clusters": {"K": {"namespaces": ["*"], "impersonators": ["ztunnel"]}}}, "namespace/service-account"),
        ({"max_ttl_seconds": 20_000}, "istio.max_ttl_seconds of 20000"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    good = {"dns_names": [DNS], "clusters": {"K": {"namespaces": ["*"]}}}
    values = {"trust_domain": "example.org", "data_dir": str(tmp_path)}
    check(from_values(values | {"istio": good}, ServerConfig))
    with pytest.raises(ConfigError, match=words):
        check(from_values(values | {"istio": good | change}, ServerConfig))


def test_a_server_without_it_has_nothing_of_it_in_memory() -> None:
    program = "import sys, ca.server; print([m for m in sys.modules if 'istio' in m or 'token_review' in m])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['ca.runtime.istio_config']"
