"""Look-ups by Azure's Resource Manager, with Microsoft's own libraries, at a stand-in over TLS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from attestor.node.azure_imds import START, AzureImdsVerifier, ServerConfig
from ca.errors import BurgeeError, ConfigError, Denied, Unavailable
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from tests.attestor.node.test_azure_imds import PATH, SELECTORS, server
from tests.support.cloud_apis import azure_api
from tests.support.cloud_documents import (
    TENANT,
    TENANT_DOMAIN,
    azure_answer,
    azure_document,
    azure_signer,
    signed_message,
)
from tests.support.cloud_services import Handle, service, tls
from tests.support.node_host import FakeHost

FOUND = {
    "azure_imds:resource-group:group-1",
    "azure_imds:vm-location:eastus",
    "azure_imds:vm-tag:team:pay",
    "azure_imds:network-security-group:net:front",
    "azure_imds:virtual-network:vnet",
    "azure_imds:virtual-network-subnet:vnet:default",
}
OTHER = "00000000-0000-0000-0000-000000000000"


def verifier(tmp_path: Path, url: str, ca_file: Path, **changes: Any) -> AzureImdsVerifier:
    (tmp_path / "proof").write_text("proof-1\n")
    api = {"app_id": "app-1", "app_secret_file": str(tmp_path / "proof"), "authority_host": url}
    api |= {"resource_manager": url, "ca_file": str(ca_file)} | changes
    tenant = {
        "tenant_id": TENANT,
        "allowed_vm_tags": ["team", "none"],
        "api": {name: value for name, value in api.items() if value is not None},
    }
    return AzureImdsVerifier(from_values(server(tenants={TENANT_DOMAIN: tenant}), ServerConfig), FakeHost())


async def look_up(tmp_path: Path, api: Handle, *, scale_set: str | None = None, **changes: Any) -> AttestedNode:
    async def answer(nonce: bytes) -> bytes:
        return azure_answer(signed_message(azure_document(nonce.decode()), azure_signer()), scale_set=scale_set)

    context, ca_file = tls(tmp_path)
    with service(api, context) as running:
        return await verifier(tmp_path, running.url, ca_file, **changes).verify(START, answer)


async def refusal(tmp_path: Path, api: Handle, **changes: Any) -> BurgeeError:
    with pytest.raises((Denied, Unavailable)) as caught:
        await look_up(tmp_path, api, **changes)
    assert isinstance(caught.value, BurgeeError)
    return caught.value


async def test_what_the_api_says_of_a_machine_becomes_selectors(tmp_path: Path) -> None:
    node = await look_up(tmp_path, azure_api())
    assert node.path == PATH
    assert {str(selector) for selector in node.selectors} == SELECTORS | FOUND | {"azure_imds:vm-name:blog"}


async def test_what_the_api_says_of_a_scale_sets_instance_becomes_selectors(tmp_path: Path) -> None:
    node = await look_up(tmp_path, azure_api(pages=3), scale_set="set-1")
    names = {"azure_imds:vm-name:set-1_0", "azure_imds:vmss-name:set-1"}
    assert {str(selector) for selector in node.selectors} == SELECTORS | FOUND | names


async def test_a_token_may_prove_the_application(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("proof-1")
    node = await look_up(tmp_path, azure_api(), app_secret_file=None, token_file=str(tmp_path / "token"))
    assert node.path == PATH


async def test_a_machine_that_the_tenant_does_not_have_is_refused(tmp_path: Path) -> None:
    """The agent says which tenant and which scale set it is of: lies are found nowhere."""
    assert (await refusal(tmp_path, azure_api(vm=OTHER))).reason == "CLOUD_INSTANCE_UNKNOWN"
    assert (await refusal(tmp_path, azure_api(vm=OTHER), scale_set="set-1")).reason == "CLOUD_INSTANCE_UNKNOWN"
    assert (await refusal(tmp_path, azure_api(), scale_set="set-2")).reason == "CLOUD_INSTANCE_UNKNOWN"


async def test_the_next_page_is_not_asked_for_elsewhere(tmp_path: Path) -> None:
    assert (await refusal(tmp_path, azure_api(elsewhere=True), scale_set="set-1")).reason == "CLOUD_API"


async def test_an_api_that_cannot_be_asked_is_no_refusal(tmp_path: Path) -> None:
    for status, body in ((404, b"{}"), (200, b"junk"), (200, b"[]"), (200, b'{"data": 1}'), (200, b'{"data": [{}]}')):

        def broken(request: Any, status: int = status, body: bytes = body) -> tuple[int, bytes]:
            return (status, body) if "ResourceGraph" in request.path else azure_api()(request)

        assert (await refusal(tmp_path, broken)).reason == "CLOUD_API"
    (tmp_path / "wrong").write_text("wrong")
    assert (await refusal(tmp_path, azure_api(), app_secret_file=str(tmp_path / "wrong"))).reason == "CLOUD_API"


def test_without_the_library_the_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(ConfigError) as caught:
        verifier(tmp_path, "https://127.0.0.1:1", tmp_path / "none")
    assert caught.value.reason == "CLOUD_SDK_MISSING"
    assert "burgee[azure]" in caught.value.hint
