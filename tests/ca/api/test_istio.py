"""The CA that Istio's proxies call, against a stand-in of the cluster's API: who gets which certificate."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca.errors import Unavailable
from ca.identity.svid import verify_x509_svid
from ca.proto.burgee import admin_pb2
from ca.store.audit import AuditFilter
from tests.ca.api.istio_lab import METHOD, WEB, Api, client_of, fault, holds_key, istio, life, token_of, ztunnel
from tests.ca.api.refusals import Code, refused
from tests.support.istio_client import (
    DAY_SECONDS,
    IstioClient,
    new_key,
    pilot_csr,
    read_as_pilot_agent,
    read_as_ztunnel,
    ztunnel_csr,
)
from tests.support.server import RunningServer, running_server


@pytest.fixture
def api() -> Iterator[Api]:
    running = Api().start()
    running.node("n1")
    running.node("n2")
    yield running
    running.stop()


@pytest.fixture
async def server(api: Api) -> AsyncIterator[RunningServer]:
    async with running_server(istio=istio(api)) as running:
        yield running


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[IstioClient]:
    async with client_of(server) as made:
        yield made


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


async def test_a_server_that_cannot_sign_is_one_to_come_back_to(
    api: Api, server: RunningServer, client: IstioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> None:
        raise Unavailable("no authority signs", reason="NO_AUTHORITY")

    csr, token = pilot_csr(new_key("p256"), WEB), token_of(api)
    monkeypatch.setattr(server.server.authority, "x509", nothing)
    with refused(Code.UNAVAILABLE, reason="NO_AUTHORITY"):
        await client.ask(csr, token)
    (audited,) = await server.server.store.audit.find(AuditFilter(call="CreateCertificate"))
    assert (audited.code, audited.reason) == ("Unavailable", "NO_AUTHORITY")
    monkeypatch.undo()
    assert await client.ask(csr, token)


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
