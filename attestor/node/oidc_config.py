"""The configuration of the node attestor `oidc`, both halves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from attestor.node.foreign_jwt import TokenRules
from attestor.node.jwks import https_url
from attestor.node.path_template import PathTemplate
from ca.runtime.config import StrictModel

NAME = "oidc"
PATH_FIELDS = frozenset({"PluginName", "IssuerName", "TokenHash", "SubjectHash", "Subject", "Claims.*"})
ONE_TOKEN, ONE_SUBJECT = (
    f"/{{{{ .PluginName }}}}/{{{{ .IssuerName }}}}/{{{{ .{part}Hash }}}}" for part in ("Token", "Subject")
)

Algorithm = Literal["ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"]
IssuerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
ClaimName = Annotated[str, StringConstraints(pattern=r"^[^:\s]{1,128}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class IssuerConfig(StrictModel):
    """One issuer whose tokens are accepted."""

    issuer: str = Field(
        description="Its identifier: an https address, compared with the token's `iss` as it is spelled."
    )
    audience: Text = Field(
        description="What the token's `aud` must hold. Choose one that is for this server alone, for example its trust "
        "domain's address: a token that was made for somebody else must prove nothing here."
    )
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities that vouch for the issuer's address; else the system's."
    )
    jwks_uri: str | None = Field(
        default=None,
        description="Where its keys are. By default its discovery document says it, and then they must be on its host.",
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "ES256"), min_length=1, description="Signature algorithms that are accepted."
    )
    claims: tuple[ClaimName, ...] = Field(
        default=(),
        max_length=32,
        description="Claims that become selectors besides `sub`: `oidc:claim:<name>:<value>`, one for each member of a "
        "list. Name those that tell whose the job is.",
    )
    required_claims: dict[ClaimName, Text | tuple[Text, ...]] = Field(
        default_factory=dict,
        description="Claims that a token must have, each with its value or with several of which one will do. Where "
        "everybody can get a token of the issuer, name here whose are meant, for example `repository_owner: acme`.",
    )
    max_token_lifetime_seconds: int = Field(
        default=3600, gt=0, le=86_400, description="Tokens that are made for longer (`iat` to `exp`) are refused."
    )
    agents: bool = Field(default=True, description="Whether its tokens attest nodes, each of which becomes an agent.")
    exchange: bool = Field(default=True, description="Whether its tokens are exchanged for SVIDs without an agent.")
    reattest: bool = Field(
        default=False,
        description="An agent proves itself with a new token each time that it needs a new SVID, instead of renewing "
        "the one that it has. For nodes that can always get a token.",
    )
    agent_path_template: str | None = Field(
        default=None,
        description="The agent's path below /spire/agent. By default it ends in a hash of the token, and with "
        "`reattest` in one of its subject. Must begin with `/{{ .PluginName }}/{{ .IssuerName }}/`.",
    )

    @field_validator("issuer")
    @classmethod
    def _https(cls, text: str) -> str:
        https_url(text, "issuer", query=False)
        return text

    @field_validator("jwks_uri")
    @classmethod
    def _https_keys(cls, text: str | None) -> str | None:
        if text is not None:
            https_url(text, "jwks_uri")
        return text

    @field_validator("agent_path_template")
    @classmethod
    def _parses(cls, text: str | None) -> str | None:
        if text is not None:
            template_of(text)
        return text

    @model_validator(mode="after")
    def _of_use(self) -> IssuerConfig:
        if not self.agents and not self.exchange:
            raise ValueError("tokens of an issuer must serve for `agents`, for `exchange` or for both")
        return self

    @property
    def path_template(self) -> PathTemplate:
        return template_of(self.agent_path_template or (ONE_SUBJECT if self.reattest else ONE_TOKEN))

    @property
    def rules(self) -> TokenRules:
        return TokenRules(
            issuer=self.issuer,
            audience=self.audience,
            algorithms=frozenset(self.algorithms),
            max_lifetime_seconds=self.max_token_lifetime_seconds,
        )


class ServerConfig(StrictModel):
    """Whose tokens are accepted."""

    issuers: dict[IssuerName, IssuerConfig] = Field(
        min_length=1,
        description="By a name of yours, which stands in agents' IDs, in `oidc:issuer:<name>` and in the parent ID of "
        "what is exchanged: `/burgee/oidc/<name>`.",
    )

    @model_validator(mode="after")
    def _once(self) -> ServerConfig:
        addresses = [config.issuer for config in self.issuers.values()]
        if len(set(addresses)) != len(addresses):
            raise ValueError("two names are for the same issuer")
        return self


class RequestConfig(StrictModel):
    """A forge's service that gives a running job its token, as GitHub Actions has it."""

    audience: Text = Field(description="What the token shall be for: the server's `audience`.")
    url_env: str = Field(
        default="ACTIONS_ID_TOKEN_REQUEST_URL", min_length=1, description="Environment variable with the address."
    )
    bearer_env: str = Field(
        default="ACTIONS_ID_TOKEN_REQUEST_TOKEN", min_length=1, description="Environment variable with its password."
    )
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities that vouch for the address; else the system's."
    )


class AgentConfig(StrictModel):
    """Where the agent finds its token. Exactly one source."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a refused configuration must not print what it holds

    token_file: Path | None = Field(
        default=None, description="A file that holds the token; it is read at each attestation."
    )
    token_env: str | None = Field(default=None, min_length=1, description="An environment variable with the token.")
    token_request: RequestConfig | None = Field(
        default=None, description="A service that gives a new token each time that it is asked."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> AgentConfig:
        named = [value is not None for value in (self.token_file, self.token_env, self.token_request)]
        if sum(named) != 1:
            raise ValueError("name exactly one of `token_file`, `token_env` and `token_request`")
        return self


def template_of(text: str) -> PathTemplate:
    """Raises ValueError. An issuer vouches for agents of its own name only."""
    prefix = "/{{ .PluginName }}/{{ .IssuerName }}/"
    if not text.startswith(prefix):
        raise ValueError(f"the template must begin with `{prefix}`")
    if "{{" not in text[len(prefix) :]:
        raise ValueError("the template names no field that tells one node from another")
    return PathTemplate.parse(text, PATH_FIELDS, plugin=NAME)
