"""Asks a node's kubelet for its pods, as the service account that the agent runs as.

The kubelet lets in whoever may `get` the resource `nodes/pods` (fine-grained kubelet authorization); `nodes/proxy`,
with which anybody can run commands in every pod, is not needed.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from ca.errors import BurgeeError, ConfigError, Unavailable
from ca.runtime.https import HttpClient, context_of
from ca.runtime.threads import to_thread

PATH = "/pods"
MAX_TOKEN_BYTES = 64 * 1024
MAX_PEM_BYTES = 1 << 20
SOURCE = "the kubelet"

Signature = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True, kw_only=True)
class KubeletFiles:
    """Paths; all are read again when they change, the token before every request."""

    ca_file: Path | None
    token_file: Path | None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None

    def signature(self) -> Signature:
        """Differs when one of the certificates' files is another one than before."""
        return tuple(_signature(path) for path in (self.ca_file, self.client_cert_file, self.client_key_file))


class Kubelet:
    """One kubelet at `url`. `insecure` believes whoever answers there."""

    def __init__(
        self, url: str, files: KubeletFiles, *, insecure: bool, timeout_seconds: float, max_bytes: int
    ) -> None:
        self._url = url
        self._files = files
        self._insecure = insecure
        self._timeout = timeout_seconds
        self._max_bytes = max_bytes
        self._client: tuple[Signature, HttpClient] | None = None

    async def pods(self) -> bytes:
        """The body of its answer. Raises Unavailable: KUBELET_FILES, KUBELET_UNREACHABLE,
        KUBELET_UNTRUSTED, KUBELET_UNAUTHENTICATED, KUBELET_FORBIDDEN, KUBELET_ANSWER."""
        client, headers = await to_thread(self._prepare)
        try:
            answer = await client.request("GET", PATH, headers=headers)
        except Unavailable as error:
            raise _unreachable(error) from error
        if answer.status != 200:
            raise _refused(answer.status)
        return answer.body

    def close(self) -> None:
        """Lets go of its connections."""
        if self._client is not None:
            self._client[1].close()
            self._client = None

    def _prepare(self) -> tuple[HttpClient, dict[str, str]]:
        """Blocks: reads files."""
        try:
            return self._current(), self._headers()
        except (OSError, ValueError, ConfigError) as error:
            why = error.detail if isinstance(error, BurgeeError) else str(error)
            raise Unavailable(f"cannot ask the kubelet: {why}", reason="KUBELET_FILES") from error

    def _current(self) -> HttpClient:
        signature = self._files.signature()
        if self._client is None or self._client[0] != signature:
            self.close()
            self._client = (signature, self._new())
        return self._client[1]

    def _new(self) -> HttpClient:
        files = self._files
        context = context_of(
            ca_file=files.ca_file,
            insecure=self._insecure,
            client_cert=_pem(files.client_cert_file),
            client_key=_pem(files.client_key_file),
        )
        return HttpClient(
            self._url, source=SOURCE, context=context, timeout_seconds=self._timeout, max_bytes=self._max_bytes
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self._files.token_file is not None:
            headers["Authorization"] = f"Bearer {_token(self._files.token_file)}"
        return headers


def _token(path: Path) -> str:
    token = _read(path, MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError(f"`{path}` has no token in it")
    return token


def _pem(path: Path | None) -> str | None:
    return None if path is None else _read(path, MAX_PEM_BYTES).decode("ascii")


def _read(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"`{path}` has more than {max_bytes} bytes")
    return content


def _signature(path: Path | None) -> tuple[int, int, int, int] | None:
    if path is None:
        return None
    file = os.stat(path)  # through the symbolic links of a projected volume
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


def _unreachable(error: Unavailable) -> Unavailable:
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return Unavailable(
            f"the kubelet's certificate does not prove it: {error.__cause__.verify_message}",
            reason="KUBELET_UNTRUSTED",
            hint="`kubelet_ca_file` must hold who signed it, and `kubelet_address` be a name or address in it",
        )
    reason = "KUBELET_ANSWER" if error.reason == "HTTP_TOO_LARGE" else "KUBELET_UNREACHABLE"
    return Unavailable(error.detail, reason=reason)


def _refused(status: int) -> Unavailable:
    if status == 401:
        return Unavailable(
            "the kubelet does not accept the agent's token",
            reason="KUBELET_UNAUTHENTICATED",
            hint="is `token_file` a live service account token for the API server's audience?",
        )
    if status == 403:
        return Unavailable(
            "the agent's service account may not see the kubelet's pods",
            reason="KUBELET_FORBIDDEN",
            hint="grant it `get` on `nodes/pods` by a ClusterRole",
        )
    return Unavailable(f"the kubelet answered with status {status}", reason="KUBELET_ANSWER")
