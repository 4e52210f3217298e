"""A small HTTP/1.1 client over the server's TCP port or its admin socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.support.server import Identity, RunningServer
from tests.support.tls_client import client_context


async def over_tls(
    server: RunningServer, path: str, identity: Identity | None = None, *, verb: str = "GET"
) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    chain, key = (identity.chain, identity.key) if identity else ((), None)
    context = client_context(roots=server.roots, chain=chain, key=key, alpn=("http/1.1",))
    connection = await asyncio.open_connection(*server.server.address, ssl=context, server_hostname="")
    return await _exchange(*connection, verb, path)


async def locally(server: RunningServer, path: str, *, verb: str = "GET") -> tuple[int, dict[str, Any]]:
    connection = await asyncio.open_unix_connection(str(server.config.admin_socket_path))
    return await _exchange(*connection, verb, path)


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, verb: str, path: str
) -> tuple[int, dict[str, Any]]:
    writer.write(f"{verb} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(20):
        data = await reader.read()
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body) | {"_head": head.decode().lower()}
