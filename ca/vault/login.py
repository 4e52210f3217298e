"""Logs in to Vault by the configured method. Everything here blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ca.errors import BurgeeError, ConfigError, Denied, Unavailable
from ca.vault.config import VaultAuthConfig, VaultConfig
from ca.vault.errors import malformed
from ca.vault.link import Link
from ca.vault.token import Token, ttl_of

SELF = "auth/token/lookup-self"
MAX_SECRET_BYTES = 64 * 1024

_HINTS = {
    "token_file": "put a new token into the file: it is taken up at once; it needs the policy `default`, too",
    "approle": "does `role_id` exist, and does `secret_id_file` hold a secret id of it that is still valid?",
    "jwt": "compare the role's bound claims with the JWT, and its issuer's keys",
    "kubernetes": "compare the role's bound service accounts and namespaces with this pod's",
    "cert": "does a role of the method know this certificate or its authority?",
}


def log_in(config: VaultConfig, *, at: float) -> tuple[Link, Token]:
    """A link with a fresh token; files are read anew each time.

    Raises ConfigError (VAULT_FILE), Denied (VAULT_LOGIN_FAILED), Unavailable.
    """
    method = method_of(config.auth)
    try:
        if config.auth.token_file is not None:
            return _look_up(config, read_secret(config.auth.token_file), at)
        return _exchange(config, at)
    except BurgeeError as error:
        if isinstance(error, ConfigError | Unavailable):
            raise
        raise Denied(
            f"the log-in to vault by {method} is refused: {error.detail}",
            reason="VAULT_LOGIN_FAILED",
            hint=_HINTS[method],
        ) from None


def method_of(auth: VaultAuthConfig) -> str:
    """The name of the one method that is configured."""
    return next(name for name in type(auth).model_fields if getattr(auth, name) is not None)


def read_secret(path: Path) -> str:
    """A token, a secret id or a JWT from a file. Raises ConfigError (VAULT_FILE); what it holds is never repeated."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SECRET_BYTES).decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"cannot read `{path}`: {error.strerror}", reason="VAULT_FILE") from error
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or " " in text:
        raise ConfigError(f"`{path}` holds no token, secret id or JWT", reason="VAULT_FILE")
    return text


def secret_file(auth: VaultAuthConfig) -> Path | None:
    """The file whose change makes another try worth while."""
    if auth.approle is not None:
        return auth.approle.secret_id_file
    if auth.jwt is not None:
        return auth.jwt.jwt_file
    if auth.kubernetes is not None:
        return auth.kubernetes.token_file
    return auth.token_file if auth.cert is None else auth.cert.cert_file


def _look_up(config: VaultConfig, value: str, at: float) -> tuple[Link, Token]:
    """A token that somebody else made."""
    link = Link(config, token=value)
    found = link.request("read", SELF).get("data")
    if not isinstance(found, dict):
        raise malformed(SELF)
    try:
        ttl = ttl_of(found.get("ttl"))
        # A renewal brings as much as the token was made with, as far as it may.
        first = ttl_of(found.get("period")) or ttl_of(found.get("creation_ttl")) or ttl
    except ValueError:
        raise malformed(SELF) from None
    renewable = bool(found.get("renewable"))
    token = Token(value=value, ttl_seconds=ttl, first_ttl_seconds=first, renewable=renewable, ours=False, since=at)
    return link, token


def _exchange(config: VaultConfig, at: float) -> tuple[Link, Token]:
    """A credential for a token."""
    mount, credential = _credential(config.auth)
    path = f"auth/{mount}/login"
    secrets = tuple(credential[name] for name in ("secret_id", "jwt") if name in credential)
    found = Link(config, secrets=secrets).request("write", path, credential).get("auth")
    if not isinstance(found, dict) or not isinstance(found.get("client_token"), str):
        raise malformed(path)
    try:
        ttl, value = ttl_of(found.get("lease_duration")), found["client_token"]
    except ValueError:
        raise malformed(path) from None
    renewable = bool(found.get("renewable"))
    token = Token(value=value, ttl_seconds=ttl, first_ttl_seconds=ttl, renewable=renewable, ours=True, since=at)
    link = Link(config, token=value)
    try:
        link.request("read", SELF)  # how we find out later whether a token is still good
    except Denied as error:
        raise Denied(f"its token lacks the policy `default`: {error.detail}") from None
    return link, token


def _credential(auth: VaultAuthConfig) -> tuple[str, dict[str, Any]]:
    """(mount, what to send)."""
    if auth.approle is not None:
        role = auth.approle
        secret = {} if role.secret_id_file is None else {"secret_id": read_secret(role.secret_id_file)}
        return role.mount, {"role_id": role.role_id, **secret}
    if auth.jwt is not None:
        return auth.jwt.mount, {"role": auth.jwt.role, "jwt": read_secret(auth.jwt.jwt_file)}
    if auth.kubernetes is not None:
        service = auth.kubernetes
        return service.mount, {"role": service.role, "jwt": read_secret(service.token_file)}
    assert auth.cert is not None  # the model has exactly one
    return auth.cert.mount, {} if auth.cert.role is None else {"name": auth.cert.role}
