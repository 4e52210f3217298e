"""Look-ups by Google's Compute API, with Google's own library for credentials, at a stand-in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from attestor.node.gcp_iit import GcpIitVerifier, ServerConfig
from ca.errors import BurgeeError, ConfigError, Denied, Unavailable
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from tests.attestor.node.test_gcp_iit import PATH, SELECTORS, no_challenge, server
from tests.support.cloud_apis import gcp_api
from tests.support.cloud_documents import gcp_claims, gcp_token, self_signed
from tests.support.cloud_services import Handle, service
from tests.support.node_host import FakeHost

FOUND = {"gcp_iit:tag:web", "gcp_iit:tag:tls", "gcp_iit:sa:web@project-1.iam.gserviceaccount.com"}


def account_file(tmp_path: Path, url: str) -> Path:
    """A service account's key, as Google gives it."""
    path = tmp_path / "account.json"
    account = {
        "type": "service_account",
        "client_email": "burgee@project-1.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": self_signed("account").key_pem.decode(),
        "token_uri": f"{url}/token",
    }
    path.write_text(json.dumps(account))
    return path


def verifier(tmp_path: Path, url: str, **changes: Any) -> GcpIitVerifier:
    api = {"service_account_file": str(account_file(tmp_path, url)), "endpoint": url} | changes
    return GcpIitVerifier(from_values(server(api=api), ServerConfig), FakeHost())


async def look_up(tmp_path: Path, api: Handle, **changes: Any) -> AttestedNode:
    with service(api) as running:
        return await verifier(tmp_path, running.url, **changes).verify(gcp_token(gcp_claims()), no_challenge)


async def refusal(tmp_path: Path, api: Handle, **changes: Any) -> BurgeeError:
    with pytest.raises((Denied, Unavailable)) as caught:
        await look_up(tmp_path, api, **changes)
    assert isinstance(caught.value, BurgeeError)
    return caught.value


async def test_what_the_api_says_becomes_selectors(tmp_path: Path) -> None:
    node = await look_up(tmp_path, gcp_api())
    assert node.path == PATH
    assert {str(selector) for selector in node.selectors} == SELECTORS | FOUND
    node = await look_up(tmp_path, gcp_api(), allowed_label_keys=["team"], allowed_metadata_keys=["role", "none"])
    listed = {"gcp_iit:label:team:pay", "gcp_iit:metadata:role:for selectors"}
    assert {str(selector) for selector in node.selectors} == SELECTORS | FOUND | listed


async def test_a_value_that_is_too_long_is_refused(tmp_path: Path) -> None:
    error = await refusal(tmp_path, gcp_api(), allowed_metadata_keys=["ssh-keys"])
    assert error.reason == "CLOUD_METADATA_VALUE"
    assert "xxx" not in error.detail
    node = await look_up(tmp_path, gcp_api(), allowed_metadata_keys=["ssh-keys"], max_metadata_value_size=4000)
    assert node.path == PATH


async def test_a_machine_of_the_same_name_is_another(tmp_path: Path) -> None:
    assert (await refusal(tmp_path, gcp_api(instance="99"))).reason == "CLOUD_INSTANCE_UNKNOWN"


async def test_a_machine_that_is_not_there_is_refused(tmp_path: Path) -> None:
    def gone(request: Any) -> tuple[int, bytes]:
        return gcp_api()(request) if request.path == "/token" else (404, b"{}")

    assert (await refusal(tmp_path, gone)).reason == "CLOUD_INSTANCE_UNKNOWN"


async def test_an_api_that_cannot_be_asked_is_no_refusal(tmp_path: Path) -> None:
    for status, body in ((500, b"{}"), (200, b"junk"), (200, b"[]"), (302, b""), (200, b'{"id": 1, "tags": 2}')):

        def broken(request: Any, status: int = status, body: bytes = body) -> tuple[int, bytes]:
            return gcp_api()(request) if request.path == "/token" else (status, body)

        error = await refusal(tmp_path, broken)
        assert error.reason == ("CLOUD_API" if status != 200 or b"id" not in body else "CLOUD_INSTANCE_UNKNOWN")
    assert (await refusal(tmp_path, lambda _: (400, b'{"error": "invalid_grant"}'))).reason == "CLOUD_API"


def test_without_the_library_or_credentials_the_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        verifier(tmp_path, "http://127.0.0.1:1", service_account_file="/no/such/file")
    assert caught.value.reason == "CLOUD_CREDENTIALS"
    monkeypatch.setitem(sys.modules, "google.auth.transport.requests", None)
    with pytest.raises(ConfigError) as caught:
        verifier(tmp_path, "http://127.0.0.1:1")
    assert caught.value.reason == "CLOUD_SDK_MISSING"
    assert "burgee[gcp]" in caught.value.hint
