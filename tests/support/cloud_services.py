"""The clouds' services on loopback: metadata services of machines, and what servers ask of the clouds' APIs."""

from __future__ import annotations

import atexit
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support import cloud_documents as documents
from tests.support.tls_ca import TlsCa


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


Answer = tuple[int, bytes]
Handle = Callable[[Request], Answer]

RUNNING = ExitStack()
"""What serves until the tests end, and is stopped while there are threads still: the interpreter would collect it
later, and wait for the thread that serves, for ever."""
atexit.register(RUNNING.close)


@dataclass(kw_only=True)
class Service:
    """One that runs; `requests` are those that it got."""

    url: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def service(handle: Handle, context: ssl.SSLContext | None = None) -> Iterator[Service]:
    running = Service(url="")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            request = Request(
                method=self.command,
                path=parts.path,
                query={name: values[0] for name, values in parse_qs(parts.query).items()},
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            )
            running.requests.append(request)
            status, body = handle(request)
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if body[:1] in b"{[" else "text/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    running.url = f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}"
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()


def tls(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """For a service at 127.0.0.1, and the file with the root above its certificate."""
    ca = TlsCa("clouds")
    ca.server("127.0.0.1").write(directory / "tls.pem", directory / "tls-key.pem")
    (directory / "tls-ca.pem").write_bytes(ca.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "tls.pem", directory / "tls-key.pem")
    return context, directory / "tls-ca.pem"


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def aws_metadata(signer: documents.Signer, **changes: Any) -> Handle:
    """Version 2: nothing without a session token."""
    content = documents.aws_document(**changes)
    payload = json.loads(documents.aws_payload(content, documents.openssl_message(content, signer, *AWS_FORM)))

    def handle(request: Request) -> Answer:
        if request.path == "/latest/api/token":
            wanted = request.method == "PUT" and "x-aws-ec2-metadata-token-ttl-seconds" in request.headers
            return (200, b"session-1") if wanted else (400, b"")
        if request.headers.get("x-aws-ec2-metadata-token") != "session-1":
            return 401, b""
        name = request.path.removeprefix("/latest/dynamic/instance-identity/")
        return (200, payload[name].encode()) if name in payload else (404, b"")

    return handle


AWS_FORM = ("-nodetach", "-stream", "-nocerts", "-md", "sha256")
"""As Amazon's messages are: content within, indefinite lengths, no certificate."""


def gcp_metadata(**changes: Any) -> Handle:
    def handle(request: Request) -> Answer:
        if request.headers.get("metadata-flavor") != "Google":
            return 403, b""
        if request.path != "/computeMetadata/v1/instance/service-accounts/default/identity":
            return 404, b""
        if request.query.get("format") != "full":
            return 400, b""
        return 200, documents.gcp_token(documents.gcp_claims(aud=request.query["audience"], **changes))

    return handle


def azure_metadata(signer: documents.Signer, *, scale_set: str = "", **changes: Any) -> Handle:
    def handle(request: Request) -> Answer:
        if request.headers.get("metadata") != "true" or "api-version" not in request.query:
            return 400, b""
        if request.path == "/metadata/instance/compute":
            return 200, as_json({"vmScaleSetName": scale_set, "vmId": documents.VM})
        if request.path != "/metadata/attested/document":
            return 404, b""
        content = documents.azure_document(request.query["nonce"], **changes)
        message = documents.azure_message(content, signer)
        return 200, as_json(json.loads(documents.azure_answer(message))["document"])

    return handle
