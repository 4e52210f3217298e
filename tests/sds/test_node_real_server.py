"""The agent's node side against the real server: attestation, push, issuing, renewal, eviction, ban, restart."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestor.node.join_token import AgentConfig as JoinTokenConfig
from attestor.node.join_token import JoinTokenProver
from ca.errors import Code, Unauthenticated
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.bundle_pem import format_pem, parse_certificates
from ca.identity.spiffe_id import SpiffeId
from ca.identity.svid import verify_x509_svid
from ca.ports import KeyType
from ca.proto.spire import server_agent_pb2, server_bundle_pb2, server_bundle_pb2_grpc, server_entry_pb2
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from sds.condition import State
from sds.config import AgentConfig
from sds.first_trust import ServerTrust
from sds.keys import certificate_request, generate
from sds.server_link import ServerLink
from sds.state import AgentSvid, open_store
from tests.ca.identity.forge import TD, key
from tests.sds.fake_server import fresh_root, leaf_of
from tests.sds.node_lab import Node, running, until
from tests.support.pair import free_port
from tests.support.server import RunningServer, entry, running_server, spiffe_id


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server(bind_port=free_port()) as started:
        yield started


def configuration(tmp_path: Path, server: RunningServer) -> AgentConfig:
    (tmp_path / "bundle.pem").write_text(format_pem(server.server.trust.own))
    values = {
        "trust_domain": "example.org",
        "data_dir": str(tmp_path / "agent"),
        "servers": ["{}:{}".format(*server.server.address)],
        "trust": {"bundle_file": str(tmp_path / "bundle.pem")},
        "node_attestor": {"join_token": {"token_file": str(tmp_path / "token")}},
        "cache": {"directory": str(tmp_path / "cache")},
    }
    return from_values(values, AgentConfig)


@asynccontextmanager
async def node_of(tmp_path: Path, server: RunningServer) -> AsyncIterator[Node]:
    prover = JoinTokenProver(from_values({"token_file": str(tmp_path / "token")}, JoinTokenConfig))
    async with running(Node(configuration(tmp_path, server), prover)) as node:
        yield node


@pytest.fixture
async def node(tmp_path: Path, server: RunningServer) -> AsyncIterator[Node]:
    (tmp_path / "token").write_text(await server.token())
    async with node_of(tmp_path, server) as started:
        await until(lambda: started.feed.snapshots == 1)
        yield started


def path_of(node: Node) -> str:
    assert node.identity.svid is not None
    return node.identity.svid.id.path


async def entry_for(node: Node, server: RunningServer, path: str) -> str:
    (created,) = await server.create(entry(path, path_of(node)))
    await until(lambda: created.id in node.feed.entries)
    return created.id


async def test_an_entry_becomes_an_svid(node: Node, server: RunningServer) -> None:
    assert node.condition.state is State.OK
    started = time.monotonic()
    entry_id = await entry_for(node, server, "/web")
    csr = certificate_request(generate(KeyType.EC_P256), SpiffeId(TD, "/web"))
    (issued,) = await node.client.new_x509_svids([(entry_id, csr)])
    assert time.monotonic() - started < 2
    assert issued.error is None
    assert node.trust.bundle is not None
    svid = verify_x509_svid(issued.chain, {TD: node.trust.bundle}, now=SystemClock().now())
    assert str(svid.id) == "spiffe://example.org/web"
    token = await node.client.new_jwt_svid(entry_id, ["aud"])
    assert token.token.count(".") == 2
    assert token.issued_at < token.expires_at
    assert await node.client.get_bundle() == node.feed.bundles[TD]


async def test_deleted_entries_go(node: Node, server: RunningServer) -> None:
    entry_id = await entry_for(node, server, "/web")
    await server.local.entries.BatchDeleteEntry(server_entry_pb2.BatchDeleteEntryRequest(ids=[entry_id]))
    await until(lambda: entry_id not in node.feed.entries)


async def test_renewal_and_the_superseded_svid(node: Node, server: RunningServer) -> None:
    before = node.identity.svid
    assert before is not None
    node.identity._due = node.clock.now()
    node.identity._poked.set()
    await until(lambda: node.identity.svid != before)
    entry_id = await entry_for(node, server, "/web")
    await until(lambda: node.client.connected)
    assert (await node.client.new_jwt_svid(entry_id, ["a"])).token
    assert node.condition.state is State.OK
    assert node.feed.snapshots == 1, "the new stream resumed where the old one was"


class Settable(SystemClock):
    """The real time, and how far somebody has set the wall clock away from it."""

    off = timedelta()

    def now(self) -> datetime:
        return super().now() + self.off


async def test_an_hour_behind_it_goes_on_until_it_must_connect_anew(tmp_path: Path, server: RunningServer) -> None:
    """A server's certificate that has not begun here is not believed; both times are named, and a set clock heals."""
    (tmp_path / "token").write_text(await server.token())
    prover = JoinTokenProver(from_values({"token_file": str(tmp_path / "token")}, JoinTokenConfig))
    clock = Settable()
    async with running(Node(configuration(tmp_path, server), prover, clock=clock)) as node:
        await until(lambda: node.feed.snapshots == 1)
        clock.off = -timedelta(hours=1)
        entry_id = await entry_for(node, server, "/web")
        assert (await node.client.new_jwt_svid(entry_id, ["a"])).token
        await server.stop()
        await until(lambda: node.reason == "SERVER_UNREACHABLE")
        await server.start()
        await until(lambda: node.reason == "SVID_NOT_YET_VALID", seconds=25)
        assert node.condition.state is State.DEGRADED
        problem = node.condition.problem
        assert problem is not None
        assert "is not valid before" in problem.detail
        assert f"the clock here says {clock.now().isoformat()[:13]}" in problem.detail
        clock.off = timedelta()
        await until(lambda: node.condition.state is State.OK, seconds=25)


async def test_a_restart_of_the_server_needs_no_full_read(node: Node, server: RunningServer) -> None:
    await entry_for(node, server, "/one")
    before = node.identity.svid
    await server.stop()
    await until(lambda: node.reason == "SERVER_UNREACHABLE")
    await server.start()
    await until(lambda: node.condition.state is State.OK, seconds=25)
    await entry_for(node, server, "/two")
    assert node.feed.snapshots == 1
    assert node.identity.svid == before


async def test_a_restarted_agent_needs_no_token(tmp_path: Path, server: RunningServer) -> None:
    (tmp_path / "token").write_text(await server.token())
    async with node_of(tmp_path, server) as first:
        await until(lambda: first.feed.snapshots == 1)
        before = first.identity.svid
    (tmp_path / "token").unlink()
    async with node_of(tmp_path, server) as second:
        await until(lambda: second.feed.snapshots == 1)
        assert second.identity.svid == before


async def test_eviction_degrades_and_a_new_token_heals(tmp_path: Path, node: Node, server: RunningServer) -> None:
    before = path_of(node)
    await server.local.agents.DeleteAgent(server_agent_pb2.DeleteAgentRequest(id=spiffe_id(before)))
    await until(lambda: node.reason == "AGENT_NOT_ATTESTED")
    assert node.condition.state is State.DEGRADED
    assert node.condition.problem is not None
    assert "caadmin token create" in node.condition.problem.hint
    (tmp_path / "token").write_text(await server.token())
    await until(lambda: node.condition.state is State.OK and path_of(node) != before, seconds=25)


async def test_a_ban_erases(tmp_path: Path, node: Node, server: RunningServer) -> None:
    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=spiffe_id(path_of(node))))
    await until(lambda: node.condition.state is State.BANNED)
    await until(lambda: not list(tmp_path.rglob("*.sealed")))
    assert node.identity.svid is None


async def test_a_used_token_is_refused_with_the_servers_words(tmp_path: Path, server: RunningServer) -> None:
    token = await server.token()
    await server.attest(token=token)
    (tmp_path / "token").write_text(token)
    async with node_of(tmp_path, server) as node:
        await until(lambda: node.reason == "ATTESTATION_REFUSED")
        assert "already been used" in node.detail


async def test_a_server_that_turns_our_svid_away_is_heard(tmp_path: Path, server: RunningServer) -> None:
    config, clock = configuration(tmp_path, server), SystemClock()
    trust = ServerTrust(config=config, clock=clock, store=open_store(config))
    await trust.start()
    agent = SpiffeId(TD, "/spire/agent/join_token/t1")
    private = key("P-256", "leaf").private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    stranger = leaf_of(fresh_root("stranger", key=key("P-256", "stranger")), str(agent))
    now = clock.now()
    svid = AgentSvid(id=agent, chain=(stranger,), key_der=private, issued_at=now, not_after=now + timedelta(hours=1))
    link = await ServerLink.open(config=config, trust=trust, clock=clock, svid=svid)
    stub = server_bundle_pb2_grpc.BundleStub(link.channel)
    try:
        for _ in range(20):  # a connection that is reset takes the alert with it
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=10)
            error = await link.explain(caught.value)
            if error.reason != "SERVER_CONNECTION_LOST":
                break
    finally:
        await link.close()
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "SERVER_REFUSED_TLS")
    assert "unknown ca" in error.detail


@pytest.mark.slow
async def test_two_rotations_of_the_root_while_the_agent_was_off(tmp_path: Path) -> None:
    """The roots live twelve seconds; the server signs with one that the agent never saw when it comes back."""
    lives = {"ca_ttl_seconds": 12, "x509_svid_ttl_seconds": 2, "jwt_svid_ttl_seconds": 2, "agent_ttl_seconds": 2}
    async with running_server(bind_port=free_port(), **lives) as server:
        (tmp_path / "token").write_text(await server.token())
        async with node_of(tmp_path, server) as node:
            await until(lambda: node.feed.snapshots == 1)
            assert node.trust.bundle is not None
            known = {a.certificate for a in node.trust.bundle.x509_authorities}
        await until(lambda: len(set(server.roots) - known) >= 2 and _signs_with_none_of(server, known), seconds=60)
        (tmp_path / "token").write_text(await server.token())
        async with node_of(tmp_path, server) as node:
            await until(lambda: node.feed.snapshots == 1, seconds=25)
            assert node.trust.bundle is not None
            assert set(server.roots) & {a.certificate for a in node.trust.bundle.x509_authorities}


def _signs_with_none_of(server: RunningServer, known: set[bytes]) -> bool:
    bundle = TrustBundle(trust_domain=TD, x509_authorities=tuple(X509Authority(certificate=c) for c in known))
    try:
        verify_x509_svid(
            parse_certificates(server.server.server_svid.material().chain_pem), {TD: bundle}, now=SystemClock().now()
        )
    except Unauthenticated as error:
        return error.reason == "SVID_UNTRUSTED"
    return False
