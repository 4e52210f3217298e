"""The relay: whom it dials for, whom it lets through, and who may not use its plaintext leg."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from ca.errors import BurgeeError, Code, Unavailable
from ca.identity.svid import X509Svid
from ca.proto.spire import server_bundle_pb2, server_bundle_pb2_grpc
from ca.runtime.clock import SystemClock
from ca.runtime.tls_relay import TlsRelay
from sds.first_trust import ServerTrust
from sds.server_link import ServerLink
from sds.state import open_store
from tests.ca.identity.forge import TD
from tests.sds.fake_server import FakeServer, fresh_root
from tests.sds.node_lab import config_for, serving, until
from tests.support.clock import FakeClock
from tests.support.valve import Valve

GET = server_bundle_pb2.GetBundleRequest()
STRANGER = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + b"\\0\\0\\0\\4\\0\\0\\0\\0\\0")
    print(len(s.recv(100)))
except (BrokenPipeError, ConnectionResetError):
    print(0)
"""


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving(FakeServer()) as fake:
        yield fake


async def link_to(tmp_path: Path, server: FakeServer, **changes: object) -> ServerLink:
    config = config_for(tmp_path, server, **changes)
    clock = SystemClock()
    trust = ServerTrust(config=config, clock=clock, store=open_store(config))
    await trust.start()
    return await ServerLink.open(config=config, trust=trust, clock=clock, svid=None)


async def get_bundle(link: ServerLink) -> None:
    await server_bundle_pb2_grpc.BundleStub(link.channel).GetBundle(GET, timeout=10)


async def refusal(link: ServerLink) -> BurgeeError:
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get_bundle(link)
        return await link.explain(caught.value)
    finally:
        await link.close()


async def test_a_server_without_a_host_name_is_accepted(tmp_path: Path, server: FakeServer) -> None:
    link = await link_to(tmp_path, server)
    try:
        await get_bundle(link)
        assert link.relay.address == server.address
        assert link.relay.refusal is None
        assert server.client_chains == [None]
    finally:
        await link.close()
    assert not Path(link.relay.path).exists()


async def test_another_id_of_the_trust_domain_is_refused(tmp_path: Path, server: FakeServer) -> None:
    await server.stop()
    server.server_id = "spiffe://example.org/web"
    await server.start()
    error = await refusal(await link_to(tmp_path, server))
    assert error.reason == "SERVER_ID_MISMATCH"
    assert "spiffe://example.org/web" in error.detail
    assert "GetBundle" not in server.calls


async def test_a_server_of_another_root_is_refused(tmp_path: Path, server: FakeServer) -> None:
    link = await link_to(tmp_path, server, rebootstrap="never")
    await server.stop()
    server.root = fresh_root("somebody else's")
    await server.start()
    error = await refusal(link)
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "SERVER_UNTRUSTED")
    assert "rebootstrap" in error.hint
    assert "GetBundle" not in server.calls


async def test_a_cross_signed_server_of_another_domain_is_refused(tmp_path: Path, server: FakeServer) -> None:
    """Our own root vouches for it by accident; its ID is still not the server's."""
    await server.stop()
    server.server_id = "spiffe://other.org/spire/server"
    await server.start()
    error = await refusal(await link_to(tmp_path, server))
    assert error.reason == "SERVER_UNTRUSTED", "the other domain has no bundle here"


async def test_an_expired_server_is_refused(tmp_path: Path, server: FakeServer) -> None:
    await server.stop()
    server.server_life = timedelta(seconds=-5)
    await server.start()
    assert (await refusal(await link_to(tmp_path, server))).reason == "SVID_EXPIRED"


async def test_a_server_that_does_not_speak_http2_is_refused(tmp_path: Path, server: FakeServer) -> None:
    await server.stop()
    server.alpn = "http/1.1"
    await server.start()
    assert (await refusal(await link_to(tmp_path, server))).reason == "SERVER_ALPN"


async def test_no_server_at_all(tmp_path: Path, server: FakeServer) -> None:
    await server.stop()
    error = await refusal(await link_to(tmp_path, server))
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "SERVER_UNREACHABLE")


async def test_a_plaintext_port_is_no_server(tmp_path: Path) -> None:
    async def say_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(say_hello, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    link = await link_to(tmp_path, FakeServer(), servers=[f"127.0.0.1:{port}"])
    assert (await refusal(link)).reason == "SERVER_UNREACHABLE"
    listener.close()


async def test_no_byte_passes_before_the_server_is_verified(tmp_path: Path, server: FakeServer) -> None:
    seen: list[bytes] = []
    told = asyncio.Event()

    def refuse(chain: Sequence[bytes]) -> X509Svid:
        seen.extend(chain)
        raise BurgeeError("no")

    relay = TlsRelay(
        servers=[server.address], verify=refuse, material=None, directory=tmp_path / "r", clock=SystemClock()
    )
    await relay.start()
    reader, writer = await asyncio.open_unix_connection(relay.path)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert await reader.read() == b""
    assert seen
    assert not told.is_set()
    assert relay.refusal is not None
    assert relay.refusal.chain == tuple(seen)
    assert server.calls == []
    writer.close()
    await relay.close()


async def test_what_is_not_fit_to_be_shown_is_shown_to_nobody(tmp_path: Path, server: FakeServer) -> None:
    """An SVID may end while the server is away: no connection that is tried again brings it along."""
    problem = Unavailable("expired", reason="AGENT_EXPIRED")
    relay = TlsRelay(
        servers=[server.address],
        verify=lambda chain: pytest.fail("nobody is asked"),
        material=None,
        directory=tmp_path / "r",
        clock=SystemClock(),
        fit=lambda: problem,
    )
    await relay.start()
    reader, writer = await asyncio.open_unix_connection(relay.path)
    assert await reader.read() == b""
    assert relay.refusal is not None
    assert relay.refusal.error is problem
    assert server.client_chains == []
    writer.close()
    await relay.close()


async def test_the_socket_is_ours_alone(tmp_path: Path, server: FakeServer) -> None:
    link = await link_to(tmp_path, server)
    path = Path(link.relay.path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await link.close()


async def test_a_stranger_of_the_same_user_or_root_gets_nothing(tmp_path: Path, server: FakeServer) -> None:
    """The child runs as the same user as we do (in CI: root)."""
    link = await link_to(tmp_path, server)
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STRANGER, link.relay.path, stdout=subprocess.PIPE
        )
        output, _ = await child.communicate()
        assert output == b"0\n"
        assert server.client_chains == [], "no server was dialled for a stranger"
        await get_bundle(link)  # and we ourselves still get through
    finally:
        await link.close()


async def test_a_forked_child_is_a_stranger_too(tmp_path: Path, server: FakeServer) -> None:
    link = await link_to(tmp_path, server)
    try:
        script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({link.relay.path!r}); print(s.recv(9))"
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
        output, _ = await child.communicate()
        assert output == b"b''\n"
    finally:
        await link.close()


async def test_a_bundle_that_drops_the_servers_root_ends_the_connection(tmp_path: Path, server: FakeServer) -> None:
    config = config_for(tmp_path, server)
    clock = SystemClock()
    trust = ServerTrust(config=config, clock=clock, store=open_store(config))
    await trust.start()
    link = await ServerLink.open(config=config, trust=trust, clock=clock, svid=None)
    await get_bundle(link)
    trust.update(fresh_root("the next").bundle(TD))
    await until(lambda: link.relay.address is None)
    assert link.relay.refusal is not None
    assert link.relay.refusal.error.reason == "SVID_UNTRUSTED"
    await link.close()


async def test_a_connection_ends_with_the_servers_certificate(tmp_path: Path, server: FakeServer) -> None:
    config = config_for(tmp_path, server)
    clock = FakeClock(SystemClock().now())
    trust = ServerTrust(config=config, clock=clock, store=open_store(config))
    await trust.start()
    link = await ServerLink.open(config=config, trust=trust, clock=clock, svid=None)
    await get_bundle(link)
    await clock.advance(timedelta(days=7).total_seconds() + 1)
    await until(lambda: link.relay.address is None)
    await link.close()


async def test_a_server_that_takes_its_time_is_waited_for(tmp_path: Path, server: FakeServer) -> None:
    """One far away, or one whose machine has much to do, is slow to greet: the first call waits, and succeeds."""
    host, _, port = server.address.rpartition(":")
    async with Valve((host, int(port))) as valve:
        link = await link_to(tmp_path, server, servers=["{}:{}".format(*valve.address)])
        valve.swallow()
        asyncio.get_running_loop().call_later(1.5, valve.open)
        try:
            await get_bundle(link)
        finally:
            await link.close()


async def test_a_long_data_directory_gets_a_short_socket_path(tmp_path: Path, server: FakeServer) -> None:
    link = await link_to(tmp_path, server, data_dir=str(tmp_path / ("d" * 100)))
    try:
        assert len(os.fsencode(link.relay.path)) <= 107
        await get_bundle(link)
    finally:
        await link.close()
        os.rmdir(os.path.dirname(link.relay.path))


def test_the_kernel_names_the_peer() -> None:
    """What the check rests on: SO_PEERCRED is filled in by the kernel, not by the peer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        pid = int.from_bytes(ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    assert pid == os.getpid()
