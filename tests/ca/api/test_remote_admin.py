"""Administration over the network by X.509-SVID, also from federated trust domains."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ca.errors import ConfigError
from ca.identity.spiffe_id import TrustDomain
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import server_entry_pb2
from ca.runtime.config import from_values
from ca.runtime.server_config import ServerConfig
from tests.ca.api.http_client import over_tls
from tests.ca.api.refusals import Code, refused
from tests.ca.api.test_tiers import CALLERS, EXPECTED, judge
from tests.support.server import Caller, Identity, RunningServer, eventually, running_server

FED = TrustDomain("fed.org")


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server(admin_ids=["spiffe://example.org/boss", "spiffe://fed.org/boss"]) as running:
        yield running


@pytest.fixture
async def other() -> AsyncIterator[RunningServer]:
    async with running_server(trust_domain="fed.org") as running:
        yield running


async def count(caller: Caller) -> int:
    return int((await caller.entries.CountEntries(server_entry_pb2.CountEntriesRequest(), timeout=10)).count)


async def federate(server: RunningServer, other: RunningServer) -> None:
    bundle = await other.local.bundles.GetBundle(pb.GetBundleRequest())
    result = await server.local.bundles.BatchSetFederatedBundle(pb.BatchSetFederatedBundleRequest(bundle=[bundle]))
    assert [r.status.code for r in result.results] == [0]


async def part(server: RunningServer) -> None:
    request = pb.BatchDeleteFederatedBundleRequest(trust_domains=["fed.org"])
    assert [r.status.code for r in (await server.local.bundles.BatchDeleteFederatedBundle(request)).results] == [0]


def connected(server: RunningServer) -> int:
    peers = server.server.gate.connections()
    return sum(peer.svid is not None and peer.svid.id.trust_domain == FED for peer in peers)


async def test_configured_ids_administer(server: RunningServer) -> None:
    boss, worker = await server.mint("/boss"), await server.mint("/worker")
    assert await count(await server.caller(boss)) == 0
    assert (await over_tls(server, "/v1/status", boss))[0] == 200
    with refused(Code.PERMISSION_DENIED, reason="TIER"):
        await count(await server.caller(worker))
    with refused(Code.PERMISSION_DENIED, reason="AGENT_NOT_ATTESTED"):  # an administrator is no agent
        await (await server.caller(boss)).entries.GetAuthorizedEntries(server_entry_pb2.GetAuthorizedEntriesRequest())


async def test_administrators_of_a_federated_trust_domain(server: RunningServer, other: RunningServer) -> None:
    boss, worker = await other.mint("/boss"), await other.mint("/worker")
    assert await is_turned_away(server, boss)  # its trust domain is unknown
    await federate(server, other)
    caller = await server.caller(boss)
    assert await count(caller) == 0
    assert (await over_tls(server, "/v1/status", boss))[0] == 200
    with refused(Code.PERMISSION_DENIED, reason="TIER"):
        await count(await server.caller(worker))
    assert (await over_tls(server, "/v1/status", worker))[0] == 403
    await part(server)  # open connections end, new ones are not accepted
    await eventually(lambda: connected(server) == 0)
    assert await is_turned_away(server, boss)


@pytest.mark.parametrize("foreign", [False, True])
async def test_they_may_do_all_that_an_admin_entry_allows(
    server: RunningServer, other: RunningServer, foreign: bool
) -> None:
    await federate(server, other)
    caller = await server.caller(await (other if foreign else server).mint("/boss"))
    column = CALLERS.index("admin")
    found = {method: await judge(caller, method) for method in EXPECTED}
    assert found == {method: row.split()[column] for method, row in EXPECTED.items()}


async def test_nobody_but_its_own_domain_vouches_for_an_id(server: RunningServer, other: RunningServer) -> None:
    await federate(server, other)
    async with running_server(trust_domain="fed.org") as imposter:
        assert await is_turned_away(server, await imposter.mint("/boss"))


async def test_a_new_root_of_the_other_domain_is_known_at_once(server: RunningServer, other: RunningServer) -> None:
    await federate(server, other)
    async with running_server(trust_domain="fed.org") as renewed:
        boss = await renewed.mint("/boss")
        await federate(server, renewed)
        assert await count(await server.caller(boss)) == 0


async def test_an_authority_that_tls_cannot_read_keeps_nobody_else_out(
    server: RunningServer, other: RunningServer
) -> None:
    from ca.identity.bundle import TrustBundle, X509Authority

    odd = TrustBundle(trust_domain=TrustDomain("odd.org"), x509_authorities=(X509Authority(certificate=b"odd"),))
    await server.server.store.bundles.put(odd)
    await federate(server, other)
    assert await count(await server.caller(await other.mint("/boss"))) == 0


async def is_turned_away(server: RunningServer, identity: Identity) -> bool:
    """The handshake fails, or the connection ends before anything was served."""
    try:
        await over_tls(server, "/version", identity)
    except (ssl.SSLError, ConnectionError, IndexError, asyncio.IncompleteReadError):
        return True
    return False


def config_of(**changes: Any) -> ServerConfig:
    return from_values({"trust_domain": "example.org", "data_dir": "/x", **changes}, ServerConfig)


@pytest.mark.parametrize("bad", ["/boss", "spiffe://example.org", "https://example.org/x", "spiffe://example.org/a/"])
def test_admin_ids_are_spiffe_ids_of_workloads(bad: str) -> None:
    with pytest.raises(ConfigError):
        config_of(admin_ids=[bad])
    assert config_of(admin_ids=["spiffe://EXAMPLE.org/Boss"]).admin_ids == ("spiffe://example.org/Boss",)
