"""Node attestation by join token: a secret that an administrator made for one node, or for a counted number of them.

The payload is the token's bytes, as SPIRE's. Whoever holds the token is the node, as often as it was made for.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ConfigDict, Field, model_validator

from ca.errors import FailedPrecondition, InvalidArgument
from ca.identity.spiffe_id import SpiffeId
from ca.ports import AttestedNode, Challenge, NodeAttestorPlugin, NodeHost
from ca.runtime.config import StrictModel

MAX_TOKEN_BYTES = 1024
PATH_PREFIX = "/spire/agent/join_token/"


class ServerConfig(StrictModel):
    """The server's side has nothing to configure: tokens are made with `caadmin token create`."""


class AgentConfig(StrictModel):
    """Where the agent finds its token. Exactly one source."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a refused configuration must not print the token

    token: str | None = Field(
        default=None, min_length=1, repr=False, description="The token itself; prefer a file, which can be private."
    )
    token_file: Path | None = Field(
        default=None,
        description="A file that holds the token. It is read at each attestation, so that a new token heals an agent "
        "without a restart.",
    )
    token_env: str | None = Field(default=None, min_length=1, description="An environment variable with the token.")

    @model_validator(mode="after")
    def _exactly_one(self) -> AgentConfig:
        named = [value is not None for value in (self.token, self.token_file, self.token_env)]
        if sum(named) != 1:
            raise ValueError("name exactly one of `token`, `token_file` and `token_env`")
        return self


class JoinTokenVerifier:
    """Server half. The token is checked and its use counted in one transaction by the server's store."""

    def __init__(self, _config: ServerConfig, host: NodeHost) -> None:
        self._host = host

    async def verify(self, payload: bytes, challenge: Challenge) -> AttestedNode:
        token = _token_from(payload)
        # The token becomes one path segment: refuse what cannot be one before it is used up, not after.
        SpiffeId.of(self._host.trust_domain, PATH_PREFIX + token)
        used = await self._host.consume_join_token(token)
        return AttestedNode(path=PATH_PREFIX + used.name)


class JoinTokenProver:
    """Agent half. Remembers the last token it gave away, because a token works once."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._given: str | None = None

    @property
    def can_reattest(self) -> bool:
        """True while the configured source holds a token that has not been given away yet."""
        try:
            return self._read() != self._given
        except FailedPrecondition:
            return False

    async def payload(self) -> bytes:
        self._given = self._read()
        return self._given.encode()

    async def answer(self, challenge: bytes) -> bytes:
        raise FailedPrecondition(
            "the server sent a challenge, which join tokens do not have", reason="UNEXPECTED_CHALLENGE"
        )

    def _read(self) -> str:
        token, source = self._source()
        if not token:
            raise FailedPrecondition(
                f"there is no join token in {source}",
                reason="JOIN_TOKEN_MISSING",
                hint="make one on the server with `caadmin token create` and put it there",
            )
        return token

    def _source(self) -> tuple[str, str]:
        config = self._config
        if config.token is not None:
            return config.token, "the configuration"
        if config.token_env is not None:
            return os.environ.get(config.token_env, "").strip(), f"the environment variable `{config.token_env}`"
        assert config.token_file is not None
        try:
            with config.token_file.open("rb") as file:
                content = file.read(MAX_TOKEN_BYTES + 2)
        except OSError:
            content = b""
        return content.decode("utf-8", "replace").strip(), f"the file `{config.token_file}`"


def _token_from(payload: bytes) -> str:
    if not payload:
        raise InvalidArgument("missing attestation payload", reason="ATTESTATION_PAYLOAD")
    if len(payload) > MAX_TOKEN_BYTES:
        raise InvalidArgument(f"a join token has at most {MAX_TOKEN_BYTES} bytes", reason="ATTESTATION_PAYLOAD")
    try:
        token = payload.decode("ascii")
    except UnicodeDecodeError as error:
        raise InvalidArgument("a join token is ASCII text", reason="ATTESTATION_PAYLOAD") from error
    if "/" in token:
        raise InvalidArgument("a join token has no slash", reason="ATTESTATION_PAYLOAD")
    return token


plugin = NodeAttestorPlugin(
    name="join_token",
    server_config=ServerConfig,
    agent_config=AgentConfig,
    verifier=JoinTokenVerifier,
    prover=JoinTokenProver,
)
