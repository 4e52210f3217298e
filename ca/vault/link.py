"""Requests to one Vault with one token, through hvac. Everything here blocks."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Literal

import hvac.adapters
import hvac.exceptions
import requests
from requests import exceptions as http
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError

from ca.errors import ConfigError, Unavailable
from ca.vault.config import VaultConfig
from ca.vault.errors import malformed, redirected, translate

MAX_ANSWER_BYTES = 8 << 20

REDIRECTS = (301, 302, 303, 307, 308)

Action = Literal["read", "list", "write", "delete"]


class Link:
    """Connections to the configured address with a token, or without one to log in. Fit for several threads.

    Nothing of the environment counts: neither `VAULT_*` nor proxies nor other authorities for TLS. No redirect is
    followed, so that a token goes nowhere else. Raises ConfigError (VAULT_FILE) where TLS files cannot be used.
    """

    def __init__(self, config: VaultConfig, *, token: str = "", secrets: tuple[str, ...] = ()) -> None:
        self._address = config.address
        self._timeout_seconds = config.timeout_seconds
        self._secrets = tuple(secret for secret in (token, *secrets) if secret)
        session = _Session()
        session.trust_env = False
        session.verify, session.cert = _tls_files(config)
        adapter = hvac.adapters.JSONAdapter(
            base_uri=config.address,
            token=token,
            cert=session.cert,
            verify=session.verify,
            timeout=config.timeout_seconds,
            allow_redirects=False,
            session=session,
            namespace=config.namespace,
        )
        # The client fills what it is not given from the environment; it gets an adapter that was given everything.
        self._client = hvac.Client(url=config.address, token=token, verify=True, adapter=lambda **_: adapter)

    def request(
        self,
        action: Action,
        path: str,
        data: Mapping[str, Any] | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """The whole answer; empty where Vault has nothing to say. Raises what `translate` makes.

        `timeout_seconds` is for an answer that takes its time, instead of the configured one.
        """
        options = {} if timeout_seconds is None else {"timeout": (self._timeout_seconds, timeout_seconds)}
        try:
            try:
                answer = self._send(action, path, data, options)
            except http.ConnectionError as error:
                if not _was_idle(error):
                    raise
                answer = self._send(action, path, data, options)  # all that we ask for may be asked twice
        except (hvac.exceptions.VaultError, OSError, ValueError) as error:
            raise translate(error, address=self._address, action=action, path=path, secrets=self._secrets) from None
        if isinstance(answer, dict):
            return answer
        if not isinstance(answer, requests.Response) or answer.status_code not in (204, *REDIRECTS):
            raise malformed(path)
        if answer.status_code != 204:
            raise redirected(path, answer.headers.get("location", ""))
        return {}

    def close(self) -> None:
        """What is under way goes on; idle connections end."""
        self._client.adapter.close()

    def _send(
        self, action: Action, path: str, data: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> dict[str, Any] | requests.Response:
        adapter, url = self._client.adapter, f"/v1/{path}"
        match action:
            case "read":
                return adapter.get(url, **options)  # type: ignore[no-any-return]
            case "list":
                return adapter.get(url, params={"list": "true"}, **options)  # type: ignore[no-any-return]
            case "write":
                return adapter.post(url, json=dict(data or {}), **options)  # type: ignore[no-any-return]
            case "delete":
                return adapter.delete(url, **options)  # type: ignore[no-any-return]


class _Session(requests.Session):
    """Reads no more of an answer than could be meant."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        response = super().send(request, **{**options, "stream": True})
        try:
            body = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=True)
        except ReadTimeoutError as error:
            raise http.ReadTimeout(error, request=request) from error
        except HTTPError as error:
            raise http.ConnectionError(error, request=request) from error
        if len(body) > MAX_ANSWER_BYTES:
            response.close()
            raise Unavailable("vault's answer is too large", reason="VAULT_ANSWER")
        response.raw.release_conn()
        response._content = body
        return response


def _was_idle(error: http.ConnectionError) -> bool:
    """Whether the other side closed a connection that was kept for the next request."""
    cause = error.args[0] if error.args else None
    return isinstance(cause, ProtocolError)


def _tls_files(config: VaultConfig) -> tuple[bool | str, tuple[str, str] | None]:
    """What requests calls `verify` and `cert`, after a look at the files: its own words about them help nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    cert = config.auth.cert
    try:
        if config.ca_file is not None:
            context.load_verify_locations(config.ca_file)
        if cert is not None:
            context.load_cert_chain(cert.cert_file, cert.key_file, password=lambda: "")
    except (OSError, ValueError) as error:
        names = [config.ca_file] if cert is None else [config.ca_file, cert.cert_file, cert.key_file]
        files = ", ".join(f"`{name}`" for name in names if name is not None)
        why = error.strerror if isinstance(error, OSError) and error.strerror else "not PEM"
        raise ConfigError(f"cannot use {files} for TLS to vault: {why}", reason="VAULT_FILE") from error
    verify = True if config.ca_file is None else str(config.ca_file)
    return verify, None if cert is None else (str(cert.cert_file), str(cert.key_file))
