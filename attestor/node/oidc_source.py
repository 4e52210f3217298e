"""Where an agent finds its OIDC token: a file, an environment variable, or a service that makes one when asked."""

from __future__ import annotations

import os
from urllib.parse import quote as percent
from urllib.parse import urlsplit

from attestor.node.foreign_jwt import MAX_TOKEN_BYTES
from attestor.node.jwks import https_url
from attestor.node.oidc_config import AgentConfig, RequestConfig
from ca.errors import FailedPrecondition
from ca.identity import strict_json
from ca.runtime.https import HttpClient, context_of

REQUEST_SECONDS = 20.0


class TokenSource:
    """`makes_new_ones`: each `read` gives a token that was not given before."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self.makes_new_ones = config.token_request is not None

    async def read(self) -> str:
        """Raises FailedPrecondition OIDC_TOKEN_MISSING, or Unavailable."""
        if self._config.token_request is not None:
            return await _requested(self._config.token_request)
        return self.kept()

    def kept(self) -> str:
        """What the file or the variable holds now. Raises FailedPrecondition."""
        config = self._config
        if config.token_env is not None:
            where, token = f"the environment variable `{config.token_env}`", os.environ.get(config.token_env, "")
        elif config.token_file is not None:
            where = f"the file `{config.token_file}`"
            try:
                with config.token_file.open("rb") as file:
                    token = file.read(MAX_TOKEN_BYTES + 2).decode("utf-8", "replace")
            except OSError:
                token = ""
        else:
            raise _missing("what was kept")
        if not token.strip():
            raise _missing(where)
        return token.strip()


async def _requested(config: RequestConfig) -> str:
    address, bearer = (os.environ.get(name, "") for name in (config.url_env, config.bearer_env))
    if not address or not bearer:
        raise _missing(f"this environment, where `{config.url_env}` and `{config.bearer_env}` are not both set")
    try:
        url = https_url(address, config.url_env)
    except ValueError as error:
        raise FailedPrecondition(str(error), reason="OIDC_TOKEN_MISSING") from error
    context = context_of(ca_file=config.ca_file)
    client = HttpClient(
        f"https://{url.netloc}",
        source="the service that gives tokens",
        context=context,
        timeout_seconds=REQUEST_SECONDS,
        max_bytes=4 * MAX_TOKEN_BYTES,
    )
    query = f"{url.query}&" if url.query else ""
    path = f"{urlsplit(address).path or '/'}?{query}audience={percent(config.audience, safe='')}"
    try:
        answer = await client.request("GET", path, headers={"Authorization": f"Bearer {bearer}"})
    finally:
        client.close()
    return _value(answer.status, answer.body)


def _value(status: int, body: bytes) -> str:
    try:
        document = strict_json.loads(body, max_bytes=4 * MAX_TOKEN_BYTES) if status == 200 else None
    except ValueError:
        document = None
    token = document.get("value") if isinstance(document, dict) else None
    if not isinstance(token, str) or not token:
        raise FailedPrecondition(
            f"the service that gives tokens answered {status}, without a token",
            reason="OIDC_TOKEN_MISSING",
            hint="may this job ask for one? (in GitHub Actions: `permissions: id-token: write`)",
        )
    return token


def _missing(where: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"there is no OIDC token in {where}",
        reason="OIDC_TOKEN_MISSING",
        hint="let the platform put one there, made for the audience that the server wants",
    )
