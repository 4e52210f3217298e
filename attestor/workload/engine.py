"""One container engine behind its Unix socket, Docker's or podman's: what it says of a container.

Both answer the Engine API, `GET /containers/{id}/json`. Answers are bounded in time and size, and read strictly.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ca.errors import Unavailable
from ca.runtime.http_answer import Answer
from ca.runtime.https import HttpClient

MAX_ANSWER_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")  # ucred: pid, uid, gid


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What selectors are made from. `image` is the name it was started by, `image_digest` what it runs."""

    running: bool
    image: str
    image_digest: str
    labels: Mapping[str, str]
    env: tuple[str, ...]


class Engine:
    """`owner_uid` is who must be listening; None where the path alone decides, as only root can make it."""

    def __init__(self, path: Path, *, timeout_seconds: float, owner_uid: int | None = None) -> None:
        self.path = path
        self._http = HttpClient(
            "http://engine",
            source=f"the container engine at {path}",
            timeout_seconds=timeout_seconds,
            max_bytes=MAX_ANSWER_BYTES,
            connect=partial(_connect, path, owner_uid),
        )

    async def inspect(self, container_id: str) -> Inspected | None:
        """None where the engine knows no such container. Raises Unavailable: ENGINE_MISSING, where nobody listens,
        ENGINE_ANSWER and those of the HTTP client."""
        answer = await self._request(f"/containers/{container_id}/json")
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise Unavailable(
                f"the container engine at {self.path} answers with status {answer.status}", reason="ENGINE_ANSWER"
            )
        try:
            return read_inspect(answer.body, container_id)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unavailable(
                f"the container engine at {self.path} answers with something else than a container",
                reason="ENGINE_ANSWER",
            ) from error

    async def ping(self) -> None:
        """Raises Unavailable as `inspect` does; and with a way out where this user may not ask."""
        try:
            answer = await self._request("/_ping")
        except Unavailable as error:
            if not error.hint:
                error.hint = "may the agent's user open that socket (it belongs to a group), and does the engine run?"
            raise
        if answer.status != 200:
            raise Unavailable(
                f"the container engine at {self.path} answers with status {answer.status}",
                reason="ENGINE_ANSWER",
                hint="its own log says why",
            )

    async def _request(self, path: str) -> Answer:
        try:
            return await self._http.request("GET", path)
        except Unavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise Unavailable(
                    f"no container engine listens at {self.path}",
                    reason="ENGINE_MISSING",
                    hint="correct the paths in `workload_attestors.docker`, or leave that attestor out",
                ) from error
            raise

    def close(self) -> None:
        """Lets go of kept connections."""
        self._http.close()


def read_inspect(body: bytes, container_id: str) -> Inspected:
    """From the answer's JSON. Raises ValueError, KeyError or TypeError for anything but this container."""
    document = json.loads(body)
    if document["Id"] != container_id:
        raise ValueError("this is another container")
    config = _mapping(document["Config"])
    return Inspected(
        running=_mapping(document["State"])["Running"] is True,
        image=_text(config.get("Image") or ""),
        image_digest=_text(document.get("Image") or ""),
        labels={_text(key): _text(value) for key, value in _mapping(config.get("Labels") or {}).items()},
        env=tuple(_text(line) for line in _list(config.get("Env") or [])),
    )


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no mapping")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise TypeError("no text")
    return value


def _connect(path: Path, owner_uid: int | None, timeout_seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect(str(path))
        if owner_uid is not None:
            _require_owner(connection, owner_uid)
    except BaseException:
        connection.close()
        raise
    return connection


def _require_owner(connection: socket.socket, uid: int) -> None:
    """Who owns the directory may have put a link to anybody's socket there: root is not to be made to knock at it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, listening, _ = _CREDENTIALS.unpack(credentials)
    if listening != uid:
        raise PermissionError(f"user {listening} listens there, not {uid}")
