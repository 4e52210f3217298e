"""Node attestation by Google's instance identity token, with SPIRE's payload, IDs and selectors.

Every process of the machine can ask for such a token: the first who brings one is the node (trust on first use).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote as url_quote

from pydantic import Field, field_validator, model_validator

from attestor.node.cloud.evidence import forbidden_account, malformed_payload
from attestor.node.cloud.gcp_instance import GcpInstance, instance_of
from attestor.node.cloud.gcp_keys import PinnedKeys
from attestor.node.cloud.gcp_lookup import ApiConfig, GcpLookup
from attestor.node.cloud.metadata import NO_SERVICE, MetadataService
from attestor.node.foreign_jwt import KeySource, TokenRules, take_apart, verify_token
from attestor.node.jwks import Jwks, https_url
from attestor.node.node_checks import attempted
from attestor.node.path_template import PathTemplate
from ca.errors import BurgeeError, FailedPrecondition, Unavailable
from ca.identity.selector import Selector
from ca.identity.text import quote
from ca.ports import AttestedNode, Challenge, Finding, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel
from ca.runtime.findings import failed, ok
from ca.runtime.https import context_of
from ca.runtime.notes import note

NAME = "gcp_iit"
ISSUER = "https://accounts.google.com"
AUDIENCE = "spire-gcp-node-attestor"
KEYS_URL = "https://www.googleapis.com/oauth2/v3/certs"
MAX_TOKEN_SECONDS = 2 * 3600
"""Google makes them for one hour."""
FIELDS = frozenset(
    {"PluginName", "TrustDomain", "ProjectID", "ProjectNumber", "Zone", "InstanceID", "InstanceName"}
    | {"InstanceCreationTimestamp"}
)


class ServerConfig(StrictModel):
    """Whose machines may attest, and where Google's keys are."""

    projectid_allow_list: tuple[str, ...] = Field(
        min_length=1, description="Projects whose machines may attest: Google signs for all its customers."
    )
    audience: str = Field(
        default=AUDIENCE,
        min_length=1,
        description="What tokens must be made for. The default is what SPIRE's agents ask for; a name of your own "
        "keeps away tokens that were shown to other servers.",
    )
    keys_url: str | None = Field(
        default=None, description=f"Where Google's key set is fetched (https); by default `{KEYS_URL}`."
    )
    keys_ca_file: Path | None = Field(
        default=None, description="Roots for that address, PEM, in place of the system's."
    )
    keys_file: Path | None = Field(
        default=None,
        description="Google's keys in a file, and nothing is fetched: a key set, or certificates by key id. Google "
        "changes its keys every few weeks.",
    )
    agent_path_template: str = Field(
        default="/{{ .PluginName }}/{{ .ProjectID }}/{{ .InstanceID }}",
        description="The agent's path below `/spire/agent`. Fields: `.PluginName`, `.ProjectID`, `.ProjectNumber`, "
        "`.Zone`, `.InstanceID`, `.InstanceName`, `.InstanceCreationTimestamp`.",
    )
    api: ApiConfig | None = Field(default=None, description="Looks the machine up, for more selectors.")

    @field_validator("agent_path_template")
    @classmethod
    def _template(cls, text: str) -> str:
        PathTemplate.parse(text, FIELDS, plugin=NAME)
        return text

    @model_validator(mode="after")
    def _one_source(self) -> ServerConfig:
        if self.keys_file is not None and (self.keys_url or self.keys_ca_file):
            raise ValueError("with `keys_file` nothing is fetched: leave `keys_url` and `keys_ca_file` out")
        if self.keys_url is not None:
            https_url(self.keys_url, "keys_url")
        return self


class AgentConfig(StrictModel):
    """Where the machine's metadata service is, and what to ask it for."""

    metadata_endpoint: str = Field(
        default="http://metadata.google.internal", description="Address of the metadata service."
    )
    service_account: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9._%+@-]+$",
        max_length=256,
        description="The service account whose token is asked for.",
    )
    audience: str = Field(default=AUDIENCE, min_length=1, description="As the server's.")


class GcpIitVerifier:
    """Server half."""

    def __init__(self, config: ServerConfig, host: NodeHost) -> None:
        self._config = config
        self._host = host
        self._rules = TokenRules(
            issuer=ISSUER,
            audience=config.audience,
            algorithms=frozenset({"RS256"}),
            max_lifetime_seconds=MAX_TOKEN_SECONDS,
        )
        self._keys = _keys(config, host)
        self._template = PathTemplate.parse(config.agent_path_template, FIELDS, plugin=NAME)
        self._lookup = None if config.api is None else GcpLookup(config.api)

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        if not payload:
            raise malformed_payload("missing attestation payload")
        token = await verify_token(take_apart(payload), rules=self._rules, keys=self._keys, now=self._host.clock.now())
        instance = instance_of(token.claims)
        note("instance", f"{instance.instance_name} ({instance.instance_id}) in project {instance.project_id}")
        if instance.project_id not in self._config.projectid_allow_list:
            raise forbidden_account("project", instance.project_id)
        path = self._path(instance)
        more = frozenset[str]() if self._lookup is None else await self._lookup.look_up(instance)
        return AttestedNode(path=path, selectors=_selectors(instance, more))

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether there are keys of Google's to verify with; fetched, if that is due."""
        what = "keys of Google"
        if not isinstance(self._keys, Jwks):
            return [ok(what, f"those in `{self._config.keys_file}`, as they were at the start")]
        known = await self._keys.look()
        if self._keys.trouble or not known:
            detail = f"{self._keys.trouble or 'there are none'}; {known} known from before"
            where = self._config.keys_url or KEYS_URL
            return [failed(what, detail, f"can this machine reach {where}? without a way there is `keys_file`")]
        return [ok(what, f"{known} known")]

    def _path(self, instance: GcpInstance) -> str:
        values = {
            "PluginName": NAME,
            "TrustDomain": self._host.trust_domain.name,
            "ProjectID": instance.project_id,
            "ProjectNumber": str(instance.project_number),
            "Zone": instance.zone,
            "InstanceID": instance.instance_id,
            "InstanceName": instance.instance_name,
            "InstanceCreationTimestamp": str(instance.created),
        }
        return self._template.render(values)


class GcpIitProver:
    """Agent half."""

    evidence_lasts = True

    def __init__(self, config: AgentConfig) -> None:
        self._service = MetadataService(config.metadata_endpoint, "Google")
        self._path = (
            f"/computeMetadata/v1/instance/service-accounts/{url_quote(config.service_account, safe='@')}/identity"
            f"?audience={url_quote(config.audience, safe='')}&format=full"
        )

    @property
    def can_reattest(self) -> bool:
        """Another token says the same, and the server knows the node by then."""
        return False

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether the metadata service gives a token, and of which machine."""

        async def asked() -> str:
            claims = take_apart(await self.payload()).claims
            try:
                instance = instance_of(claims)
            except BurgeeError as error:
                raise Unavailable(f"its token tells of no machine: {error.detail}", reason=error.reason) from error
            return f"it gives a token of {quote(instance.instance_name)} in project {quote(instance.project_id)}"

        return [await attempted("metadata service", asked, mend=NO_SERVICE)]

    async def payload(self) -> bytes:
        return (await self._service.ask(self._path, {"Metadata-Flavor": "Google"})).strip()

    async def answer(self, challenge: bytes) -> bytes:
        raise FailedPrecondition(
            "the server sent a challenge, which this method does not have", reason="UNEXPECTED_CHALLENGE"
        )


def _keys(config: ServerConfig, host: NodeHost) -> KeySource:
    if config.keys_file is not None:
        return PinnedKeys(config.keys_file)
    context = None if config.keys_ca_file is None else context_of(ca_file=config.keys_ca_file)
    return Jwks(ISSUER, clock=host.clock, jwks_uri=config.keys_url or KEYS_URL, context=context)


def _selectors(instance: GcpInstance, more: frozenset[str]) -> frozenset[Selector]:
    values = {
        f"project-id:{instance.project_id}",
        f"zone:{instance.zone}",
        f"instance-name:{instance.instance_name}",
        *more,
    }
    if instance.service_account is not None:
        values.add(f"sa:{instance.service_account}")
    return frozenset(Selector(NAME, value) for value in values)


plugin = NodeAttestorPlugin(
    name=NAME,
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=GcpIitVerifier,
    prover=GcpIitProver,
)
