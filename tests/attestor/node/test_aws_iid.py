"""Amazon's instance identity documents: whose they are, what of them is believed, and what an agent asks for."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestor.node.aws_iid import AgentConfig, AwsIidProver, AwsIidVerifier, ServerConfig, plugin
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from tests.contracts.attestors import NodeSample
from tests.support import cloud_documents as clouds
from tests.support.cloud_documents import (
    ACCOUNT,
    INSTANCE,
    REGION,
    aws_document,
    aws_evidence,
    aws_payload,
    self_signed,
)
from tests.support.cloud_services import AWS_FORM, RUNNING, Request, aws_metadata, service
from tests.support.node_host import FakeHost

SIGNER = self_signed(REGION)
PATH = f"/spire/agent/aws_iid/{ACCOUNT}/{REGION}/{INSTANCE}"
SELECTORS = {
    f"aws_iid:account_id:{ACCOUNT}",
    f"aws_iid:az:{REGION}a",
    "aws_iid:image:id:ami-0123456789abcdef0",
    f"aws_iid:instance:id:{INSTANCE}",
    f"aws_iid:region:{REGION}",
}


@cache
def certificates() -> Path:
    directory = Path(mkdtemp(prefix="bg-aws-"))
    (directory / f"{REGION}.pem").write_bytes(self_signed("older").pem + SIGNER.pem)
    (directory / "us-east-1.pem").write_bytes(self_signed("us-east-1").pem)
    return directory


@cache
def metadata_endpoint() -> str:
    """One for all that ask, until the tests end."""
    return RUNNING.enter_context(service(aws_metadata(SIGNER))).url


def server(**changes: Any) -> dict[str, Any]:
    return {"certificates": str(certificates()), "accounts": [ACCOUNT]} | changes


def contract_sample() -> NodeSample:
    return NodeSample(host=FakeHost(), server=server(), agent={"metadata_endpoint": metadata_endpoint()})


def verifier(**changes: Any) -> AwsIidVerifier:
    return AwsIidVerifier(from_values(server(**changes), ServerConfig), FakeHost())


def prover(endpoint: str) -> AwsIidProver:
    return AwsIidProver(from_values({"metadata_endpoint": endpoint}, AgentConfig))


async def no_challenge(_: bytes) -> bytes:
    raise AssertionError("there is no challenge")


async def verify(payload: bytes, **changes: Any) -> AttestedNode:
    return await verifier(**changes).verify(payload, no_challenge)


async def refusal(payload: bytes, **changes: Any) -> BurgeeError:
    with pytest.raises((Denied, InvalidArgument)) as caught:
        await verify(payload, **changes)
    assert isinstance(caught.value, BurgeeError)
    return caught.value


async def test_a_good_document_names_the_node() -> None:
    node = await verify(aws_evidence())
    assert (node.path, node.reattestable) == (PATH, False)
    assert {str(selector) for selector in node.selectors} == SELECTORS


async def test_the_message_is_as_amazon_writes_it() -> None:
    """Indefinite lengths, the content in parts, without certificates; and the detached form."""
    content = aws_document()
    for form in (AWS_FORM, (*AWS_FORM, "-noattr"), ("-nocerts",)):
        message = clouds.openssl_message(content, SIGNER, *form)
        assert (await verify(aws_payload(content, message))).path == PATH


@pytest.mark.parametrize("token", [b"a\r\nHost: b", "\u20ac".encode(), b"", b"x" * 2000])
async def test_a_session_token_that_no_header_can_hold_is_none(token: bytes) -> None:
    with service(lambda _: (200, token)) as running, pytest.raises(Unavailable) as caught:
        await prover(running.url).payload()
    assert caught.value.reason == "CLOUD_METADATA"


async def test_an_agent_brings_what_the_metadata_service_gives() -> None:
    with service(aws_metadata(SIGNER)) as running:
        agent = prover(running.url)
        payload = await agent.payload()
    assert set(json.loads(payload)) == {"document", "signature", "rsa2048"}
    assert (await verify(payload)).path == PATH
    assert not agent.can_reattest
    assert [request.method for request in running.requests] == ["PUT", "GET", "GET", "GET"]


async def test_an_agent_elsewhere_says_what_is_missing() -> None:
    with service(lambda _: (404, b"")) as running, pytest.raises(Unavailable) as caught:
        await prover(running.url).payload()
    assert caught.value.reason == "CLOUD_METADATA"
    with pytest.raises(Unavailable) as caught:
        await prover(running.url).payload()
    assert caught.value.reason == "HTTP_UNREACHABLE"
    with pytest.raises(FailedPrecondition):
        await prover(running.url).answer(b"?")


async def test_a_forged_document_is_refused() -> None:
    assert (await refusal(aws_evidence(self_signed("forger")))).reason == "CLOUD_DOCUMENT_SIGNATURE"


async def test_a_document_under_the_signature_of_another_is_refused() -> None:
    """Of SPIRE's history: a real message of one's own beside a document that says something else."""
    theirs = clouds.signed_message(aws_document(instanceId="i-0fffffffffffffff0"), SIGNER, certificates=False)
    assert (await refusal(aws_payload(aws_document(), theirs))).reason == "CLOUD_DOCUMENT_SIGNATURE"


async def test_the_certificate_in_the_message_is_not_believed() -> None:
    forger, content = self_signed("forger"), aws_document()
    message = clouds.signed_message(content, forger, certificates=True)
    assert (await refusal(aws_payload(content, message))).reason == "CLOUD_DOCUMENT_SIGNATURE"


async def test_each_region_has_its_own_key() -> None:
    error = await refusal(aws_evidence(region="us-east-1", availabilityZone="us-east-1a"))
    assert error.reason == "CLOUD_DOCUMENT_SIGNATURE"
    error = await refusal(aws_evidence(region="eu-west-9", availabilityZone="eu-west-9a"))
    assert error.reason == "CLOUD_DOCUMENT_SIGNER"


async def test_a_foreign_account_or_region_is_refused() -> None:
    with collecting() as notes:
        error = await refusal(aws_evidence(accountId="999999999999"))
    assert error.reason == "CLOUD_ACCOUNT_FORBIDDEN"
    assert "999999999999" not in error.detail + error.hint
    assert any("999999999999" in note.value for note in notes)
    assert (await refusal(aws_evidence(), regions=["us-east-1"])).reason == "CLOUD_REGION_FORBIDDEN"
    assert (await verify(aws_evidence(), regions=[REGION])).path == PATH


async def test_an_old_instance_may_be_refused() -> None:
    old = (datetime.now(UTC) - timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (await verify(aws_evidence(pendingTime=old))).path == PATH
    error = await refusal(aws_evidence(pendingTime=old), max_instance_age_seconds=86400)
    assert error.reason == "CLOUD_DOCUMENT_EXPIRED"
    assert (await verify(aws_evidence(), max_instance_age_seconds=86400)).path == PATH


async def test_the_plain_signature_counts_with_a_long_key() -> None:
    content = aws_document()
    signature = SIGNER.key.sign(content, padding.PKCS1v15(), hashes.SHA256())
    assert (await verify(aws_payload(content, None, signature))).path == PATH
    forged = self_signed("forger").key.sign(content, padding.PKCS1v15(), hashes.SHA256())
    assert (await refusal(aws_payload(content, None, forged))).reason == "CLOUD_DOCUMENT_SIGNATURE"
    assert (await refusal(aws_payload(content, None, b""))).reason == "ATTESTATION_PAYLOAD"
    # A message that is there is what counts, whatever stands beside it.
    message = clouds.signed_message(content, self_signed("forger"), certificates=False)
    assert (await refusal(aws_payload(content, message, signature))).reason == "CLOUD_DOCUMENT_SIGNATURE"


@pytest.mark.parametrize(
    "change",
    [
        {"accountId": 123456789012},
        {"accountId": "1"},
        {"accountId": "１２３４５６７８９０１２"},
        {"instanceId": "i-../../server"},
        {"instanceId": None},
        {"region": "eu/central"},
        {"imageId": ["ami-0123456789abcdef0"]},
        {"availabilityZone": ""},
        {"pendingTime": "yesterday"},
        {"pendingTime": "2024-01-01T00:00:00"},
        {"pendingTime": 0},
    ],
)
async def test_members_of_another_type_or_form_are_refused(change: dict[str, Any]) -> None:
    assert (await refusal(aws_evidence(**change))).reason == "CLOUD_DOCUMENT_MALFORMED"


async def test_a_member_that_is_there_twice_is_refused() -> None:
    content = aws_document().replace(b"{", b'{"accountId": "999999999999",', 1)
    error = await refusal(aws_payload(content, clouds.signed_message(content, SIGNER)))
    assert error.reason == "CLOUD_DOCUMENT_MALFORMED"


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b'{"document": 1}',
        b'{"document": ""}',
        b'{"document": "{}", "rsa2048": 1}',
        json.dumps({"document": "x" * 20000}).encode(),
        aws_payload(aws_document(), b"junk"),
        json.dumps({"document": aws_document().decode(), "rsa2048": "%%"}).encode(),
        aws_payload(aws_document(), bytes(70000)),
    ],
)
async def test_a_malformed_payload_is_refused(payload: bytes) -> None:
    assert (await refusal(payload)).reason == "ATTESTATION_PAYLOAD"


GOOD = aws_evidence()


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
async def test_mutated_evidence_yields_the_same_or_nothing(position: int, bit: int) -> None:
    mutated = bytearray(GOOD)
    mutated[position] ^= 1 << bit
    try:
        node = await verify(bytes(mutated))
    except (Denied, InvalidArgument):
        return
    assert (node.path, {str(each) for each in node.selectors}) == (PATH, SELECTORS)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
async def test_a_mutated_message_yields_the_same_or_nothing(data: st.DataObject) -> None:
    evidence = json.loads(GOOD)
    message = bytearray(base64.b64decode(evidence["rsa2048"]))
    position = data.draw(st.integers(0, len(message) - 1))
    message[position] ^= 1 << data.draw(st.integers(0, 7))
    evidence["rsa2048"] = base64.b64encode(message).decode()
    try:
        node = await verify(json.dumps(evidence).encode())
    except (Denied, InvalidArgument):
        return
    assert (node.path, {str(each) for each in node.selectors}) == (PATH, SELECTORS)


def test_a_directory_without_usable_certificates_is_refused(tmp_path: Path) -> None:
    def fails(name: str, content: bytes) -> str:
        directory = tmp_path / name.replace(".pem", "")
        directory.mkdir()
        (directory / name).write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            verifier(certificates=str(directory))
        assert caught.value.reason == "CLOUD_CERTIFICATES"
        return caught.value.detail

    assert "1 to" in fails("readme.txt", b"")
    assert "not named after a region" in fails("Frankfurt.pem", SIGNER.pem)
    assert "2048" in fails("eu-west-1.pem", self_signed("short", 1024).pem)
    assert fails("eu-west-2.pem", b"junk")


@pytest.mark.parametrize(
    "change",
    [
        {"accounts": []},
        {"agent_path_template": "/{{ .PluginName }}/{{ .NoSuch }}"},
        {"agent_path_template": "/other/{{ .InstanceID }}"},
        {"api": {"access_key_id": "a"}},
    ],
)
def test_configurations_that_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        verifier(**change)


async def test_the_path_is_configurable() -> None:
    node = await verify(
        aws_evidence(), agent_path_template="/{{ .PluginName }}/{{ .AvailabilityZone }}/{{ .InstanceID }}"
    )
    assert node.path == f"/spire/agent/aws_iid/{REGION}a/{INSTANCE}"


def test_the_plugin_is_found_by_its_name() -> None:
    assert plugin.name == "aws_iid"


async def test_requests_without_a_session_are_refused_by_the_stand_in() -> None:
    handle = aws_metadata(SIGNER)
    request = Request(method="GET", path="/latest/dynamic/instance-identity/document", query={}, headers={}, body=b"")
    assert handle(request)[0] == 401
