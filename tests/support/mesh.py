"""Two services behind two real Envoys, fed by a real agent; and load on them that must not fail."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import httpx

from ca.up.envoy_config import INBOUND, OUTBOUND, Peering, inbound, outbound
from tests.support.envoys import Envoy, speaking
from tests.support.pair import TRUST_DOMAIN, Pair, until

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
    """web → web's Envoy ══ mTLS ══► api's Envoy → application. `api_type`: GRPC or DELTA_GRPC."""

    def __init__(self, nodes: Pair, api_type: str = "GRPC") -> None:
        self.pair = nodes
        self.api_type = api_type
        home = nodes.home
        self.web, self.api = Envoy("web", home / "web"), Envoy("api", home / "api")
        for envoy in (self.web, self.api):
            nodes.create_entry(f"/{envoy.name}", envoy.selector, x509_svid_ttl=SVID_SECONDS)
        socket_path = home / "app.sock"
        self.application = _Server(str(socket_path), _Application)
        threading.Thread(target=self.application.serve_forever, daemon=True).start()
        self.socket_path = socket_path
        self.start_inner(self.api, self.peering("api", "web"))
        self.inner = self.api.port(INBOUND)
        self.start_outer(self.web, self.peering("web", "api"))
        self.outer = self.web.port(OUTBOUND)
        until("the first request passes", lambda: self.get().status_code == 200)

    def start_inner(self, envoy: Envoy, peering: Peering) -> None:
        """An Envoy before the application."""
        envoy.start(speaking(self.api_type, inbound(peering, self.socket_path)))

    def start_outer(self, envoy: Envoy, peering: Peering) -> None:
        """An Envoy that calls the Envoy of api."""
        envoy.start(speaking(self.api_type, outbound(peering, self.inner)))

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


class Load(threading.Thread):
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
                        self._note(f"{answer.status_code} {answer.text}")
                except httpx.HTTPError as error:
                    self._note(repr(error))

    def _note(self, what: str) -> None:
        self.failed.append(f"{datetime.now(UTC):%H:%M:%S.%f} {what}")

    def finish(self) -> None:
        self.done.set()
        self.join(15)
        assert self.sent > 100
        some = self.failed[:2] + self.failed[-1:]
        assert not self.failed, f"{len(self.failed)} of {self.sent} failed: {some}"
