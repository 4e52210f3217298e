"""A tiny HTTP/1.1 endpoint for /metrics, /live and /ready; it answers GET and HEAD, once per connection."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from ca.errors import ConfigError, FailedPrecondition
from ca.runtime import log
from ca.runtime.health import Health
from ca.runtime.metrics import CONTENT_TYPE, REGISTRY, exposition

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MAX_HEAD_BYTES = 8 << 10
MAX_CONNECTIONS = 64
REQUEST_TIMEOUT_SECONDS = 5.0
_JSON = "application/json"
_log = log.get("status")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = _JSON


class StatusServer:
    """What `serve_metrics_and_health` started; `host` and `port` are those that were bound."""

    def __init__(self, registry: CollectorRegistry, health: Health) -> None:
        self.host = ""
        self.port = 0
        self._registry = registry
        self._health = health
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises FailedPrecondition (ADDRESS_IN_USE)."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot serve metrics on {host}:{port}: {error.strerror}",
                reason="ADDRESS_IN_USE",
                hint="choose another `metrics_address`",
            ) from error
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        """Stop listening and end what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._open) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._open.add(task)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                await self._exchange(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # a client that is slow or gone is owed no answer
        finally:
            self._open.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            answer, with_body = _problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), True
        else:
            method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
            target, _, version = rest.partition(b" ")
            answer, with_body = self._answer(method, target, version), method != b"HEAD"
        writer.write(_serialize(answer, with_body=with_body))
        await writer.drain()

    def _answer(self, method: bytes, target: bytes, version: bytes) -> _Answer:
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            return _problem(HTTPStatus.BAD_REQUEST)
        if method not in (b"GET", b"HEAD"):
            return _problem(HTTPStatus.METHOD_NOT_ALLOWED)
        match target.split(b"?", 1)[0]:
            case b"/metrics":
                return _Answer(HTTPStatus.OK, exposition(self._registry), CONTENT_TYPE)
            case b"/live":
                return self._report(live_only=True)
            case b"/ready":
                return self._report(live_only=False)
        return _problem(HTTPStatus.NOT_FOUND)

    def _report(self, *, live_only: bool) -> _Answer:
        healthy, body = self._health.report(live_only=live_only)
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return _Answer(status, json.dumps(body).encode() + b"\n")


async def serve_metrics_and_health(
    address: str, health: Health, registry: CollectorRegistry = REGISTRY
) -> StatusServer:
    """Serve on `host:port` (port 0 takes a free one), without authentication: keep it on loopback or firewalled.

    /metrics is Prometheus' text format; /live and /ready answer 200 or 503 with the problems as JSON.
    Raises ConfigError, FailedPrecondition.
    """
    server = StatusServer(registry, health)
    await server.start(*host_and_port(address))
    _log.info("serving metrics and health", address=f"{server.host}:{server.port}")
    return server


def host_and_port(address: str) -> tuple[str, int]:
    """`host:port` or `[ipv6]:port` → (host, port); port 0 is one. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"`{address}` is not host:port")
    return host.strip("[]"), int(port)


def _problem(status: HTTPStatus) -> _Answer:
    return _Answer(status, json.dumps({"status": status.value, "title": status.phrase}).encode() + b"\n")


def _serialize(answer: _Answer, *, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (answer.body if with_body else b"")
