"""How to reach a Vault or an OpenBao, and how to log in: shared by every plugin that needs one.

`python -m ca.vault.config table` prints its manual.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from ca.runtime.config import StrictModel
from ca.runtime.config_reference import print_reference

KUBERNETES_TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("must be a URL such as https://vault.example.org:8200")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("must have neither user, password, query nor fragment")
    parts.port  # noqa: B018 (raises ValueError for one that is none)
    return text.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]
Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$", max_length=255)
]
"""A mount path, a namespace or a role: nothing that would be another path."""


class AppRoleConfig(StrictModel):
    """Log in by AppRole."""

    mount: Name = "approle"
    """Where the method is mounted."""

    role_id: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """The role's id; it is no secret."""

    secret_id_file: Path | None = None
    """A file with the secret id, read at each log-in; none for a role that is bound to addresses alone."""


class JwtConfig(StrictModel):
    """Log in by a JWT that a platform keeps in a file. Never by an SVID of the authority whose keys Vault holds."""

    mount: Name = "jwt"
    """Where the method is mounted."""

    role: Name
    """The role to log in as."""

    jwt_file: Path
    """A file with the JWT, read at each log-in."""


class KubernetesConfig(StrictModel):
    """Log in by a Kubernetes service account."""

    mount: Name = "kubernetes"
    """Where the method is mounted."""

    role: Name
    """The role to log in as."""

    token_file: Path = KUBERNETES_TOKEN_FILE
    """The service account's token, read at each log-in."""


class CertConfig(StrictModel):
    """Log in by a TLS client certificate. Never by an SVID of the authority whose keys Vault holds."""

    mount: Name = "cert"
    """Where the method is mounted."""

    role: Name | None = None
    """The role to log in as; without, whichever fits."""

    cert_file: Path
    """Certificate and chain, PEM; read at each log-in."""

    key_file: Path
    """Its private key, PEM, not encrypted."""


class VaultAuthConfig(StrictModel):
    """How to log in: exactly one of these."""

    token_file: Path | None = None
    """A file with a token that somebody else keeps valid; it is read again when it changes."""

    approle: AppRoleConfig | None = None
    """AppRole."""

    jwt: JwtConfig | None = None
    """A JWT."""

    kubernetes: KubernetesConfig | None = None
    """A Kubernetes service account."""

    cert: CertConfig | None = None
    """A TLS client certificate."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("must have exactly one of token_file, approle, jwt, kubernetes, cert")
        return self


class VaultConfig(StrictModel):
    """A Vault or OpenBao server and how to log in there. The environment (VAULT_ADDR and the like) changes nothing."""

    address: Address
    """Its URL."""

    ca_file: Path | None = None
    """Authorities (PEM) that its TLS certificate is verified with; none else is believed. Needed with https."""

    allow_plain_http: bool = False
    """Go without TLS to an address that is not this machine's own: whoever is on the way then reads the token."""

    namespace: Name | None = None
    """The namespace for everything, log-in included."""

    auth: VaultAuthConfig
    """How to log in."""

    timeout_seconds: Annotated[float, Field(ge=0.1, le=60)] = 5.0
    """For a connection, and for each answer; what takes longer counts as an outage."""

    @model_validator(mode="after")
    def _transport(self) -> Self:
        parts = urlsplit(self.address)
        if parts.scheme == "https":
            if self.ca_file is None:
                raise ValueError(
                    "ca_file is missing: it says whose certificates are believed "
                    "(the Web's are in /etc/ssl/certs/ca-certificates.crt on most systems)"
                )
        elif not (self.allow_plain_http or _is_loopback(parts.hostname or "")):
            raise ValueError("address is without TLS and not on this machine: use https, or set allow_plain_http")
        elif self.auth.cert is not None:
            raise ValueError("auth.cert needs an https address")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(print_reference(VaultConfig, "Connection to Vault", sys.argv[1:]))
