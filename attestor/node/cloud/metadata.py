"""The agent's half of the clouds' attestors: asking the machine's own metadata service."""

from __future__ import annotations

from collections.abc import Mapping

from ca.errors import Unavailable
from ca.runtime.https import HttpClient

MAX_BYTES = 64 * 1024
TIMEOUT_SECONDS = 5.0
NO_SERVICE = "does this machine run there, and is its metadata service switched on?"


class MetadataService:
    """The service of one vendor at `endpoint`."""

    def __init__(self, endpoint: str, vendor: str) -> None:
        self._source = f"the metadata service of {vendor}"
        self._client = HttpClient(endpoint, source=self._source, timeout_seconds=TIMEOUT_SECONDS, max_bytes=MAX_BYTES)

    async def ask(self, path: str, headers: Mapping[str, str], *, method: str = "GET") -> bytes:
        """The body of its answer. Raises Unavailable: HTTP_UNREACHABLE, HTTP_TOO_LARGE, CLOUD_METADATA."""
        answer = await self._client.request(method, path, headers=headers)
        if answer.status != 200:
            raise Unavailable(
                f"{self._source} answered {answer.status}",
                reason="CLOUD_METADATA",
                hint=NO_SERVICE,
            )
        return answer.body

    async def text(self, path: str, headers: Mapping[str, str], *, method: str = "GET") -> str:
        body = await self.ask(path, headers, method=method)
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unavailable(f"{self._source} answered no text", reason="CLOUD_METADATA") from error
