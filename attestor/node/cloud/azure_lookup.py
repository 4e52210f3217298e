"""What Azure's Resource Manager says of a machine: name, place, tags and networks.

Behind Microsoft's own libraries (`pip install burgee[azure]`), which are imported only where a tenant has `api`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from attestor.node.cloud.sdk import LookUps, api_unavailable, needed, secret_from
from ca.errors import ConfigError, Denied
from ca.runtime.config import StrictModel
from ca.runtime.notes import note

GRAPH = "/providers/Microsoft.ResourceGraph/resources?api-version=2022-10-01"
COMPUTE_VERSION = "2024-07-01"
MAX_PAGES = 50
_RESOURCE_ID = re.compile(r"[A-Za-z0-9/._()-]{1,1024}")
_GROUP = re.compile(r"/resourceGroups/([^/]+)/.*/networkSecurityGroups/([^/]+)$", re.IGNORECASE)
_SUBNET = re.compile(r"/virtualNetworks/([^/]+)/subnets/([^/]+)$", re.IGNORECASE)


class ApiConfig(StrictModel):
    """Look-ups in one tenant; the application needs the role Reader on its subscriptions. Without an application,
    Microsoft's own search for credentials applies (environment, workload identity, managed identity)."""

    app_id: str | None = Field(default=None, min_length=1, description="The application's client id.")
    app_secret_file: Path | None = Field(default=None, description="A file with the application's secret.")
    token_file: Path | None = Field(
        default=None, description="A file with a token that proves the application, read at each log-in."
    )
    authority_host: str = Field(
        default="https://login.microsoftonline.com", description="Where the application logs in; clouds differ."
    )
    resource_manager: str = Field(
        default="https://management.azure.com", description="Address of the Resource Manager; clouds differ."
    )
    ca_file: Path | None = Field(
        default=None, description="Roots for both addresses, PEM, for a cloud with authorities of its own."
    )
    timeout_seconds: float = Field(default=10.0, gt=0, le=60, description="For the whole look-up.")

    @model_validator(mode="after")
    def _one_proof(self) -> ApiConfig:
        proofs = sum(each is not None for each in (self.app_secret_file, self.token_file))
        if proofs != (0 if self.app_id is None else 1):
            raise ValueError("with `app_id` name exactly one of `app_secret_file` and `token_file`, else none")
        return self


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The machine that is looked for. `scale_set` is the agent's word: found there or not at all."""

    vm_id: str
    subscription_id: str
    scale_set: str | None


class AzureLookup:
    """Asks in threads."""

    def __init__(self, config: ApiConfig, tenant_id: str, allowed_tags: Sequence[str]) -> None:
        self._config = config
        self._look_ups = LookUps(seconds=config.timeout_seconds, vendor="Azure")
        self._tags = frozenset(allowed_tags)
        identity = needed("azure.identity", "azure")
        self._errors = importlib.import_module("azure.core.exceptions")
        self._rest = importlib.import_module("azure.core.rest")
        try:
            self._client = self._pipeline(self._credential(identity, tenant_id))
        except ValueError as error:
            raise ConfigError(f"no credentials for Azure's API: {error}", reason="CLOUD_CREDENTIALS") from error

    async def look_up(self, wanted: Wanted) -> frozenset[str]:
        """Values of selectors. Raises Denied CLOUD_INSTANCE_UNKNOWN; Unavailable CLOUD_API."""
        return await self._look_ups.ask(self._look_up, wanted)

    def _look_up(self, wanted: Wanted) -> frozenset[str]:
        try:
            return frozenset(self._instance(wanted) if wanted.scale_set else self._machine(wanted))
        except self._errors.AzureError as error:
            raise api_unavailable("Azure", str(error)) from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise api_unavailable("Azure", f"an answer without what it should have: {error!r}") from error

    def _machine(self, wanted: Wanted) -> Iterator[str]:
        """A machine on its own, by the resource graph; its interfaces are resources beside it."""
        found = self._one(
            wanted,
            "resources | where type =~ 'microsoft.compute/virtualmachines'"
            f" | where properties.vmId =~ '{wanted.vm_id}' | project id, name, location, tags, resourceGroup",
        )
        yield from self._described(found, found["resourceGroup"])
        interfaces = self._query(
            wanted,
            "resources | where type =~ 'microsoft.network/networkinterfaces'"
            f" | where properties.virtualMachine.id =~ '{_resource_id(found['id'])}' | project properties",
        )
        for interface in interfaces:
            yield from _network(interface["properties"])

    def _instance(self, wanted: Wanted) -> Iterator[str]:
        """An instance of a scale set, which lists its own."""
        scale_set = self._one(
            wanted,
            "resources | where type =~ 'microsoft.compute/virtualmachinescalesets'"
            f" | where name =~ '{wanted.scale_set}' | project id, name",
        )
        found = self._member(_resource_id(scale_set["id"]), wanted.vm_id)
        yield f"vmss-name:{scale_set['name']}"
        yield from self._described(found, scale_set["id"].split("/")[4])
        profile = found["properties"].get("networkProfileConfiguration") or {}
        for interface in profile.get("networkInterfaceConfigurations", ()):
            yield from _network(interface["properties"])

    def _member(self, scale_set: str, vm_id: str) -> Mapping[str, Any]:
        url = f"{scale_set}/virtualMachines?api-version={COMPUTE_VERSION}"
        for _ in range(MAX_PAGES):
            page = self._ask("GET", url)
            for each in page["value"]:
                if str(each["properties"]["vmId"]).lower() == vm_id.lower():
                    found: Mapping[str, Any] = each
                    return found
            url = page.get("nextLink") or ""
            if not url:
                raise _unknown("the scale set has no such instance")
            if not url.startswith(self._config.resource_manager.rstrip("/") + "/"):
                raise ValueError("the next page is elsewhere")
        raise ValueError("the scale set is too large")

    def _described(self, found: Mapping[str, Any], resource_group: str) -> Iterator[str]:
        yield f"vm-name:{found['name']}"
        yield f"vm-location:{found['location']}"
        yield f"resource-group:{resource_group}"
        for key, value in (found.get("tags") or {}).items():
            if key in self._tags:
                yield f"vm-tag:{key}:{value}"

    def _one(self, wanted: Wanted, query: str) -> Mapping[str, Any]:
        found = self._query(wanted, query)
        if len(found) != 1:
            raise _unknown(f"the subscription has {len(found)} of that kind with that name or id")
        return found[0]

    def _query(self, wanted: Wanted, query: str) -> list[Mapping[str, Any]]:
        body = {
            "subscriptions": [wanted.subscription_id],
            "query": query,
            "options": {"resultFormat": "objectArray"},
        }
        data = self._ask("POST", GRAPH, body)["data"]
        if not isinstance(data, list):
            raise TypeError("`data` is no list")
        return data

    def _ask(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        address = url if url.startswith("https://") else self._config.resource_manager.rstrip("/") + url
        request = self._rest.HttpRequest(method, address, json=body)
        answer = self._client.send_request(request, timeout=self._config.timeout_seconds)
        answer.raise_for_status()
        return answer.json()

    def _credential(self, identity: Any, tenant_id: str) -> Any:
        config = self._config
        if config.app_id is None:
            return identity.DefaultAzureCredential(authority=config.authority_host)
        common = {
            "authority": config.authority_host,
            "disable_instance_discovery": True,
            "connection_verify": True if config.ca_file is None else str(config.ca_file),
        }
        if config.app_secret_file is not None:
            secret = secret_from(config.app_secret_file)
            return identity.ClientSecretCredential(tenant_id, config.app_id, secret, **common)
        assert config.token_file is not None
        token_file = config.token_file
        return identity.ClientAssertionCredential(tenant_id, config.app_id, lambda: secret_from(token_file), **common)

    def _pipeline(self, credential: Any) -> Any:
        policies = importlib.import_module("azure.core.pipeline.policies")
        scope = self._config.resource_manager.rstrip("/") + "/.default"
        return importlib.import_module("azure.core").PipelineClient(
            self._config.resource_manager,
            policies=[
                policies.RetryPolicy(retry_total=1),
                policies.BearerTokenCredentialPolicy(credential, scope),
            ],
            connection_verify=True if self._config.ca_file is None else str(self._config.ca_file),
        )


def _network(properties: Mapping[str, Any]) -> Iterator[str]:
    group = (properties.get("networkSecurityGroup") or {}).get("id", "")
    if matched := _GROUP.search(group):
        yield f"network-security-group:{matched[1]}:{matched[2]}"
    for each in properties.get("ipConfigurations", ()):
        subnet = (each["properties"].get("subnet") or {}).get("id", "")
        if matched := _SUBNET.search(subnet):
            yield f"virtual-network:{matched[1]}"
            yield f"virtual-network-subnet:{matched[1]}:{matched[2]}"


def _resource_id(value: object) -> str:
    """One that can stand in a query and in an address."""
    if not isinstance(value, str) or _RESOURCE_ID.fullmatch(value) is None or not value.startswith("/"):
        raise ValueError("a resource id of another form")
    return value


def _unknown(what: str) -> Denied:
    note("instance", what)
    return Denied("the cloud knows no such running machine", reason="CLOUD_INSTANCE_UNKNOWN")
