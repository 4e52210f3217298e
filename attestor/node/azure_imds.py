"""Node attestation by Azure's attested document, with SPIRE's exchange, IDs and selectors.

The server's nonce is in the document, so that none serves twice; yet every process of the machine can ask for one: the
first who brings one is the node (trust on first use).
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote

from cryptography import x509
from pydantic import Field, field_validator, model_validator

from attestor.node.cloud.azure_chain import SignerChain
from attestor.node.cloud.azure_document import AttestedDocument, Evidence, evidence_of, verified_document
from attestor.node.cloud.azure_lookup import ApiConfig, AzureLookup, Wanted
from attestor.node.cloud.azure_roots import DIGICERT_GLOBAL_ROOT_G2
from attestor.node.cloud.evidence import forbidden_account
from attestor.node.cloud.metadata import NO_SERVICE, MetadataService
from attestor.node.node_checks import attempted, authorities
from attestor.node.path_template import PathTemplate
from ca.errors import ConfigError, FailedPrecondition, Unavailable
from ca.identity import strict_json
from ca.identity.selector import Selector
from ca.ports import AttestedNode, Challenge, Finding, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel
from ca.runtime.notes import note

NAME = "azure_imds"
FIELDS = frozenset({"PluginName", "TrustDomain", "TenantID", "SubscriptionID", "VMID"})
NONCE_CHARACTERS = 32
"""What Azure takes: up to 32, letters and digits."""
START = b"non_empty_payload"
"""What SPIRE's agents begin with, for its servers refuse an empty one; it says nothing."""
API_VERSION = "2021-02-01"
_ALPHABET = string.ascii_letters + string.digits
_UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


class TenantConfig(StrictModel):
    """One tenant whose machines may attest."""

    tenant_id: str = Field(pattern=_UUID, description="The tenant's id, which becomes part of the agent's ID.")
    restrict_to_subscriptions: tuple[str, ...] = Field(
        default=(),
        description="Subscriptions whose machines may attest. Required without `api`: the document does not say whose "
        "a subscription is. With `api`, empty means all in which the machine is found.",
    )
    allowed_vm_tags: tuple[str, ...] = Field(default=(), description="Tags that become selectors; needs `api`.")
    api: ApiConfig | None = Field(default=None, description="Looks the machine up: it must exist in this tenant.")

    @model_validator(mode="after")
    def _restricted(self) -> TenantConfig:
        if self.api is None and not self.restrict_to_subscriptions:
            raise ValueError("without `api`, `restrict_to_subscriptions` must list subscriptions")
        if self.api is None and self.allowed_vm_tags:
            raise ValueError("`allowed_vm_tags` needs `api`")
        return self


class ServerConfig(StrictModel):
    """Whose machines may attest, and who signs for Azure."""

    tenants: dict[str, TenantConfig] = Field(min_length=1, description="By the tenant's domain, as agents name it.")
    allowed_metadata_domains: tuple[str, ...] = Field(
        default=("metadata.azure.com",),
        min_length=1,
        description="Names of the signer's certificate: one of these or one below it. Other clouds have others, such "
        "as `metadata.azure.us`.",
    )
    trust_bundle_path: Path | None = Field(
        default=None, description="Roots for the signer's certificate, PEM; by default DigiCert Global Root G2."
    )
    intermediates_path: Path | None = Field(
        default=None, description="Certificates between signer and root, PEM, for servers that fetch nothing."
    )
    issuer_hosts: tuple[str, ...] = Field(
        default=("www.microsoft.com", "cacerts.digicert.com"),
        description="Hosts from which certificates between signer and root are fetched, where the certificate below "
        "says so. What is fetched proves itself by the root. Empty: nothing is fetched.",
    )
    agent_path_template: str = Field(
        default="/{{ .PluginName }}/{{ .TenantID }}/{{ .SubscriptionID }}/{{ .VMID }}",
        description="The agent's path below `/spire/agent`. Fields: `.PluginName`, `.TenantID`, `.SubscriptionID`, "
        "`.VMID`.",
    )

    @field_validator("agent_path_template")
    @classmethod
    def _template(cls, text: str) -> str:
        PathTemplate.parse(text, FIELDS, plugin=NAME)
        return text


class AgentConfig(StrictModel):
    """Which tenant this machine is of, and where its metadata service is."""

    tenant_domain: str = Field(min_length=1, description="The tenant's domain, as the server's `tenants` has it.")
    metadata_endpoint: str = Field(
        default="http://169.254.169.254", description="Address of the instance metadata service."
    )


class AzureImdsVerifier:
    """Server half."""

    def __init__(self, config: ServerConfig, host: NodeHost) -> None:
        self._host = host
        self._template = PathTemplate.parse(config.agent_path_template, FIELDS, plugin=NAME)
        self._tenants = {domain.lower(): tenant for domain, tenant in config.tenants.items()}
        self._lookups = {
            domain: AzureLookup(tenant.api, tenant.tenant_id, tenant.allowed_vm_tags)
            for domain, tenant in self._tenants.items()
            if tenant.api is not None
        }
        self._roots = _certificates(config.trust_bundle_path, DIGICERT_GLOBAL_ROOT_G2)
        self._chain = SignerChain(
            roots=self._roots,
            intermediates=_certificates(config.intermediates_path, b""),
            domains=config.allowed_metadata_domains,
            hosts=config.issuer_hosts,
            clock=host.clock,
        )

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        nonce = "".join(secrets.choice(_ALPHABET) for _ in range(NONCE_CHARACTERS))
        evidence = evidence_of(await challenge(nonce.encode()))
        tenant = self._tenants.get(evidence.tenant_domain)
        if tenant is None:
            raise forbidden_account("tenant", evidence.tenant_domain)
        document = await verified_document(evidence, self._chain, nonce, self._host.clock.now())
        note("machine", f"{document.vm_id} in subscription {document.subscription_id}")
        allowed = {subscription.lower() for subscription in tenant.restrict_to_subscriptions}
        if allowed and document.subscription_id.lower() not in allowed:
            raise forbidden_account("subscription", document.subscription_id)
        path = self._path(tenant, document)
        more = await self._look_up(evidence, document)
        values = {f"subscription-id:{document.subscription_id}", *more}
        return AttestedNode(path=path, selectors=frozenset(Selector(NAME, value) for value in values))

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether somebody vouches for Azure's signer. Azure is not asked."""
        mend = "correct `trust_bundle_path`, or leave it out for the root that Azure has by default"
        return [authorities("roots of Azure's signer", self._roots, now=self._host.clock.now(), mend=mend)]

    async def _look_up(self, evidence: Evidence, document: AttestedDocument) -> frozenset[str]:
        lookup = self._lookups.get(evidence.tenant_domain)
        if lookup is None:
            return frozenset()
        return await lookup.look_up(
            Wanted(vm_id=document.vm_id, subscription_id=document.subscription_id, scale_set=evidence.scale_set)
        )

    def _path(self, tenant: TenantConfig, document: AttestedDocument) -> str:
        values = {
            "PluginName": NAME,
            "TrustDomain": self._host.trust_domain.name,
            "TenantID": tenant.tenant_id,
            "SubscriptionID": document.subscription_id,
            "VMID": document.vm_id,
        }
        return self._template.render(values)


class AzureImdsProver:
    """Agent half."""

    evidence_lasts = True

    def __init__(self, config: AgentConfig) -> None:
        self._domain = config.tenant_domain
        self._service = MetadataService(config.metadata_endpoint, "Azure")

    @property
    def can_reattest(self) -> bool:
        """Another document says the same, and the server knows the node by then."""
        return False

    async def payload(self) -> bytes:
        return START

    async def answer(self, challenge: bytes) -> bytes:
        try:
            nonce = challenge.decode("ascii")
        except UnicodeDecodeError:
            nonce = ""
        if not 0 < len(nonce) <= NONCE_CHARACTERS or not nonce.isalnum():
            raise FailedPrecondition("the server's challenge is no nonce for Azure", reason="UNEXPECTED_CHALLENGE")
        document = await self._ask(f"/metadata/attested/document?nonce={url_quote(nonce)}&")
        compute = await self._ask("/metadata/instance/compute?")
        answer = {
            "document": {name: document.get(name) for name in ("encoding", "signature")},
            "metadata": {"agentDomain": self._domain, "vmssName": compute.get("vmScaleSetName") or None},
        }
        return json.dumps(answer).encode()

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether the metadata service gives what an attestation needs."""

        async def asked() -> str:
            await self.answer(b"0" * NONCE_CHARACTERS)
            return "it gives the attested document"

        return [await attempted("metadata service", asked, mend=NO_SERVICE)]

    async def _ask(self, path: str) -> dict[str, Any]:
        body = await self._service.ask(f"{path}api-version={API_VERSION}", {"Metadata": "true"})
        try:
            value = strict_json.loads(body, max_bytes=len(body))
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise Unavailable(f"the metadata service of Azure: {error}", reason="CLOUD_METADATA") from error
        return value


def _certificates(path: Path | None, default: bytes) -> list[x509.Certificate]:
    try:
        pem = default if path is None else path.read_bytes()
        return x509.load_pem_x509_certificates(pem) if pem else []
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the certificates in `{path}`: {error}", reason="CLOUD_CERTIFICATES") from error


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=AzureImdsVerifier,
    prover=AzureImdsProver,
)
