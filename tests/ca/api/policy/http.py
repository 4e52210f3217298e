"""An HTTP/1.1 client over the admin socket, or over TLS as somebody, that sees statuses, headers and bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h11

from tests.support.server import Identity, RunningServer
from tests.support.tls_client import client_context


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)

    @property
    def reason(self) -> str:
        """Of a problem."""
        assert self.headers["content-type"] == "application/problem+json", (self.status, self.data)
        assert self.body["status"] == self.status
        return str(self.body["reason"])


class Client:
    """Somebody's connections, one for each request; without `identity` over the admin socket."""

    def __init__(self, server: RunningServer, identity: Identity | None = None, *, anonymous: bool = False) -> None:
        self._server, self._identity, self._anonymous = server, identity, anonymous

    async def __call__(
        self,
        verb: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bytes | None = None,
        media: str = "application/json",
    ) -> Answer:
        """One request below /v1/policy, unless the path begins with two slashes; `body` goes as JSON, `raw` as is."""
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        sent = {"host": "x", "connection": "close", **{k.lower(): v for k, v in (headers or {}).items()}}
        if raw is not None or body is not None:
            sent.setdefault("content-type", media)
            sent.setdefault("content-length", str(len(data)))
        target = path[1:] if path.startswith("//") else f"/v1/policy{path}"
        reader, writer = await self.connect()
        try:
            return await exchange(reader, writer, verb, target, sent, data)
        finally:
            writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._identity is None and not self._anonymous:
            return await asyncio.open_unix_connection(str(self._server.config.admin_socket_path))
        chain, key = (self._identity.chain, self._identity.key) if self._identity else ((), None)
        context = client_context(roots=self._server.roots, chain=chain, key=key, alpn=("http/1.1",))
        return await asyncio.open_connection(*self._server.server.address, ssl=context, server_hostname="")


async def exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    verb: str,
    target: str,
    headers: Mapping[str, str],
    data: bytes,
) -> Answer:
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method=verb, target=target, headers=[(k, v.encode()) for k, v in headers.items()])
    head = connection.send(request)
    assert head is not None
    writer.write(head)
    if data:
        writer.write(connection.send(h11.Data(data)) or b"")
    try:
        writer.write(connection.send(h11.EndOfMessage()) or b"")
    except h11.LocalProtocolError:  # less than was declared: the server need not wait for it
        pass
    response, parts = None, []
    async with asyncio.timeout(90):
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
    assert response is not None
    found = {name.decode().lower(): value.decode("latin-1") for name, value in response.headers}
    return Answer(response.status_code, found, b"".join(parts))
