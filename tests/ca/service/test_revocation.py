"""What follows when an authority leaves the bundle, or the server is renewed, although TLS cannot be reloaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ca.identity.spiffe_id import TrustDomain
from ca.proto.spire import server_agent_pb2, server_entry_pb2
from tests.support.server import RunningServer, eventually, running_server, spiffe_id

TD = TrustDomain("example.org")


class Failing:
    """A reload for which there are no files left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server: RunningServer) -> None:
        self.calls = 0
        monkeypatch.setattr(server.server.gate, "reload_tls", self._reload)

    def _reload(self) -> None:
        self.calls += 1
        raise OSError(24, "Too many open files")


async def test_connections_of_a_revoked_root_end_although_tls_cannot_be_reloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_server() as server:
        _, caller = await server.agent()
        await caller.entries.GetAuthorizedEntries(server_entry_pb2.GetAuthorizedEntriesRequest())
        assert any(peer.svid for peer in server.server.gate.connections())
        reload = Failing(monkeypatch, server)
        await server.server.store.bundles.update(TD, lambda bundle: replace(bundle, x509_authorities=()))
        await eventually(lambda: not any(peer.svid for peer in server.server.gate.connections()), seconds=3)
        assert reload.calls


async def test_a_renewal_of_the_servers_svid_stands_although_tls_cannot_be_reloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_server() as server:
        reload = Failing(monkeypatch, server)
        await server.server.server_svid.renew()
        assert reload.calls
        assert not server.server.server_svid.due


async def test_an_eviction_ends_the_connections_there_are_and_none_that_come_later() -> None:
    """An agent that was evicted and attested again at once would lose its new connection."""
    async with running_server() as server:
        identity, before = await server.agent()
        await before.raw("/burgee.node.v1.Node/GetTime")
        (old,) = (peer for peer in server.server.gate.connections() if peer.svid)
        await server.local.agents.DeleteAgent(server_agent_pb2.DeleteAgentRequest(id=spiffe_id(identity.path)))
        assert old in server.server.gate.connections(), "first it is told why"
        after = await server.caller(identity)
        await after.raw("/burgee.node.v1.Node/GetTime")
        await eventually(lambda: old not in server.server.gate.connections(), seconds=3)
        await after.raw("/burgee.node.v1.Node/GetTime")
        (new,) = (peer for peer in server.server.gate.connections() if peer.svid)
        assert new is not old
