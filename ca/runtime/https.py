"""Requests to one HTTP origin that an administrator named: bounded in time and size, and never led elsewhere.

No redirect is followed and no proxy of the environment used. Connections are kept between requests.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from ca.errors import ConfigError, Unavailable
from ca.identity.text import printable
from ca.runtime.http_answer import Answer
from ca.runtime.http_bounds import BoundedResponse
from ca.runtime.http_stream import Origin
from ca.runtime.threads import to_thread
from ca.runtime.tls import load_chain

MAX_SAID_CHARACTERS = 300
MAX_IDLE = 4
"""Connections kept for the next requests, unless told otherwise."""

Connect = Callable[[float], socket.socket]
"""Opens the connection by other means than its name; given the seconds it may take."""


class HttpClient:
    """`url` is `http://` or `https://` with a host; its path is put before each request's.

    `source` names the origin in errors. `connect` opens connections for a client that must not resolve the name again.
    """

    def __init__(
        self,
        url: str,
        *,
        source: str,
        context: ssl.SSLContext | None = None,
        timeout_seconds: float = 10.0,
        max_bytes: int = 1 << 20,
        max_idle: int = MAX_IDLE,
        connect: Connect | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(f"`{url}` is no http or https address", reason="URL")
        self._host, self._tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._context = (context or ssl.create_default_context()) if self._tls else None
        self._source = source
        self._timeout = timeout_seconds
        self._max_bytes = max_bytes
        self._max_idle = max_idle
        self._connect = connect
        self._idle: list[http.client.HTTPConnection] = []

    async def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Whatever status it has. A kept connection that breaks is replaced once, so ask for nothing that must not
        happen twice. Raises Unavailable: HTTP_UNREACHABLE, HTTP_TOO_LARGE."""
        used: list[http.client.HTTPConnection] = []
        try:
            async with asyncio.timeout(self._timeout):
                return await to_thread(self._ask, used, method, self._prefix + path, body, dict(headers or {}))
        except (OSError, http.client.HTTPException, TimeoutError) as error:
            raise Unavailable(f"cannot ask {self._source}: {why(error)}", reason="HTTP_UNREACHABLE") from error
        finally:
            for connection in used:  # given up: one that drips its answer must not keep its thread
                with suppress(OSError, AttributeError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def origin(self, *, idle_seconds: float) -> Origin:
        """Where `ca.runtime.http_stream` finds the same origin; paths below it begin with `prefix`."""
        return Origin(
            host=self._host,
            port=self._port,
            context=self._context,
            source=self._source,
            connect_seconds=self._timeout,
            idle_seconds=idle_seconds,
        )

    @property
    def prefix(self) -> str:
        return self._prefix

    def close(self) -> None:
        """Lets go of the connections that are kept."""
        while self._idle:
            self._idle.pop().close()

    def _ask(
        self,
        used: list[http.client.HTTPConnection],
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
    ) -> Answer:
        """Blocks. One that was kept may have been closed by the other side meanwhile: then once more on a new one."""
        while self._idle:
            used.append(self._idle.pop())
            try:
                return self._once(used, method, path, body, headers)
            except (ConnectionError, http.client.BadStatusLine, ssl.SSLError):
                continue
        used.append(self._new())
        return self._once(used, method, path, body, headers)

    def _once(
        self,
        used: list[http.client.HTTPConnection],
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
    ) -> Answer:
        """By the last of `used`, which it takes out again."""
        connection = used[-1]
        try:
            if connection.sock is None and self._connect is not None:
                connection.sock = self._open(self._connect)
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read(self._max_bytes + 1)
            if len(content) <= self._max_bytes and response.length:  # read(n) takes an early end for the end
                raise http.client.IncompleteRead(content, response.length)
        except BaseException:
            connection.close()
            raise
        finally:
            used.pop()
        if len(content) > self._max_bytes:
            connection.close()
            raise Unavailable(
                f"{self._source} answered with more than {self._max_bytes} bytes", reason="HTTP_TOO_LARGE"
            )
        if response.will_close or len(self._idle) >= self._max_idle:
            connection.close()
        else:
            self._idle.append(connection)
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)

    def _new(self) -> http.client.HTTPConnection:
        if self._context is None:
            made = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        else:
            made = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._context)
        made.response_class = partial(BoundedResponse, body_bytes=self._max_bytes)  # type: ignore[assignment]
        return made

    def _open(self, connect: Connect) -> socket.socket:
        opened = connect(self._timeout)
        return opened if self._context is None else self._context.wrap_socket(opened, server_hostname=self._host)


def why(error: Exception) -> str:
    """Nothing that the peer chose: the one who is told may be neither of us, and a terminal may show it."""
    if isinstance(error, http.client.BadStatusLine | http.client.UnknownProtocol) and not isinstance(error, OSError):
        return "it answered with what is no HTTP"
    said = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return printable(str(error))[:MAX_SAID_CHARACTERS] or said


def context_of(
    *,
    ca_file: Path | None = None,
    ca_data: str | None = None,
    insecure: bool = False,
    client_cert: str | None = None,
    client_key: str | None = None,
) -> ssl.SSLContext:
    """TLS ≥ 1.2 that believes `ca_file` (PEM) and `ca_data` alone, or the system's roots where neither is given.

    `client_cert` and `client_key` are PEM texts. `insecure` verifies nothing. Raises ConfigError.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file), cadata=ca_data)
        if client_cert is not None and client_key is not None:
            load_chain(context, client_cert.encode(), client_key.encode())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot use `{ca_file or 'the certificates'}` for TLS: {error}", reason="TLS_FILES"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
