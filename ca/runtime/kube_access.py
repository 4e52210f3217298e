"""Where a Kubernetes API server is and who we are to it: from a kubeconfig, or from inside of a pod."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from ca.errors import ConfigError
from ca.identity.text import quote

MAX_FILE_BYTES = 1 << 20
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_UNDERSTOOD = {
    "cluster": {"server", "certificate-authority", "certificate-authority-data"},
    "user": {
        "client-certificate",
        "client-certificate-data",
        "client-key",
        "client-key-data",
        "token",
        "tokenFile",
    },
}
_HARMLESS = {"extensions", "disable-compression"}
_REFUSED = {
    "exec": "programs are not run for credentials: name a token file or a client certificate",
    "auth-provider": "name a token file or a client certificate",
    "insecure-skip-tls-verify": "whoever stands between could answer for the API server: name its CA",
}


@dataclass(frozen=True, kw_only=True)
class KubeAccess:
    """`*_file` are read anew when they change, the token's at each request; the others are PEM texts and the token.

    Without a CA the system's roots are believed. `insecure` verifies nothing: no kubeconfig can ask for that.
    """

    server: str
    ca_file: Path | None = None
    ca_pem: str | None = None
    token_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    client_cert_file: Path | None = None
    client_cert_pem: str | None = None
    client_key_file: Path | None = None
    client_key_pem: str | None = field(default=None, repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        if urlsplit(self.server).scheme != "https":
            raise _wrong(f"the API server's address {quote(self.server)} does not begin with https://")
        has_cert = self.client_cert_file is not None or self.client_cert_pem is not None
        has_key = self.client_key_file is not None or self.client_key_pem is not None
        if has_cert != has_key:
            raise _wrong("a client certificate and its key come together")

    @property
    def files(self) -> tuple[Path, ...]:
        """What TLS is made of, where it is in files."""
        return tuple(path for path in (self.ca_file, self.client_cert_file, self.client_key_file) if path is not None)


def read_kubeconfig(path: Path) -> KubeAccess:
    """The current context of a kubeconfig. Raises ConfigError KUBE_CONFIG for what it lacks or we do not do."""
    document = _load(path)
    current = document.get("current-context")
    if not isinstance(current, str) or not current:
        raise _wrong(f"`{path}` has no current-context")
    context = _named(path, document, "context", current)
    cluster = _named(path, document, "cluster", _text(path, context, "cluster") or "")
    user_name = _text(path, context, "user")
    user = _named(path, document, "user", user_name) if user_name else {}
    _refuse_others(path, "cluster", cluster)
    _refuse_others(path, "user", user)
    return KubeAccess(
        server=_text(path, cluster, "server") or "",
        ca_file=_file(path, cluster, "certificate-authority"),
        ca_pem=_data(path, cluster, "certificate-authority-data"),
        token_file=_file(path, user, "tokenFile"),
        token=_text(path, user, "token"),
        client_cert_file=_file(path, user, "client-certificate"),
        client_cert_pem=_data(path, user, "client-certificate-data"),
        client_key_file=_file(path, user, "client-key"),
        client_key_pem=_data(path, user, "client-key-data"),
    )


def in_cluster_access(directory: Path = SERVICE_ACCOUNT) -> KubeAccess:
    """The API server of the cluster in whose pod this runs, as the pod's service account. Raises ConfigError."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdecimal():
        raise ConfigError(
            "this is not inside of a Kubernetes pod: KUBERNETES_SERVICE_HOST is not set",
            reason="KUBE_CONFIG",
            hint="name a kubeconfig",
        )
    address = f"[{host}]" if ":" in host else host
    access = KubeAccess(
        server=f"https://{address}:{port}", ca_file=directory / "ca.crt", token_file=directory / "token"
    )
    for file in (directory / "ca.crt", directory / "token"):
        if not file.is_file():
            raise _wrong(f"this pod has no service account token: there is no `{file}`")
    return access


def _load(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _wrong(f"cannot read `{path}`: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise _wrong(f"`{path}` is larger than {MAX_FILE_BYTES} bytes")
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _wrong(f"`{path}` is no YAML") from error  # whose error would show what stands there, keys included
    if not isinstance(document, dict):
        raise _wrong(f"`{path}` is no kubeconfig")
    return document


def _named(path: Path, document: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    """The value of `kind` in the item of `<kind>s` that has this name."""
    items = document.get(f"{kind}s")
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict) and item.get("name") == name:
            value = item.get(kind)
            return value if isinstance(value, dict) else {}
    raise _wrong(f"`{path}` has no {kind} {quote(name)}")


def _refuse_others(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """What we leave out could change who is asked, or as whom: it is not skipped in silence."""
    for key, value in values.items():
        if key in _UNDERSTOOD[kind] | _HARMLESS or value in (None, False, ""):
            continue
        raise ConfigError(
            f"`{path}`: {quote(str(key))} of a {kind} is not supported",
            reason="KUBE_CONFIG",
            hint=_REFUSED.get(str(key), "only server, CA, token and client certificate are"),
        )


def _text(path: Path, values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong(f"`{path}`: `{key}` is not text")
    return value


def _file(path: Path, values: Mapping[str, Any], key: str) -> Path | None:
    """As kubectl has it: beside the kubeconfig where it is relative, and without effect beside its `-data`."""
    name = _text(path, values, key)
    return None if name is None or values.get(f"{key}-data") else path.parent / name


def _data(path: Path, values: Mapping[str, Any], key: str) -> str | None:
    text = _text(path, values, key)
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise _wrong(f"`{path}`: `{key}` is not base64 of PEM") from error


def _wrong(detail: str) -> ConfigError:
    return ConfigError(detail, reason="KUBE_CONFIG")
