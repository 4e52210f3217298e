"""First trust from each source, what is refused, and how an agent that slept through rotations heals or degrades."""

from __future__ import annotations

import asyncio
import http.server
import ipaddress
import re
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.errors import BurgeeError, Code, ConfigError
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.bundle_format import format_spiffe_bundle
from ca.identity.bundle_pem import certificate_pem, format_pem
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from sds.condition import State
from sds.config import AgentConfig, TrustConfig
from sds.first_trust import MAX_BUNDLE_BYTES, ServerTrust, read_source
from sds.node_attest import NodeCalls
from sds.state import open_store
from tests.ca.identity.forge import OTHER, TD, Authority, Cert, key
from tests.sds.fake_server import SERVER_ID, FakeServer, fresh_root, leaf_of
from tests.sds.node_lab import Node, Proof, config_for, running, serving, until, write_bundle


class Site:
    """An https site of the Web PKI: host name 127.0.0.1, a root that OpenSSL is told to believe."""

    def __init__(self) -> None:
        self.content = b""
        self.status = 200
        self.requests = 0
        self.url = ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    web = fresh_root("web pki", san=[])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "web.pem"))
    (tmp_path / "web.pem").write_text(certificate_pem(web.der))
    with _served(web, Site(), tmp_path) as running_site:
        yield running_site


@contextmanager
def _served(web: Authority, site: Site, directory: Path) -> Iterator[Site]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests += 1
            self.send_response(site.status)
            self.send_header("Location", "https://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", str(len(site.content)))
            self.end_headers()
            try:
                self.wfile.write(site.content)
            except OSError:
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    leaf = web.sign(Cert(san=[address], not_before=now - timedelta(hours=1), not_after=now + timedelta(hours=1)))
    pem = key("P-256", "leaf").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "site.pem").write_bytes(pem + certificate_pem(leaf).encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "site.pem")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    site.url = f"https://127.0.0.1:{httpd.server_address[1]}/bundle?x=1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving(FakeServer()) as fake:
        yield fake


ROOT = fresh_root("root")
BUNDLE = ROOT.bundle(TD)


class TestSources:
    @pytest.mark.parametrize("form", [format_pem, format_spiffe_bundle])
    async def test_file(self, tmp_path: Path, form: Any) -> None:
        (tmp_path / "b").write_text(form(BUNDLE))
        assert await read_source(TrustConfig(bundle_file=tmp_path / "b"), TD) == BUNDLE

    async def test_url(self, site: Site) -> None:
        site.content = format_spiffe_bundle(BUNDLE).encode()
        assert await read_source(TrustConfig(bundle_url=site.url), TD) == BUNDLE

    async def test_a_site_that_the_web_pki_does_not_know(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(BurgeeError) as caught:
            await read_source(TrustConfig(bundle_url=site.url), TD)
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "BUNDLE_SOURCE")
        assert site.requests == 0

    async def test_redirects_are_not_followed(self, site: Site) -> None:
        site.status = 302
        with pytest.raises(BurgeeError, match="302"):
            await read_source(TrustConfig(bundle_url=site.url), TD)
        assert site.requests == 1

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"x" * (MAX_BUNDLE_BYTES + 1), "BUNDLE_TOO_LARGE"),
            (b"no pem", "PEM_MALFORMED"),
            (b"", "PEM_MALFORMED"),
            (b"{", "BUNDLE_MALFORMED"),
            (b'{"keys": []}', "BUNDLE_EMPTY"),
        ],
    )
    async def test_what_cannot_be_a_bundle(self, tmp_path: Path, site: Site, content: bytes, reason: str) -> None:
        (tmp_path / "b").write_bytes(content)
        site.content = content
        for trust in (TrustConfig(bundle_file=tmp_path / "b"), TrustConfig(bundle_url=site.url)):
            with pytest.raises(BurgeeError) as caught:
                await read_source(trust, TD)
            assert caught.value.reason == reason
            assert f"`{trust.bundle_file or trust.bundle_url}`" in caught.value.detail

    @pytest.mark.parametrize(("content", "words"), [(b"", "it is empty"), (b" \n", "it is empty"), (b"x", "malformed")])
    async def test_no_bundle_says_what_should_be_there(self, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(BurgeeError) as caught:
            await read_source(TrustConfig(bundle_file=tmp_path / "b"), TD)
        assert words in caught.value.detail
        assert "PEM certificates" in caught.value.hint
        assert "caadmin bundle show" in caught.value.hint

    async def test_a_missing_file_says_where_to_get_one(self, tmp_path: Path) -> None:
        with pytest.raises(BurgeeError) as caught:
            await read_source(TrustConfig(bundle_file=tmp_path / "none"), TD)
        assert caught.value.reason == "BUNDLE_SOURCE"
        assert "caadmin bundle show" in caught.value.hint

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"bundle_file": "/x", "insecure_bootstrap": True},
            {"bundle_url": "http://example.org/"},
            {"bundle_url": "https://"},
            {"bundle_url": "file:///etc/passwd"},
        ],
    )
    def test_a_wrong_source_is_a_configuration_error(self, values: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            from_values(values, TrustConfig)


class TestVerdict:
    @pytest.fixture
    async def trust(self, tmp_path: Path) -> ServerTrust:
        config = config_for(tmp_path, FakeServer(root=ROOT), servers=["s:1"])
        trust = ServerTrust(config=config, clock=SystemClock(), store=open_store(config))
        await trust.start()
        return trust

    async def test_the_server_and_nobody_else(self, trust: ServerTrust) -> None:
        assert str(trust.verify_server([leaf_of(ROOT, SERVER_ID)]).id) == SERVER_ID
        for name in ("spiffe://example.org/web", "spiffe://example.org/spire/agent/join_token/t", f"{SERVER_ID}/x"):
            with pytest.raises(BurgeeError) as caught:
                trust.verify_server([leaf_of(ROOT, name)])
            assert caught.value.reason == "SERVER_ID_MISMATCH"

    async def test_the_held_bundle_outlives_a_restart(self, trust: ServerTrust, tmp_path: Path) -> None:
        newer = fresh_root("newer").bundle(TD)
        trust.update(newer)
        (tmp_path / "bundle.pem").unlink()
        config = config_for(tmp_path, FakeServer(root=ROOT), servers=["s:1"])
        again = ServerTrust(config=config, clock=SystemClock(), store=open_store(config))
        await again.start()
        assert again.bundle == newer

    async def test_an_empty_or_foreign_bundle_changes_nothing(self, trust: ServerTrust) -> None:
        before, calls = trust.bundle, []
        trust.on_change(lambda: calls.append(1))
        trust.update(TrustBundle(trust_domain=TD))
        trust.update(fresh_root("other").bundle(OTHER))
        assert trust.bundle == before
        assert calls == []


def rotate_twice(server: FakeServer) -> TrustBundle:
    """The root that an absent agent knows is gone from the bundle."""
    server.root = fresh_root("third", key=key("P-256", "third"))
    return server.trust_bundle


async def asleep(server: FakeServer, node: Node) -> None:
    """The agent runs once, then is off while the root is rotated twice."""
    async with running(node):
        await until(lambda: node.feed.snapshots == 1)
    await server.stop()
    rotate_twice(server)
    await server.start()


class TestRebootstrap:
    async def test_auto_heals_through_the_bundle_file(self, tmp_path: Path, server: FakeServer) -> None:
        server.reattestable = True
        await asleep(server, Node(config_for(tmp_path, server), Proof(b"t1", again=True)))
        node = Node(config_for(tmp_path, server), Proof(b"t1", again=True))
        async with running(node):
            await until(lambda: node.reason == "SERVER_UNTRUSTED")
            write_bundle(tmp_path / "bundle.pem", server.trust_bundle)
            await until(lambda: node.feed.snapshots == 1, seconds=25)
            await until(lambda: node.condition.state is State.OK)
            assert node.trust.bundle is not None
            assert node.trust.bundle.x509_authorities == server.trust_bundle.x509_authorities
            assert node.identity.svid is not None

    async def test_auto_heals_through_the_bundle_url(self, tmp_path: Path, server: FakeServer, site: Site) -> None:
        server.reattestable = True
        site.content = format_pem(server.trust_bundle).encode()
        config = config_for(tmp_path, server, trust={"bundle_url": site.url})
        await asleep(server, Node(config, Proof(b"t1", again=True)))
        site.content = format_spiffe_bundle(server.trust_bundle).encode()
        node = Node(config, Proof(b"t1", again=True))
        async with running(node):
            await until(lambda: node.condition.state is State.OK and node.feed.snapshots == 1, seconds=25)

    async def test_never_stays_degraded_and_says_what_to_do(self, tmp_path: Path, server: FakeServer) -> None:
        server.reattestable = True
        config = config_for(tmp_path, server, rebootstrap="never")
        await asleep(server, Node(config, Proof(b"t1", again=True)))
        write_bundle(tmp_path / "bundle.pem", server.trust_bundle)
        node = Node(config, Proof(b"t1", again=True))
        async with running(node):
            await until(lambda: node.reason == "SERVER_UNTRUSTED")
            await asyncio.sleep(0.5)
            assert node.condition.state is State.DEGRADED
            assert node.condition.problem is not None
            assert "rebootstrap: auto" in node.condition.problem.hint
            assert node.feed.snapshots == 0

    async def test_a_one_time_token_heals_with_a_new_one(self, tmp_path: Path, server: FakeServer) -> None:
        """The SVID hangs on a root that is gone, and a join token works once: a new token is all it takes."""
        await asleep(server, Node(config_for(tmp_path, server), Proof(b"t1")))
        write_bundle(tmp_path / "bundle.pem", server.trust_bundle)
        proof = Proof(b"t1")
        node = Node(config_for(tmp_path, server), proof)
        async with running(node):
            await until(lambda: node.reason == "AGENT_SVID_UNTRUSTED", seconds=25)
            assert "refused" in node.detail
            server.tokens.add("t2")
            proof.payloads.append(b"t2")
            proof.payloads.pop(0)
            await until(lambda: node.condition.state is State.OK and node.feed.snapshots == 1, seconds=25)

    async def test_a_source_that_does_not_vouch_for_the_server_is_not_adopted(
        self, tmp_path: Path, server: FakeServer
    ) -> None:
        """An impostor's server does not make the agent change its trust to some other bundle."""
        config = config_for(tmp_path, server)
        clock = SystemClock()
        trust = ServerTrust(config=config, clock=clock, store=open_store(config))
        await trust.start()
        before = trust.bundle
        write_bundle(tmp_path / "bundle.pem", fresh_root("unrelated", key=key("P-256", "unrelated")).bundle(TD))
        impostor = leaf_of(fresh_root("impostor", key=key("P-256", "impostor")), SERVER_ID)
        with pytest.raises(BurgeeError) as caught:
            trust.verify_server([impostor])
        assert not await trust.heal(caught.value, [impostor])
        assert trust.bundle == before


def believe(server: FakeServer, *authorities: Authority, sequence: int) -> TrustBundle:
    """From now on the server says that these are the roots."""
    roots = tuple(X509Authority(certificate=authority.der) for authority in authorities)
    server.bundle = TrustBundle(trust_domain=TD, x509_authorities=roots, sequence_number=sequence)
    return server.bundle


async def restart(server: FakeServer, root: Authority) -> None:
    """With a certificate of its own that `root` signed."""
    await server.stop()
    server.root = root
    await server.start()


class TestRollback:
    """A root left the bundle before its end, because somebody has its key; an old copy of the bundle still has it."""

    OLD, NEW = (fresh_root(name, key=key("P-256", name)) for name in ("old", "new"))

    async def seen(self, server: FakeServer, config: AgentConfig) -> None:
        """The agent saw the old root go, and is off again."""
        server.reattestable = True
        await restart(server, self.OLD)
        node = Node(config, Proof(b"t1", again=True))
        async with running(node):
            await until(lambda: node.feed.snapshots == 1)
            believe(server, self.OLD, self.NEW, sequence=2)
            await server.push_bundle()
            await until(lambda: node.trust.bundle == server.bundle)
            await restart(server, self.NEW)
            await until(lambda: node.client.connected, seconds=25)
            believe(server, self.NEW, sequence=3)
            await server.push_bundle()
            await until(lambda: node.trust.bundle == server.bundle)

    async def impostor(self, server: FakeServer) -> None:
        """Somebody who has the old root's key sits where the server was."""
        believe(server, self.OLD, sequence=9)
        await restart(server, self.OLD)
        server.calls.clear()

    @pytest.mark.parametrize("rebootstrap", ["auto", "always"])
    async def test_an_old_bundle_file_does_not_bring_it_back(
        self, tmp_path: Path, server: FakeServer, rebootstrap: str
    ) -> None:
        write_bundle(tmp_path / "bundle.pem", self.OLD.bundle(TD))
        config = config_for(tmp_path, server, rebootstrap=rebootstrap)
        await self.seen(server, config)
        held = believe(server, self.NEW, sequence=3)
        await self.impostor(server)
        node = Node(config, Proof(b"t1", again=True))
        async with running(node):
            await until(lambda: node.reason == "BUNDLE_ROLLBACK")
            assert str(tmp_path / "bundle.pem") in node.detail
            assert node.condition.problem is not None
            assert "state/bundle.sealed" in node.condition.problem.hint
            assert node.trust.bundle == node.store.load_bundle() == held
            assert server.calls == []
            believe(server, self.NEW, sequence=3)
            await restart(server, self.NEW)
            await until(lambda: node.condition.state is State.OK, seconds=25)

    async def test_what_else_the_source_offers_is_adopted_without_it(self, tmp_path: Path, server: FakeServer) -> None:
        third = fresh_root("third", key=key("P-256", "third"))
        write_bundle(tmp_path / "bundle.pem", self.OLD.bundle(TD))
        config = config_for(tmp_path, server)
        await self.seen(server, config)
        write_bundle(tmp_path / "bundle.pem", believe(server, self.OLD, third, sequence=4))
        believe(server, third, sequence=5)
        await restart(server, third)
        trust = ServerTrust(config=config, clock=SystemClock(), store=open_store(config))
        await trust.start()
        chain = [leaf_of(third, SERVER_ID)]
        with pytest.raises(BurgeeError) as caught:
            trust.verify_server(chain)
        assert await trust.heal(caught.value, chain)
        assert trust.bundle is not None
        assert [a.certificate for a in trust.bundle.x509_authorities] == [third.der]
        trust.verify_server(chain)
        with pytest.raises(BurgeeError):
            trust.verify_server([leaf_of(self.OLD, SERVER_ID)])

    async def test_nor_does_the_next_server_that_answers(self, tmp_path: Path, server: FakeServer) -> None:
        """Even where the first that answers is believed again and again, it is not believed with that root."""
        config = config_for(tmp_path, server, trust={"insecure_bootstrap": True}, rebootstrap="always")
        await self.seen(server, config)
        await self.impostor(server)
        node = Node(config, Proof(b"t1", again=True))
        async with running(node):
            await until(lambda: node.reason == "BUNDLE_ROLLBACK", seconds=25)
            assert set(server.calls) == {"GetBundle"}
            assert node.trust.bundle is None
            believe(server, self.NEW, sequence=3)
            await restart(server, self.NEW)
            await until(lambda: node.condition.state is State.OK, seconds=25)

    async def test_a_server_that_no_bundle_vouches_for_is_asked_for_one_and_nothing_else(
        self, tmp_path: Path, server: FakeServer
    ) -> None:
        """With `insecure_bootstrap` the connection that carries the agent's SVID is no place for first trust."""
        config = config_for(tmp_path, server, trust={"insecure_bootstrap": True})
        trust = ServerTrust(config=config, clock=SystemClock(), store=open_store(config))
        await trust.start()
        chain = [leaf_of(server.root, SERVER_ID)]
        assert trust.verify_server(chain, first=True)
        with pytest.raises(BurgeeError) as caught:
            trust.verify_server(chain)
        assert caught.value.reason == "NO_TRUST_BUNDLE"

    async def test_no_proof_is_shown_to_it(self, tmp_path: Path, server: FakeServer) -> None:
        """Where the bundle is dropped while the agent attests, the next server that answers gets nothing of it."""
        config = config_for(tmp_path, server, trust={"insecure_bootstrap": True}, rebootstrap="always")
        trust = ServerTrust(config=config, clock=SystemClock(), store=open_store(config))
        await trust.start()
        with pytest.raises(BurgeeError) as caught:
            await NodeCalls(config=config, trust=trust, clock=SystemClock()).attest("join_token", Proof(b"t1"))
        assert caught.value.reason == "NO_TRUST_BUNDLE"
        assert server.calls == []
        assert server.tokens == {"t1"}


class TestInsecure:
    async def test_the_first_server_is_believed_and_then_held_to(self, tmp_path: Path, server: FakeServer) -> None:
        config = config_for(tmp_path, server, trust={"insecure_bootstrap": True})
        node = Node(config, Proof(b"t1"))
        async with running(node):
            await until(lambda: node.feed.snapshots == 1)
            assert node.trust.bundle == server.trust_bundle
            assert server.calls.index("GetBundle") < server.calls.index("AttestAgent")

    async def test_the_id_is_checked_all_the_same(self, tmp_path: Path, server: FakeServer) -> None:
        await server.stop()
        server.server_id = "spiffe://example.org/web"
        await server.start()
        node = Node(config_for(tmp_path, server, trust={"insecure_bootstrap": True}), Proof(b"t1"))
        async with running(node):
            await until(lambda: node.reason == "SERVER_ID_MISMATCH")
        assert server.calls == []

    @pytest.mark.parametrize(("hours", "reason"), [(-3, "SVID_NOT_YET_VALID"), (9000, "SVID_EXPIRED")])
    async def test_a_clock_that_is_wrong_is_told_with_both_times(
        self, tmp_path: Path, server: FakeServer, hours: int, reason: str
    ) -> None:
        class Wrong(SystemClock):
            def now(self) -> datetime:
                return super().now() + timedelta(hours=hours)

        clock = Wrong()
        node = Node(config_for(tmp_path, server, trust={"insecure_bootstrap": True}), Proof(b"t1"), clock=clock)
        async with running(node):
            await until(lambda: node.reason == reason)
            problem = node.condition.problem
            assert problem is not None
            assert f"the clock here says {clock.now().isoformat()[:13]}" in problem.detail
            assert re.search(r"(valid before|expired at) 20\d\d-", problem.detail)
        assert server.calls == []

    async def test_a_bundle_that_does_not_vouch_for_its_own_server_is_refused(
        self, tmp_path: Path, server: FakeServer
    ) -> None:
        server.bundle = fresh_root("another", key=key("P-256", "another")).bundle(TD)
        node = Node(config_for(tmp_path, server, trust={"insecure_bootstrap": True}), Proof(b"t1"))
        async with running(node):
            await until(lambda: node.condition.state is State.DEGRADED)
            assert node.trust.bundle is None
        assert "AttestAgent" not in server.calls

    async def test_auto_does_not_repeat_it_and_always_does(self, tmp_path: Path, server: FakeServer) -> None:
        server.reattestable = True
        config = config_for(tmp_path, server, trust={"insecure_bootstrap": True})
        await asleep(server, Node(config, Proof(b"t1", again=True)))
        node = Node(config, Proof(b"t1", again=True))
        async with running(node):
            await until(lambda: node.reason == "SERVER_UNTRUSTED")
            assert "always" in (node.condition.problem.hint if node.condition.problem else "")
        config = config_for(tmp_path, server, trust={"insecure_bootstrap": True}, rebootstrap="always")
        node = Node(config, Proof(b"t1", again=True))
        async with running(node):
            await until(lambda: node.condition.state is State.OK and node.feed.snapshots == 1, seconds=25)
