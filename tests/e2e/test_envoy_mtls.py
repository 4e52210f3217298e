"""Two real Envoys in mTLS through our SDS: identities seen, rotation under load, restarts, strangers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import httpx
import pytest

from ca.up.envoy_config import INBOUND, OUTBOUND, Peering, inbound, outbound
from tests.support.envoys import Envoy
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until

pytestmark = [pytest.mark.real("envoy"), pytest.mark.xdist_group("envoy")]
SVID_SECONDS = 10


class _Application(BaseHTTPRequestHandler):
    """Answers every GET; Envoy speaks HTTP/1.1 to it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def address_string(self) -> str:
        return "envoy"

    def log_message(self, *_: object) -> None:
        """Quiet: the test asks the client."""


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


class Mesh:
    """web → web's Envoy ══ mTLS ══► api's Envoy → application."""

    def __init__(self, nodes: Pair) -> None:
        self.pair = nodes
        home = nodes.home
        self.web, self.api = Envoy("web", home / "web"), Envoy("api", home / "api")
        for envoy in (self.web, self.api):
            nodes.create_entry(f"/{envoy.name}", envoy.selector, x509_svid_ttl=SVID_SECONDS)
        socket_path = home / "app.sock"
        self.application = _Server(str(socket_path), _Application)
        threading.Thread(target=self.application.serve_forever, daemon=True).start()
        self.api.start(inbound(self.peering("api", "web"), socket_path))
        self.inner = self.api.port(INBOUND)
        self.web.start(outbound(self.peering("web", "api"), self.inner))
        self.outer = self.web.port(OUTBOUND)
        until("the first request passes", lambda: self.get().status_code == 200)

    def peering(self, own: str, peer: str, *, directory: Path | None = None) -> Peering:
        return Peering(
            name=own,
            own_id=f"spiffe://{TRUST_DOMAIN}/{own}",
            peer_id=f"spiffe://{TRUST_DOMAIN}/{peer}",
            trust_domain_id=f"spiffe://{TRUST_DOMAIN}",
            workload_socket=self.pair.workload_socket,
            admin_socket=(directory or self.pair.home / own) / "admin.sock",
        )

    def get(self, port: int | None = None) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{port or self.outer}/", timeout=10)

    def close(self) -> None:
        for envoy in (self.web, self.api):
            envoy.stop()
        self.application.shutdown()
        self.application.server_close()


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with pair() as nodes:
        made = Mesh(nodes)
        try:
            yield made
        finally:
            made.close()


class _Load(threading.Thread):
    """Requests one after the other until told to stop; keeps what went wrong."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(daemon=True)
        self.mesh = mesh
        self.done = threading.Event()
        self.sent = 0
        self.failed: list[str] = []

    def run(self) -> None:
        with httpx.Client(timeout=10) as client:
            while not self.done.wait(0.005):
                self.sent += 1
                try:
                    answer = client.get(f"http://127.0.0.1:{self.mesh.outer}/")
                    if answer.status_code != 200:
                        self.failed.append(f"{answer.status_code} {answer.text}")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))

    def finish(self) -> None:
        self.done.set()
        self.join(15)
        assert self.sent > 100
        assert self.failed == []


def test_both_envoys_see_the_others_identity(mesh: Mesh) -> None:
    """The proof is each Envoy's own word, in the headers it adds."""
    answer = mesh.get()
    assert answer.status_code == 200
    assert answer.headers["x-demo-client"] == f"spiffe://{TRUST_DOMAIN}/web"
    assert answer.headers["x-demo-server"] == f"spiffe://{TRUST_DOMAIN}/api"


def test_rotation_under_load_fails_no_request(mesh: Mesh) -> None:
    """10 s SVIDs, requests all the time: several rotations on both sides and not one failed request."""
    load = _Load(mesh)
    load.start()
    for _ in range(2):
        web, api = mesh.web.serial(), mesh.api.serial()
        until("both rotate", lambda web=web, api=api: mesh.web.serial() != web and mesh.api.serial() != api, seconds=40)
    load.finish()


def test_agent_restart_under_load_fails_no_request(mesh: Mesh) -> None:
    """The agent is killed and started again; the Envoys reconnect and go on rotating."""
    load = _Load(mesh)
    load.start()
    mesh.pair.stop("agent")
    mesh.pair.start_agent()
    web, api = mesh.web.serial(), mesh.api.serial()
    until("both rotate again", lambda: mesh.web.serial() != web and mesh.api.serial() != api, seconds=60)
    load.finish()


def test_agent_restarted_without_a_server_serves_from_its_sealed_cache(mesh: Mesh) -> None:
    """Server gone, agent restarted: a new Envoy connection still gets what is valid."""
    entry = mesh.pair.create_entry("/lasting", mesh.web.selector, x509_svid_ttl=600)
    until("the entry arrived", lambda: mesh.pair.status().x509_svids >= 3)
    mesh.pair.stop("server")
    try:
        mesh.pair.stop("agent")
        mesh.pair._start("agent", "sds.agent", mesh.pair.agent_config())
        until("the agent serves", lambda: mesh.pair.status().x509_svids >= 1)
        until("Envoy has it", lambda: len(mesh.pair.sds_clients()) >= 2, seconds=40)
    finally:
        mesh.pair.start_server()
    until("the agent heals", lambda: mesh.pair.status().state == "OK", seconds=60)
    mesh.pair.delete_entry(entry)


def test_a_restarted_envoy_gets_its_certificate_at_once(mesh: Mesh) -> None:
    """A new subscription is answered although no version changed."""
    mesh.web.stop()
    mesh.web.start(outbound(mesh.peering("web", "api"), mesh.inner))
    mesh.outer = mesh.web.port(OUTBOUND)
    until("requests pass", lambda: mesh.get().status_code == 200)
    assert mesh.web.stats("init_fetch_timeout") == dict.fromkeys(mesh.web.stats("init_fetch_timeout"), 0)


def test_an_envoy_with_another_identity_is_refused(mesh: Mesh) -> None:
    """A third service has a good SVID of the same trust domain, and api's Envoy does not let it in."""
    other = Envoy("other", mesh.pair.home / "other")
    mesh.pair.create_entry("/other", other.selector, x509_svid_ttl=60)
    try:
        other.start(outbound(mesh.peering("other", "api"), mesh.inner))
        port = other.port(OUTBOUND)
        time.sleep(0.1)
        assert mesh.get(port).status_code == 503
        assert mesh.get().status_code == 200
    finally:
        other.stop()


def test_an_envoy_without_an_entry_gets_no_certificate(mesh: Mesh) -> None:
    """It waits, its name is shown to the operator, and nobody else's stream ends for it."""
    stranger = Envoy("stranger", mesh.pair.home / "stranger")
    try:
        stranger.start(outbound(mesh.peering("stranger", "api"), mesh.inner))
        shown = until(
            "the operator sees the unknown name",
            lambda: [
                resource
                for client in mesh.pair.sds_clients()
                for resource in client.resources
                if resource.name == f"spiffe://{TRUST_DOMAIN}/stranger" and resource.state == "UNKNOWN"
            ],
        )
        assert shown[0].detail
        assert mesh.get().status_code == 200
    finally:
        stranger.stop()


def test_a_nack_is_kept_in_envoys_own_words(mesh: Mesh) -> None:
    """The Envoys of the mesh have acknowledged what they were sent."""

    def states() -> set[str]:
        return {r.state for c in mesh.pair.sds_clients() if c.node_id in {"web", "api"} for r in c.resources}

    until("everything is acknowledged", lambda: states() == {"ACKED"})
