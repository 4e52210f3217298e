"""An OIDC issuer of ours over TLS: discovery, keys, and tokens as good or as bad as a test wants them."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ca.identity import base64url
from ca.identity.jwk import key_parameters
from ca.runtime.tls import load_chain
from tests.support.tls_ca import TlsCa

AUDIENCE = "burgee-test"
DISCOVERY = "/.well-known/openid-configuration"
JWKS = "/jwks"

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_numbers = itertools.count(1)


def jwk_of(key: Key, key_id: str, **members: Any) -> dict[str, Any]:
    """The public half as an issuer publishes it."""
    kind, own = key_parameters(key.public_key())
    return {**kind, **own, "kid": key_id, "use": "sig", **members}


def sign(header: str, claims: str, key: Key) -> str:
    """A compact JWS of these very texts: ES256 or RS256 by the kind of key, whatever the header says."""
    signing_input = f"{base64url.encode(header.encode())}.{base64url.encode(claims.encode())}"
    data = signing_input.encode()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    else:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return f"{signing_input}.{base64url.encode(signature)}"


def sign_with_secret(header: str, claims: str, secret: bytes) -> str:
    """HS256, as whoever takes a public key for a secret would verify it."""
    signing_input = f"{base64url.encode(header.encode())}.{base64url.encode(claims.encode())}"
    signature = hmac.new(secret, signing_input.encode(), hashlib.sha256).digest()
    return f"{signing_input}.{base64url.encode(signature)}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that believe another authority end the handshake, which is what they are tested for."""


class OidcIssuer:
    """Serves while its context lasts. `asked` counts requests by path, `headers` has the last one's; `answers`
    replaces some of them; `down` makes all of them fail with 503. `clock` gives the seconds that its tokens go by."""

    def __init__(self, *, clock: Callable[[], float] = time.time, path: str = "") -> None:
        self._clock = clock
        self.ca = TlsCa("OIDC")
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.keys: dict[str, Key] = {"key-1": self.key}
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.down = False
        self.delay_seconds = 0.0
        self._path = path
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Its issuer identifier."""
        return f"https://127.0.0.1:{self._server.server_port}{self._path}"

    def __enter__(self) -> Self:
        self._wrap()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def context(self) -> ssl.SSLContext:
        """For a client that believes this issuer's authority alone."""
        return ssl.create_default_context(cadata=self.ca.pem.decode())

    def ca_file(self, directory: Path) -> Path:
        path = directory / "issuer-ca.pem"
        path.write_bytes(self.ca.pem)
        return path

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good token; a change to None takes a claim out."""
        now = int(self._clock())
        good = {
            "iss": self.url,
            "sub": "repo:acme/shop:ref:refs/heads/main",
            "aud": AUDIENCE,
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "jti": f"token-{next(_numbers)}",
            "repository": "acme/shop",
        }
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def token(self, *, header: Mapping[str, Any] | None = None, key: Key | None = None, **changes: Any) -> str:
        """One that is good but for what is changed."""
        signer = key or self.key
        algorithm = "RS256" if isinstance(signer, rsa.RSAPrivateKey) else "ES256"
        full = {"alg": algorithm, "kid": next(iter(self.keys)), "typ": "JWT", **(header or {})}
        return sign(json.dumps(full), json.dumps(self.claims(**changes)), signer)

    def rotate(self, key_id: str) -> None:
        """From now on it signs with a new key, and publishes no other."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.keys = {key_id: self.key}

    @property
    def fetches(self) -> int:
        """How often its keys were asked for."""
        return self.asked[self._path + JWKS]

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked[path] += 1
        time.sleep(self.delay_seconds)
        if self.down:
            return 503, b"{}"
        if path in self.answers:
            return self.answers[path]
        if path == self._path + DISCOVERY:
            return 200, json.dumps({"issuer": self.url, "jwks_uri": self.url + JWKS}).encode()
        if path == self._path + JWKS:
            return 200, json.dumps({"keys": [jwk_of(key, key_id) for key_id, key in self.keys.items()]}).encode()
        return 404, b"{}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                issuer.headers[self.path] = {name.lower(): value for name, value in self.headers.items()}
                status, body = issuer.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _wrap(self) -> None:
        certified = self.ca.server("127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_chain(context, certified.pem, certified.key_pem)
        # The handshake in the connection's own thread: one that is begun and not ended must not stop the others.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
