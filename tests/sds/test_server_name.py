"""By which name the agent asks for its server (SNI): proxies go by it, and an address is none (RFC 6066 §3)."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from ca.runtime.clock import SystemClock
from sds.first_trust import ServerTrust
from sds.server_link import ServerLink
from sds.state import open_store
from tests.sds.fake_server import FakeServer
from tests.sds.node_lab import config_for, serving
from tests.sds.test_tls_relay import get_bundle


class NamedServer(FakeServer):
    """Keeps the names that it is asked for by."""

    def _context(self) -> ssl.SSLContext:
        self.names: list[str | None] = []
        context = super()._context()
        context.sni_callback = lambda connection, name, context: self.names.append(name)
        return context


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", None), ("localhost", "localhost")])
async def test_a_name_is_sent_and_an_address_is_not(tmp_path: Path, host: str, name: str | None) -> None:
    async with serving(NamedServer()) as server:
        config = config_for(tmp_path, server, servers=[server.address.replace("127.0.0.1", host)])
        clock = SystemClock()
        trust = ServerTrust(config=config, clock=clock, store=open_store(config))
        await trust.start()
        link = await ServerLink.open(config=config, trust=trust, clock=clock, svid=None)
        try:
            await get_bundle(link)
        finally:
            await link.close()
        assert server.names == [name]
