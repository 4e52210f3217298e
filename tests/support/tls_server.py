"""A TLS listener with an SVID of somebody's and nothing behind it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ca.runtime.tls import load_chain
from tests.support.server import Identity
from tests.support.tls_client import key_pem, pem_of


@asynccontextmanager
async def tls_server(identity: Identity) -> AsyncIterator[str]:
    """Its address, `host:port`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    load_chain(context, pem_of(identity.chain), key_pem(identity.key))
    server = await asyncio.start_server(lambda _, writer: writer.drain(), "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
