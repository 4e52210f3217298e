"""Azure's attested documents: who signs them, for whom they were made, and what an agent asks for."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestor.node.azure_imds import START, AgentConfig, AzureImdsProver, AzureImdsVerifier, ServerConfig, plugin
from attestor.node.cloud import azure_chain
from attestor.node.cloud.azure_chain import FETCHES_PER_MINUTE
from attestor.node.cloud.azure_roots import DIGICERT_GLOBAL_ROOT_G2
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from tests.contracts.attestors import NodeSample
from tests.support import cloud_documents as clouds
from tests.support.cloud_documents import SUBSCRIPTION, TENANT, TENANT_DOMAIN, VM, azure_answer, azure_document
from tests.support.cloud_services import RUNNING, azure_metadata, service
from tests.support.node_host import FakeHost

PATH = f"/spire/agent/azure_imds/{TENANT}/{SUBSCRIPTION}/{VM}"
SELECTORS = {f"azure_imds:subscription-id:{SUBSCRIPTION}"}

Answer = Callable[[bytes], Awaitable[bytes]]


@cache
def files() -> Path:
    directory = Path(mkdtemp(prefix="bg-azure-"))
    (directory / "roots.pem").write_bytes(clouds.azure_root().pem)
    chain = clouds.azure_signer().chain
    (directory / "between.pem").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    return directory


@cache
def metadata_endpoint() -> str:
    """One for all that ask, until the tests end."""
    return RUNNING.enter_context(service(azure_metadata(clouds.azure_signer()))).url


def server(**changes: Any) -> dict[str, Any]:
    values = {
        "tenants": {TENANT_DOMAIN: {"tenant_id": TENANT, "restrict_to_subscriptions": [SUBSCRIPTION]}},
        "trust_bundle_path": str(files() / "roots.pem"),
        "intermediates_path": str(files() / "between.pem"),
        "issuer_hosts": [],
    } | changes
    return {name: value for name, value in values.items() if value is not None}


def agent(endpoint: str, **changes: Any) -> dict[str, Any]:
    return {"tenant_domain": TENANT_DOMAIN, "metadata_endpoint": endpoint} | changes


def contract_sample() -> NodeSample:
    return NodeSample(host=FakeHost(), server=server(), agent=agent(metadata_endpoint()))


def verifier(**changes: Any) -> AzureImdsVerifier:
    return AzureImdsVerifier(from_values(server(**changes), ServerConfig), FakeHost())


def prover(endpoint: str, **changes: Any) -> AzureImdsProver:
    return AzureImdsProver(from_values(agent(endpoint, **changes), AgentConfig))


def answering(signer: clouds.Signer | None = None, *, domain: str = TENANT_DOMAIN, **changes: Any) -> Answer:
    """A machine that answers with a document for the server's nonce; `changes` are the document's."""

    async def answer(nonce: bytes) -> bytes:
        content = azure_document(nonce.decode(), **changes)
        return azure_answer(clouds.azure_message(content, signer or clouds.azure_signer()), domain=domain)

    return answer


async def verify(answer: Answer, **changes: Any) -> AttestedNode:
    return await verifier(**changes).verify(START, answer)


async def refusal(answer: Answer, **changes: Any) -> BurgeeError:
    with pytest.raises((Denied, InvalidArgument)) as caught:
        await verify(answer, **changes)
    assert isinstance(caught.value, BurgeeError)
    return caught.value


async def test_a_good_document_names_the_node() -> None:
    node = await verify(answering())
    assert (node.path, node.reattestable) == (PATH, False)
    assert {str(selector) for selector in node.selectors} == SELECTORS
    assert (await verify(answering(domain=TENANT_DOMAIN.upper()))).path == PATH


async def test_a_message_with_attributes_counts_too() -> None:
    async def answer(nonce: bytes) -> bytes:
        return azure_answer(clouds.signed_message(azure_document(nonce.decode()), clouds.azure_signer()))

    assert (await verify(answer)).path == PATH


async def test_the_nonce_is_new_each_time_and_azure_takes_it() -> None:
    nonces: list[bytes] = []

    async def answer(nonce: bytes) -> bytes:
        nonces.append(nonce)
        return await answering()(nonce)

    for _ in range(3):
        await verify(answer)
    assert len(set(nonces)) == 3
    assert all(len(nonce) == 32 and nonce.isalnum() for nonce in nonces)


async def test_an_agent_brings_what_the_metadata_service_gives() -> None:
    with service(azure_metadata(clouds.azure_signer(), scale_set="set-1")) as running:
        node = prover(running.url)
        assert await node.payload() == b"non_empty_payload"
        answer = json.loads(await node.answer(b"a" * 32))
        assert (await verify(node.answer)).path == PATH
        for challenge in (b"", b"a" * 33, b"a&b=c", b"\xff"):
            with pytest.raises(FailedPrecondition):
                await node.answer(challenge)
    assert answer["metadata"] == {"agentDomain": TENANT_DOMAIN, "vmssName": "set-1"}
    assert running.requests[0].query["nonce"] == "a" * 32
    assert not node.can_reattest


@pytest.mark.parametrize("body", [b"junk", b"[]"])
async def test_a_strange_metadata_service_is_told(body: bytes) -> None:
    with service(lambda _: (200, body)) as running, pytest.raises(Unavailable) as caught:
        await prover(running.url).answer(b"a" * 32)
    assert caught.value.reason == "CLOUD_METADATA"


async def test_a_document_that_was_seen_before_is_refused() -> None:
    kept = await answering()(b"a" * 32)

    async def replayed(_: bytes) -> bytes:
        return kept

    assert (await refusal(replayed)).reason == "CLOUD_DOCUMENT_NONCE"


async def test_a_document_of_another_time_is_refused() -> None:
    for hours in (-7, 1):
        error = await refusal(answering(now=datetime.now(UTC) + timedelta(hours=hours)))
        assert error.reason == "CLOUD_DOCUMENT_EXPIRED"
    assert (await verify(answering(now=datetime.now(UTC) - timedelta(hours=5)))).path == PATH


async def test_a_forged_document_is_refused() -> None:
    """The certificate is right and the key is not; the key is right and its certificate is nobody's."""
    good, other = clouds.azure_signer(), clouds.azure_signer(root="forger")
    forged = clouds.Signer(key=clouds.key("forger"), certificate=good.certificate)

    async def answer(nonce: bytes) -> bytes:
        message = clouds.azure_message(azure_document(nonce.decode()), good)
        changed = message.replace(VM.encode(), VM[::-1].encode())
        assert changed != message
        return azure_answer(changed)

    assert (await refusal(answer)).reason == "CLOUD_DOCUMENT_SIGNATURE"
    assert (await refusal(answering(forged))).reason == "CLOUD_DOCUMENT_SIGNATURE"
    assert (await refusal(answering(other))).reason == "CLOUD_DOCUMENT_SIGNER"
    assert (await refusal(answering(clouds.self_signed("metadata.azure.com")))).reason == "CLOUD_DOCUMENT_SIGNER"


async def test_the_signers_name_must_be_azures() -> None:
    for name in ("eastus.metadata.azure.com", "*.metadata.azure.com", "METADATA.azure.com"):
        assert (await verify(answering(clouds.azure_signer(dns=name)))).path == PATH
    for name in ("metadata.azure.com.example.org", "notmetadata.azure.com", "azure.com", "metadata.azure.us"):
        with collecting() as notes:
            error = await refusal(answering(clouds.azure_signer(dns=name)))
        assert error.reason == "CLOUD_DOCUMENT_SIGNER"
        assert any(name in note.value for note in notes)
    node = await verify(
        answering(clouds.azure_signer(dns="metadata.azure.us")), allowed_metadata_domains=["metadata.azure.us"]
    )
    assert node.path == PATH


async def test_an_expired_signer_is_refused() -> None:
    expired = clouds.azure_signer(begins=timedelta(days=-30), ends=timedelta(days=-1))
    assert (await refusal(answering(expired))).reason == "CLOUD_DOCUMENT_SIGNER"


async def test_the_pinned_root_is_the_default_and_believes_no_other() -> None:
    assert (await refusal(answering(), trust_bundle_path=None)).reason == "CLOUD_DOCUMENT_SIGNER"
    assert DIGICERT_GLOBAL_ROOT_G2.count(b"BEGIN CERTIFICATE") == 1


async def test_a_foreign_tenant_or_subscription_is_refused() -> None:
    assert (await refusal(answering(domain="other.example"))).reason == "CLOUD_ACCOUNT_FORBIDDEN"
    other = "00000000-0000-0000-0000-000000000000"
    with collecting() as notes:
        error = await refusal(answering(subscriptionId=other))
    assert error.reason == "CLOUD_ACCOUNT_FORBIDDEN"
    assert other not in error.detail + error.hint
    assert any(other in note.value for note in notes)


@pytest.mark.parametrize(
    "change",
    [
        {"vmId": "../server"},
        {"vmId": None},
        {"vmId": 1},
        {"subscriptionId": "' or true"},
        {"nonce": ["a"]},
        {"timeStamp": "now"},
        {"timeStamp": {"createdOn": "yesterday", "expiresOn": "tomorrow"}},
        {"timeStamp": {"createdOn": 1, "expiresOn": 2}},
    ],
)
async def test_members_of_another_type_or_form_are_refused(change: dict[str, Any]) -> None:
    assert (await refusal(answering(**change))).reason == "CLOUD_DOCUMENT_MALFORMED"


def _changed(**changes: Any) -> bytes:
    answer = json.loads(azure_answer(clouds.signed_message(b"{}", clouds.azure_signer())))
    return json.dumps(answer | changes).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        _changed(document=None),
        _changed(metadata=[]),
        _changed(document={"encoding": "pkcs7", "signature": "%"}),
        _changed(document={"encoding": "pkcs7", "signature": "AAAA"}),
        _changed(document={"encoding": "jwt", "signature": "AAAA"}),
        _changed(metadata={"agentDomain": "a b", "vmssName": None}),
        _changed(metadata={"agentDomain": TENANT_DOMAIN, "vmssName": "x' or name =~ 'y"}),
        azure_answer(clouds.signed_message(b"{}", clouds.azure_signer(), detached=True)),
    ],
)
async def test_a_malformed_answer_is_refused(answer: bytes) -> None:
    async def give(_: bytes) -> bytes:
        return answer

    assert (await refusal(give)).reason == "ATTESTATION_PAYLOAD"


@settings(max_examples=200, deadline=None)
@given(data=st.data(), inner=st.booleans())
async def test_mutated_evidence_yields_the_same_or_nothing(data: st.DataObject, inner: bool) -> None:
    """Bits of the answer, and bits of the message within it."""

    async def answer(nonce: bytes) -> bytes:
        whole = bytearray(await answering()(nonce))
        evidence = json.loads(whole)
        target = bytearray(base64.b64decode(evidence["document"]["signature"])) if inner else whole
        position = data.draw(st.integers(0, len(target) - 1))
        target[position] ^= 1 << data.draw(st.integers(0, 7))
        if not inner:
            return bytes(target)
        evidence["document"]["signature"] = base64.b64encode(target).decode()
        return json.dumps(evidence).encode()

    try:
        node = await verify(answer)
    except (Denied, InvalidArgument):
        return
    assert (node.path, {str(each) for each in node.selectors}) == (PATH, SELECTORS)


async def test_what_stands_between_signer_and_root_is_fetched_from_listed_hosts_once() -> None:
    between = clouds.azure_signer().chain[0].public_bytes(Encoding.DER)
    with service(lambda _: (200, between)) as running:
        signer = clouds.azure_signer(issuer_address=f"{running.url}/pki/issuing.crt")
        host = running.url.removeprefix("http://")
        fetching = verifier(intermediates_path=None, issuer_hosts=[host])
        for _ in range(3):
            assert (await fetching.verify(START, answering(signer))).path == PATH
        assert [request.path for request in running.requests] == ["/pki/issuing.crt"]
        error = await refusal(answering(signer), intermediates_path=None, issuer_hosts=["www.microsoft.com"])
        assert error.reason == "CLOUD_DOCUMENT_SIGNER"
        assert len(running.requests) == 1


async def test_what_is_fetched_and_proves_nothing_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what somebody on the way put in its place, nor what a stranger named, beside what proved itself."""
    monkeypatch.setattr(azure_chain, "MAX_KEPT", 1)
    genuine = clouds.azure_signer().chain[0].public_bytes(Encoding.DER)
    forged = clouds.azure_signer(root="forger").chain[0].public_bytes(Encoding.DER)
    answers = [forged]
    with service(lambda request: (200, forged if request.path == "/stranger" else answers[0])) as running:
        host = running.url.removeprefix("http://")
        signer = clouds.azure_signer(issuer_address=f"{running.url}/issuing")
        stranger = clouds.azure_signer(root="forger", issuer_address=f"{running.url}/stranger")
        fetching = verifier(intermediates_path=None, issuer_hosts=[host])
        for answers[0], who, proves in (
            (forged, signer, False),
            (genuine, signer, True),
            (genuine, stranger, False),
            (b"", signer, True),
        ):
            if proves:
                assert (await fetching.verify(START, answering(who))).path == PATH
            else:
                with pytest.raises(Denied):
                    await fetching.verify(START, answering(who))
    assert [request.path for request in running.requests] == ["/issuing", "/issuing", "/stranger"]


async def test_strangers_cause_few_fetches_and_none_that_is_believed() -> None:
    stranger = clouds.azure_signer(root="forger").chain[0].public_bytes(Encoding.DER)
    with service(lambda _: (200, stranger)) as running:
        host = running.url.removeprefix("http://")
        fetching = verifier(intermediates_path=None, issuer_hosts=[host])
        for number in range(FETCHES_PER_MINUTE + 5):
            signer = clouds.azure_signer(root="forger", issuer_address=f"{running.url}/{number}")
            with pytest.raises(Denied) as caught:
                await fetching.verify(START, answering(signer))
            assert caught.value.reason == "CLOUD_DOCUMENT_SIGNER"
    assert len(running.requests) == FETCHES_PER_MINUTE


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b""), (200, b"junk"), (200, bytes(100_000)), (302, b""), (200, b"-----BEGIN CERTIFICATE-----")],
)
async def test_a_certificate_that_cannot_be_had_is_a_refusal(status: int, body: bytes) -> None:
    with service(lambda _: (status, body)) as running:
        signer = clouds.azure_signer(issuer_address=f"{running.url}/{status}{len(body)}")
        hosts = [running.url.removeprefix("http://")]
        error = await refusal(answering(signer), intermediates_path=None, issuer_hosts=hosts)
    assert error.reason == "CLOUD_DOCUMENT_SIGNER"


TENANT_ALONE = {"tenant_id": TENANT}


@pytest.mark.parametrize(
    "change",
    [
        {"tenants": {}},
        {"tenants": {TENANT_DOMAIN: TENANT_ALONE}},
        {"tenants": {TENANT_DOMAIN: {"tenant_id": "x", "restrict_to_subscriptions": [SUBSCRIPTION]}}},
        {"tenants": {TENANT_DOMAIN: TENANT_ALONE | {"api": {"app_id": "a"}}}},
        {"trust_bundle_path": "/no/such/file"},
        {"allowed_metadata_domains": []},
        {"agent_path_template": "/{{ .PluginName }}/{{ .Nonce }}"},
    ],
)
def test_configurations_that_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        verifier(**change)


def test_the_plugin_is_found_by_its_name() -> None:
    assert plugin.name == "azure_imds"
