"""Google's instance identity tokens: whose they are, what of them is believed, and what an agent asks for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestor.node.gcp_iit import AgentConfig, GcpIitProver, GcpIitVerifier, ServerConfig, plugin
from ca.errors import BurgeeError, ConfigError, Denied, FailedPrecondition, InvalidArgument, Unavailable
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from tests.contracts.attestors import NodeSample
from tests.support.cloud_documents import GCP_INSTANCE, PROJECT, gcp_claims, gcp_key_set, gcp_token, self_signed
from tests.support.cloud_services import RUNNING, as_json, gcp_metadata, service, tls
from tests.support.node_host import FakeHost

PATH = f"/spire/agent/gcp_iit/{PROJECT}/{GCP_INSTANCE}"
SELECTORS = {
    f"gcp_iit:project-id:{PROJECT}",
    "gcp_iit:zone:us-west1-b",
    "gcp_iit:instance-name:node-1",
    "gcp_iit:sa:739419398126-compute@developer.gserviceaccount.com",
}


@cache
def keys_file() -> Path:
    path = Path(mkdtemp(prefix="bg-gcp-")) / "keys.json"
    path.write_text(json.dumps(gcp_key_set("google")))
    return path


@cache
def metadata_endpoint() -> str:
    """One for all that ask, until the tests end."""
    return RUNNING.enter_context(service(gcp_metadata())).url


def server(**changes: Any) -> dict[str, Any]:
    return {"projectid_allow_list": [PROJECT], "keys_file": str(keys_file())} | changes


def contract_sample() -> NodeSample:
    return NodeSample(host=FakeHost(), server=server(), agent={"metadata_endpoint": metadata_endpoint()})


def verifier(**changes: Any) -> GcpIitVerifier:
    values = {name: value for name, value in server(**changes).items() if value is not None}
    return GcpIitVerifier(from_values(values, ServerConfig), FakeHost())


async def no_challenge(_: bytes) -> bytes:
    raise AssertionError("there is no challenge")


async def verify(payload: bytes, **changes: Any) -> AttestedNode:
    return await verifier(**changes).verify(payload, no_challenge)


async def refusal(payload: bytes, **changes: Any) -> BurgeeError:
    with pytest.raises((Denied, InvalidArgument)) as caught:
        await verify(payload, **changes)
    assert isinstance(caught.value, BurgeeError)
    return caught.value


async def fault(payload: bytes, **changes: Any) -> str:
    """The exact reason, which the caller is not told."""
    error = await refusal(payload, **changes)
    assert error.reason == "TOKEN_REFUSED"
    assert isinstance(error.__cause__, BurgeeError)
    return error.__cause__.reason


async def test_a_good_token_names_the_node() -> None:
    node = await verify(gcp_token(gcp_claims()))
    assert (node.path, node.reattestable) == (PATH, False)
    assert {str(selector) for selector in node.selectors} == SELECTORS


async def test_a_service_account_that_is_not_verified_is_no_selector() -> None:
    for claims in (gcp_claims(email_verified=False), gcp_claims(email_verified="true")):
        node = await verify(gcp_token(claims))
        assert {str(selector) for selector in node.selectors} == SELECTORS - {
            "gcp_iit:sa:739419398126-compute@developer.gserviceaccount.com"
        }


async def test_an_agent_brings_the_token_of_its_service_account_and_audience() -> None:
    with service(gcp_metadata()) as running:
        config = {"metadata_endpoint": running.url, "audience": "ours at example.org"}
        agent = GcpIitProver(from_values(config, AgentConfig))
        payload = await agent.payload()
    assert running.requests[0].query == {"audience": "ours at example.org", "format": "full"}
    assert (await verify(payload, audience="ours at example.org")).path == PATH
    assert await fault(payload) == "TOKEN_AUDIENCE"
    assert not agent.can_reattest
    with pytest.raises(FailedPrecondition):
        await agent.answer(b"?")
    with pytest.raises(Unavailable):
        await GcpIitProver(from_values(config, AgentConfig)).payload()


async def test_each_fault_has_its_own_reason() -> None:
    long_ago = datetime.now(UTC) - timedelta(hours=3)
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert await fault(gcp_token(gcp_claims(), signer="forger")) == "TOKEN_SIGNATURE"
    assert await fault(gcp_token(gcp_claims(), signer="forger", kid="forger-1")) == "TOKEN_KEY_UNKNOWN"
    assert await fault(gcp_token(gcp_claims(), alg="PS256")) == "TOKEN_ALGORITHM"
    assert await fault(gcp_token(gcp_claims(iss="https://accounts.google.com.example"))) == "TOKEN_ISSUER"
    assert await fault(gcp_token(gcp_claims(aud="another-server"))) == "TOKEN_AUDIENCE"
    assert await fault(gcp_token(gcp_claims(long_ago))) == "TOKEN_EXPIRED"
    assert await fault(gcp_token(gcp_claims(soon))) == "TOKEN_NOT_YET_VALID"
    assert await fault(gcp_token(gcp_claims(exp=int(soon.timestamp()) + 86400))) == "TOKEN_LIFETIME"


async def test_a_foreign_project_is_refused() -> None:
    with collecting() as notes:
        error = await refusal(gcp_token(gcp_claims(compute_engine={"project_id": "project-2"})))
    assert error.reason == "CLOUD_ACCOUNT_FORBIDDEN"
    assert "project-2" not in error.detail + error.hint
    assert any("project-2" in note.value for note in notes)


@pytest.mark.parametrize(
    "change",
    [
        {"project_id": 1},
        {"project_id": "project-1/../x"},
        {"instance_id": 1234567890123456789},
        {"instance_id": "../server"},
        {"instance_name": None},
        {"zone": ["us-west1-b"]},
        {"project_number": "739419398126"},
        {"project_number": True},
        {"instance_creation_timestamp": -1},
    ],
)
async def test_claims_of_another_type_or_form_are_refused(change: dict[str, Any]) -> None:
    token = gcp_token(gcp_claims(compute_engine=change))
    assert (await refusal(token)).reason == "CLOUD_DOCUMENT_MALFORMED"


async def test_a_token_of_the_short_format_is_refused() -> None:
    for google in ({}, None, {"compute_engine": []}, []):
        error = await refusal(gcp_token(gcp_claims() | {"google": google}))
        assert error.reason == "CLOUD_DOCUMENT_MALFORMED"
        assert "format=full" in error.detail
    error = await refusal(gcp_token(gcp_claims(email="x y")))
    assert error.reason == "CLOUD_DOCUMENT_MALFORMED"


@pytest.mark.parametrize("payload", [b"a.b", b"\xff", b"....", b"e30.e30.e30", b"x" * 20000])
async def test_a_malformed_token_is_refused(payload: bytes) -> None:
    assert (await refusal(payload)).reason == "TOKEN_MALFORMED"


GOOD = gcp_token(gcp_claims())


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


async def test_keys_are_fetched_once_and_not_for_unknown_ids_again_and_again(tmp_path: Path) -> None:
    context, ca_file = tls(tmp_path)
    with service(lambda _: (200, as_json(gcp_key_set())), context) as running:
        fetching = verifier(keys_file=None, keys_url=f"{running.url}/certs", keys_ca_file=str(ca_file))
        for _ in range(3):
            assert (await fetching.verify(gcp_token(gcp_claims()), no_challenge)).path == PATH
        for kid in ("other-1", "other-2", "other-1"):
            with pytest.raises((Denied, Unavailable)):
                await fetching.verify(gcp_token(gcp_claims(), kid=kid), no_challenge)
    assert [request.path for request in running.requests] == ["/certs"]


async def test_keys_may_be_certificates_by_id(tmp_path: Path) -> None:
    certificate = self_signed("google").certificate.public_bytes(Encoding.PEM).decode()
    (tmp_path / "certs.json").write_text(json.dumps({"google-1": certificate}))
    assert (await verify(gcp_token(gcp_claims()), keys_file=str(tmp_path / "certs.json"))).path == PATH


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": 1}', '{"a": "junk"}', '{"keys": []}'])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        verifier(keys_file=str(tmp_path / "keys.json"))
    assert caught.value.reason == "CLOUD_CERTIFICATES"


@pytest.mark.parametrize(
    "change",
    [
        {"projectid_allow_list": []},
        {"keys_url": "https://example.org/keys"},
        {"keys_file": None, "keys_url": "http://example.org/keys"},
        {"agent_path_template": "/{{ .PluginName }}"},
        {"audience": ""},
    ],
)
def test_configurations_that_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        verifier(**change)


async def test_the_path_is_configurable() -> None:
    template = "/{{ .PluginName }}/{{ .Zone }}/{{ .InstanceName }}"
    node = await verify(gcp_token(gcp_claims()), agent_path_template=template)
    assert node.path == "/spire/agent/gcp_iit/us-west1-b/node-1"
    with pytest.raises(Denied) as caught:  # a project of a domain: its colon is in no path
        await verify(
            gcp_token(gcp_claims(compute_engine={"project_id": "example.com:project-1"})),
            projectid_allow_list=["example.com:project-1"],
        )
    assert caught.value.reason == "AGENT_PATH"


def test_the_plugin_is_found_by_its_name() -> None:
    assert plugin.name == "gcp_iit"
