"""Node attestation by Amazon's instance identity document, with SPIRE's payload, IDs and selectors.

The document can be read by every process of the instance and is the same for all its life: the first who brings it is
the node (trust on first use).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator

from attestor.node.cloud.aws_document import InstanceDocument, load_certificates, verified_document
from attestor.node.cloud.aws_lookup import ApiConfig, AwsLookup, Instance
from attestor.node.cloud.evidence import forbidden_account
from attestor.node.cloud.metadata import NO_SERVICE, MetadataService
from attestor.node.node_checks import attempted
from attestor.node.path_template import PathTemplate
from ca.errors import Denied, FailedPrecondition, Unavailable
from ca.identity.selector import Selector
from ca.ports import AttestedNode, Challenge, Finding, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel
from ca.runtime.findings import failed, ok
from ca.runtime.notes import note

NAME = "aws_iid"
FIELDS = frozenset({"PluginName", "TrustDomain", "AccountID", "Region", "InstanceID", "AvailabilityZone", "Tags.*"})
TOKEN_PATH = "/latest/api/token"  # noqa: S105 (a path)
DOCUMENT_PATH = "/latest/dynamic/instance-identity/"
TOKEN_SECONDS = 60
_TOKEN = re.compile(r"[!-~]{1,1024}")


class ServerConfig(StrictModel):
    """Whose instances may attest, and with which of Amazon's keys their documents are signed."""

    certificates: Path = Field(
        description="A directory with Amazon's RSA-2048 certificates, one file `<region>.pem` for each region that is "
        "admitted. Amazon publishes them in the EC2 user guide. Read at the start."
    )
    accounts: tuple[str, ...] = Field(
        min_length=1, description="Account numbers whose instances may attest: Amazon signs for all its customers."
    )
    regions: tuple[str, ...] = Field(
        default=(), description="Regions whose instances may attest; empty: all that have a certificate."
    )
    max_instance_age_seconds: int | None = Field(
        default=None,
        gt=0,
        description="Refuses instances that were launched longer ago: a document that leaks later proves nothing.",
    )
    agent_path_template: str = Field(
        default="/{{ .PluginName }}/{{ .AccountID }}/{{ .Region }}/{{ .InstanceID }}",
        description="The agent's path below `/spire/agent`. Fields: `.PluginName`, `.AccountID`, `.Region`, "
        "`.InstanceID`, `.AvailabilityZone` and, with `api`, `.Tags.<key>`.",
    )
    api: ApiConfig | None = Field(
        default=None,
        description="Looks the instance up: it must run and be untouched, and more selectors are found.",
    )

    @field_validator("agent_path_template")
    @classmethod
    def _template(cls, text: str) -> str:
        PathTemplate.parse(text, FIELDS, plugin=NAME)
        return text


class AgentConfig(StrictModel):
    """Where the instance's metadata service is (version 2: with a session token)."""

    metadata_endpoint: str = Field(
        default="http://169.254.169.254", description="Address of the instance metadata service."
    )


class AwsIidVerifier:
    """Server half."""

    def __init__(self, config: ServerConfig, host: NodeHost) -> None:
        self._config = config
        self._host = host
        self._certificates = load_certificates(config.certificates)
        self._template = PathTemplate.parse(config.agent_path_template, FIELDS, plugin=NAME)
        self._lookup = None if config.api is None else AwsLookup(config.api)

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        document = verified_document(payload, self._certificates)
        self._check(document)
        instance = None if self._lookup is None else await self._lookup.look_up(document)
        return AttestedNode(path=self._path(document, instance), selectors=_selectors(document, instance))

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether each region that is admitted has a certificate. Amazon is not asked."""
        held = ", ".join(sorted(self._certificates))
        lacking = [region for region in self._config.regions if region not in self._certificates]
        if lacking:
            hint = f"put `<region>.pem` into `{self._config.certificates}` and restart the server"
            return [failed("certificates", f"none for {', '.join(lacking)}; there are those of {held}", hint)]
        return [ok("certificates", f"those of {held}")]

    def _check(self, document: InstanceDocument) -> None:
        """What is signed is true; whether it is admitted is another question."""
        note("instance", f"{document.instance_id} of account {document.account_id} in {document.region}")
        if document.account_id not in self._config.accounts:
            raise forbidden_account("account", document.account_id)
        if self._config.regions and document.region not in self._config.regions:
            raise Denied(f"nodes in `{document.region}` are not admitted here", reason="CLOUD_REGION_FORBIDDEN")
        limit = self._config.max_instance_age_seconds
        age = (self._host.clock.now() - document.pending_time).total_seconds()
        if limit is not None and age > limit:
            note("age", f"launched {age:.0f} s ago, allowed are {limit} s")
            raise Denied("the instance was launched too long ago", reason="CLOUD_DOCUMENT_EXPIRED")

    def _path(self, document: InstanceDocument, instance: Instance | None) -> str:
        tags = {} if instance is None else instance.tags
        values = {
            **{f"Tags.{key}": value for key, value in tags.items()},
            "PluginName": NAME,
            "TrustDomain": self._host.trust_domain.name,
            "AccountID": document.account_id,
            "Region": document.region,
            "InstanceID": document.instance_id,
            "AvailabilityZone": document.availability_zone,
        }
        return self._template.render(values)


class AwsIidProver:
    """Agent half."""

    evidence_lasts = True

    def __init__(self, config: AgentConfig) -> None:
        self._service = MetadataService(config.metadata_endpoint, "Amazon")

    @property
    def can_reattest(self) -> bool:
        """The same document again would be refused: the server knows the node by then."""
        return False

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether the metadata service gives what an attestation needs."""

        async def asked() -> str:
            await self.payload()
            return "it gives the document and its signatures"

        return [await attempted("metadata service", asked, mend=NO_SERVICE)]

    async def payload(self) -> bytes:
        token = await self._service.text(
            TOKEN_PATH, {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}, method="PUT"
        )
        if _TOKEN.fullmatch(token) is None:
            raise Unavailable("the metadata service of Amazon gave no session token", reason="CLOUD_METADATA")
        headers = {"X-aws-ec2-metadata-token": token}
        names = ("document", "signature", "rsa2048")
        found = {name: await self._service.text(DOCUMENT_PATH + name, headers) for name in names}
        return json.dumps(found).encode()

    async def answer(self, challenge: bytes) -> bytes:
        raise FailedPrecondition(
            "the server sent a challenge, which this method does not have", reason="UNEXPECTED_CHALLENGE"
        )


def _selectors(document: InstanceDocument, instance: Instance | None) -> frozenset[Selector]:
    values = {
        f"account_id:{document.account_id}",
        f"az:{document.availability_zone}",
        f"image:id:{document.image_id}",
        f"instance:id:{document.instance_id}",
        f"region:{document.region}",
    }
    return frozenset(Selector(NAME, value) for value in values | (instance.selectors if instance else frozenset()))


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=AwsIidVerifier,
    prover=AwsIidProver,
)
