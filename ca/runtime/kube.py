"""A small client of the Kubernetes API: objects in, objects out, and an error that says which permission is missing.

Files of credentials may change at any time: the token is read at each request, certificates when their files change.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from ca.errors import AlreadyExists, ConfigError, Denied, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from ca.identity.text import quote
from ca.runtime.http_answer import Answer
from ca.runtime.http_stream import stream
from ca.runtime.https import HttpClient, context_of
from ca.runtime.https_loop import LoopHttpClient
from ca.runtime.kube_access import KubeAccess, in_cluster_access, read_kubeconfig
from ca.runtime.kube_watch import (
    IDLE_SECONDS,
    METADATA,
    METADATA_LIST,
    PAGE_SIZE,
    WATCH_SECONDS,
    WHOLE,
    Event,
    Listing,
    Object,
    event_of,
    status_answer,
    watch_path,
    whole_list,
)

MAX_TOKEN_BYTES = 64 << 10
MAX_AT_ONCE = 16
"""Requests of one client at a time; the others wait for their turn. So many connections are kept: a new one costs more
than a request."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_VERBS = {"POST": "create", "DELETE": "delete", "PUT": "update", "PATCH": "patch", "WATCH": "watch"}
PatchKind = Literal["merge", "json", "apply"]
_PATCHES: dict[PatchKind, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",  # of which JSON is a part
}
_Stamp = tuple[tuple[int, int, int] | None, ...]


def object_path(prefix: str, *parts: str) -> str:
    """`/api/v1` and names as one path. Raises InvalidArgument KUBE_NAME for what would lead elsewhere."""
    for part in parts:
        if _NAME.fullmatch(part) is None:
            raise InvalidArgument(f"{quote(part)} is no name of a Kubernetes object", reason="KUBE_NAME")
    return "/".join((prefix, *parts))


class KubeClient:
    """One API server (or a kubelet, which speaks alike). `source` names it in errors.

    Raises ConfigError at once where what `access` names cannot be used; later, what was read last stays in use.
    """

    def __init__(
        self,
        access: KubeAccess | Callable[[], KubeAccess],
        *,
        source: str,
        watched: tuple[Path, ...] = (),
        timeout_seconds: float = 10.0,
        max_bytes: int = 8 << 20,
    ) -> None:
        self._read = access if callable(access) else lambda: access
        self._source = source
        self._max_bytes = max_bytes
        self._watched = watched
        self._new_http = partial(
            LoopHttpClient, source=source, timeout_seconds=timeout_seconds, max_bytes=max_bytes, max_idle=MAX_AT_ONCE
        )
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)
        self._load()

    @classmethod
    def from_kubeconfig(cls, path: Path, *, source: str = "the Kubernetes API", **options: Any) -> Self:
        """As the current context of a kubeconfig has it; the file is read again when it changes."""
        return cls(partial(read_kubeconfig, path), source=source, watched=(path,), **options)

    @classmethod
    def in_cluster(cls, *, source: str = "the Kubernetes API", **options: Any) -> Self:
        """The API server of the pod in which this runs, as its service account."""
        return cls(in_cluster_access, source=source, **options)

    async def get(self, path: str) -> Object:
        """An object, or a list of them. Raises NotFound, Denied (KUBE_UNAUTHENTICATED, KUBE_FORBIDDEN), Unavailable."""
        return await self.request("GET", path)

    async def create(self, path: str, body: Mapping[str, Any]) -> Object:
        """Posts an object and gives what the API server made of it. Raises as `get`.

        Where a kept connection breaks it is sent again: create what may be created twice, or has a name.
        """
        return await self.request("POST", path, body)

    async def update(self, path: str, body: Mapping[str, Any]) -> Object:
        """Puts an object in place of the one there, or `…/status` in place of its status.

        With `metadata.resourceVersion`: unless it changed meanwhile. Raises as `get`, and FailedPrecondition
        KUBE_CONFLICT.
        """
        return await self.request("PUT", path, body)

    async def patch(
        self, path: str, body: Mapping[str, Any] | Sequence[Mapping[str, Any]], kind: PatchKind = "merge"
    ) -> Object:
        """Changes what `body` names; `json` takes a list of operations, `apply` a whole object of ours, made if absent.

        For `apply` the path says who (`?fieldManager=…`), and `&force=true` takes fields from others.
        """
        return await self.request("PATCH", path, body, content_type=_PATCHES[kind])

    async def delete(self, path: str, body: Mapping[str, Any] | None = None) -> Object:
        """`body` may be DeleteOptions, with preconditions. Raises as `get`."""
        return await self.request("DELETE", path, body)

    async def list(self, path: str, *, metadata_only: bool = False, page_size: int = PAGE_SIZE) -> Listing:
        """All of it or an error, however many pages it takes. `path` may have a query (`?labelSelector=…`)."""
        accept = METADATA_LIST if metadata_only else WHOLE
        return await whole_list(lambda asked: self.request("GET", asked, accept=accept), path, page_size)

    async def watch(
        self,
        path: str,
        resource_version: str,
        *,
        metadata_only: bool = False,
        seconds: int = WATCH_SECONDS,
        opened: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[Event, None]:
        """What changes from `resource_version` on, until the API server ends it (after `seconds`): ask again then.

        `opened` is called when it is accepted. A BOOKMARK says only how far this is. Close it if you leave it early.
        Raises NotFound KUBE_GONE where that version is too old (list again), Unavailable HTTP_UNREACHABLE where the
        connection breaks, else as `get`.
        """
        http = self._current()
        asked = watch_path(path, resource_version, seconds)
        headers = self._headers(METADATA if metadata_only else WHOLE)
        async with stream(http.origin(idle_seconds=IDLE_SECONDS), "GET", http.prefix + asked, headers) as answer:
            if answer.status != 200:
                self._refused("WATCH", path, Answer(answer.status, answer.headers, await answer.start()))
            opened()
            async for line in answer.lines(self._max_bytes):
                event = event_of(self._object(line))
                if event.type == "ERROR":
                    self._refused("WATCH", path, status_answer(event.object))
                yield event

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        content_type: str = WHOLE,
        accept: str = WHOLE,
    ) -> Object:
        """One request whose answer is an object."""
        http = self._current()
        headers = self._headers(accept)
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        async with self._turns:
            answer = await http.request(method, path, body=data, headers=headers)
        if not 200 <= answer.status < 300:
            self._refused(method, path, answer)
        return self._object(answer.body)

    def _headers(self, accept: str) -> dict[str, str]:
        return {"Accept": accept, "User-Agent": "burgee"} | self._authorization()

    def close(self) -> None:
        """Lets go of the connections that are kept."""
        self._http.close()

    def _load(self) -> None:
        watched = self._stamp(self._watched)
        access = self._read()
        files = self._stamp(access.files)
        context = context_of(
            ca_file=access.ca_file,
            ca_data=access.ca_pem,
            insecure=access.insecure,
            client_cert=_text_of(access.client_cert_file) or access.client_cert_pem,
            client_key=_text_of(access.client_key_file) or access.client_key_pem,
        )
        self._http = self._new_http(access.server, context=context)
        self._access, self._stamps = access, (watched, files)

    def _current(self) -> HttpClient:
        """The client for the files as they are now; the one before where they cannot be used (half written, say)."""
        if self._stamps != (self._stamp(self._watched), self._stamp(self._access.files)):
            before = self._http
            try:
                self._load()
                before.close()
            except ConfigError:
                pass  # the stamps are the old ones: the next request tries again
        return self._http

    @staticmethod
    def _stamp(paths: tuple[Path, ...]) -> _Stamp:
        return tuple(_state(path) for path in paths)

    def _authorization(self) -> dict[str, str]:
        token = self._access.token
        if self._access.token_file is not None:
            try:
                with self._access.token_file.open("rb") as file:
                    token = file.read(MAX_TOKEN_BYTES + 1).decode("latin-1").strip()
            except OSError as error:
                raise self._no_token(f"cannot be read: {error.strerror}") from error
        if token is None:
            return {}
        if _TOKEN.fullmatch(token) is None or len(token) > MAX_TOKEN_BYTES:
            raise self._no_token("holds no token")
        return {"Authorization": f"Bearer {token}"}

    def _no_token(self, why: str) -> Unavailable:
        where = f"`{self._access.token_file}`" if self._access.token_file else "the configuration"
        return Unavailable(f"cannot ask {self._source}: {where} {why}", reason="KUBE_CREDENTIALS")

    def _refused(self, method: str, path: str, answer: Answer) -> NoReturn:
        said = RuntimeError(f"status {answer.status}: {_message(answer.body)}")  # for the log: it may name users
        match answer.status:
            case 401:
                raise Denied(
                    f"{self._source} does not know us: our token or certificate is not accepted",
                    reason="KUBE_UNAUTHENTICATED",
                ) from said
            case 403:
                raise Denied(
                    f"{self._source} does not permit us to {permission(method, path)}",
                    reason="KUBE_FORBIDDEN",
                    hint="grant it by RBAC",
                ) from said
            case 404:
                raise NotFound(f"{self._source} has no {quote(path)}", reason="KUBE_NOT_FOUND") from said
            case 409 if method == "POST":
                raise AlreadyExists(
                    f"{self._source} has one of that name in {quote(path)}", reason="KUBE_EXISTS"
                ) from said
            case 409:
                raise FailedPrecondition(
                    f"{quote(path)} at {self._source} changed meanwhile", reason="KUBE_CONFLICT"
                ) from said
            case 410:
                raise NotFound(
                    f"{self._source} no longer has that version of {quote(path)}", reason="KUBE_GONE"
                ) from said
            case 400 | 422:
                raise InvalidArgument(
                    f"{self._source} takes no such object for {quote(path)}: {_message(answer.body)}",
                    reason="KUBE_INVALID",
                ) from said
            case _:
                raise Unavailable(
                    f"{self._source} answered with status {answer.status}",
                    reason="KUBE_STATUS",
                    retry_after_seconds=_retry_after(answer),
                ) from said

    def _object(self, body: bytes) -> Object:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Unavailable(f"{self._source} answered with what is no JSON", reason="KUBE_ANSWER") from error
        if not isinstance(value, dict):
            raise Unavailable(f"{self._source} answered with what is no object", reason="KUBE_ANSWER")
        return value


def permission(method: str, path: str) -> str:
    """A request in the words of RBAC: `get pods in namespace a`, `create tokenreviews.authentication.k8s.io`."""
    parts = path.partition("?")[0].strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, rest = "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, rest = f".{parts[1]}", parts[3:]
    else:
        return f"{method} {quote(path)}"
    where = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        where, rest = f" in namespace {quote(rest[1])}", rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    verb = _VERBS.get(method, "get" if len(rest) > 1 else "list")
    return f"{verb} {quote(resource + group)}{where}"


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _text_of(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read `{path}`", reason="TLS_FILES") from error


def _message(body: bytes) -> str:
    """What the API server says about a refusal, in its Status object or as it stands."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    text = value.get("message") if isinstance(value, dict) else None
    return quote(text if isinstance(text, str) else body[:512].decode("utf-8", "replace"))


def _retry_after(answer: Answer) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() and len(text) < 6 else None
