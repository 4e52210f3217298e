"""What Google's Compute API says of an instance: tags, labels, metadata and service accounts.

Behind Google's own library for credentials (`pip install burgee[gcp]`), which is imported only where it is configured.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from attestor.node.cloud.gcp_instance import GcpInstance
from attestor.node.cloud.sdk import LookUps, api_unavailable, needed
from ca.errors import ConfigError, Denied
from ca.identity import strict_json
from ca.runtime.config import StrictModel
from ca.runtime.notes import note

SCOPE = "https://www.googleapis.com/auth/compute.readonly"
MAX_ANSWER_BYTES = 4 << 20


class ApiConfig(StrictModel):
    """Look-ups by Google's Compute API; needs the permission `compute.instances.get`."""

    service_account_file: Path | None = Field(
        default=None,
        description="A service account's key; without it, Google's own search for credentials (environment, machine).",
    )
    allowed_label_keys: tuple[str, ...] = Field(default=(), description="Labels that become selectors.")
    allowed_metadata_keys: tuple[str, ...] = Field(default=(), description="Metadata items that become selectors.")
    max_metadata_value_size: int = Field(
        default=128, gt=0, le=4096, description="A node with a longer value of such an item is refused."
    )
    endpoint: str = Field(default="https://compute.googleapis.com", description="Address of the Compute API.")
    timeout_seconds: float = Field(default=5.0, gt=0, le=60, description="For the whole look-up.")


class GcpLookup:
    """Asks in threads, each with a session of its own: the library's are not for several."""

    def __init__(self, config: ApiConfig) -> None:
        self._config = config
        self._look_ups = LookUps(seconds=config.timeout_seconds, vendor="Google")
        self._transport = needed("google.auth.transport.requests", "gcp")
        self._auth_error = importlib.import_module("google.auth.exceptions").GoogleAuthError
        self._http_errors = (
            importlib.import_module("requests").RequestException,
            importlib.import_module("urllib3.exceptions").HTTPError,
        )
        self._credentials = self._found_credentials()

    async def look_up(self, instance: GcpInstance) -> frozenset[str]:
        """Values of selectors. Raises Denied CLOUD_INSTANCE_UNKNOWN, CLOUD_METADATA_VALUE; Unavailable CLOUD_API."""
        return await self._look_ups.ask(self._look_up, instance)

    def _look_up(self, instance: GcpInstance) -> frozenset[str]:
        found = self._get(instance)
        if found.get("id") != instance.instance_id:  # names come again, ids do not
            raise _unknown("the machine of that name is another by now")
        try:
            return frozenset(self._values(found))
        except (KeyError, TypeError, AttributeError) as error:
            raise api_unavailable("Google", f"an answer without what it should have: {error!r}") from error

    def _values(self, found: Mapping[str, Any]) -> Iterator[str]:
        for tag in found.get("tags", {}).get("items", ()):
            yield f"tag:{tag}"
        for account in found.get("serviceAccounts", ()):
            yield f"sa:{account['email']}"
        for key, value in found.get("labels", {}).items():
            if key in self._config.allowed_label_keys:
                yield f"label:{key}:{value}"
        for item in found.get("metadata", {}).get("items", ()):
            if item["key"] in self._config.allowed_metadata_keys:
                yield self._metadata(item["key"], item.get("value", ""))

    def _metadata(self, key: str, value: str) -> str:
        if len(value) > self._config.max_metadata_value_size:
            note("metadata", f"the value of `{key}` has {len(value)} characters")
            raise Denied("a metadata value of this node is too long for a selector", reason="CLOUD_METADATA_VALUE")
        return f"metadata:{key}:{value}"

    def _get(self, instance: GcpInstance) -> Mapping[str, Any]:
        path = f"/compute/v1/projects/{instance.project_id}/zones/{instance.zone}/instances/{instance.instance_name}"
        url, timeout = self._config.endpoint.rstrip("/") + path, self._config.timeout_seconds
        try:
            with self._transport.AuthorizedSession(self._credentials) as session:
                answer = session.get(url, timeout=timeout, allow_redirects=False, stream=True)
                body = answer.raw.read(MAX_ANSWER_BYTES + 1, decode_content=True)
        except (self._auth_error, *self._http_errors, OSError) as error:
            raise api_unavailable("Google", str(error)) from error
        if answer.status_code == 404:
            raise _unknown("there is no machine of that name")
        try:
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            document = strict_json.loads(body, max_bytes=MAX_ANSWER_BYTES)
            if not isinstance(document, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise api_unavailable("Google", f"it answered with {error}") from error
        return document

    def _found_credentials(self) -> Any:
        auth = importlib.import_module("google.auth")
        try:
            if self._config.service_account_file is None:
                credentials, _ = auth.default(scopes=[SCOPE])
            else:
                credentials = importlib.import_module(
                    "google.oauth2.service_account"
                ).Credentials.from_service_account_file(str(self._config.service_account_file), scopes=[SCOPE])
        except (self._auth_error, OSError, ValueError) as error:
            raise ConfigError(f"no credentials for Google's API: {error}", reason="CLOUD_CREDENTIALS") from error
        return credentials


def _unknown(what: str) -> Denied:
    note("instance", what)
    return Denied("the cloud knows no such running machine", reason="CLOUD_INSTANCE_UNKNOWN")
