"""The one call of a Kubernetes API server that OpenBao makes to log a service account in: TokenReview."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.openbao import OpenBao
from tests.support.openbao_mounts import sign_es256

KIND = "TokenReview"


class TokenReview:
    """Knows the tokens that it made, and nobody else's."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._known: dict[str, dict[str, object]] = {}
        known = self._known

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                asked = json.loads(self.rfile.read(length))
                status = known.get(asked["spec"]["token"], {"authenticated": False, "error": "unknown token"})
                answer = {"apiVersion": "authentication.k8s.io/v1", "kind": KIND, "status": status}
                body = json.dumps(answer).encode()
                self.send_response(201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def configure(self, bao: OpenBao, mount: str) -> None:
        """Makes OpenBao ask here."""
        host = f"http://127.0.0.1:{self._server.server_port}"
        data = {"kubernetes_host": host, "disable_local_ca_jwt": True, "kubernetes_ca_cert": bao.ca.pem.decode()}
        bao.call("POST", f"auth/{mount}/config", data)

    def token(self, namespace: str, account: str, audience: str) -> str:
        """A bound service account token."""
        bound = {"namespace": namespace, "serviceaccount": {"name": account, "uid": "uid-1"}}
        subject = f"system:serviceaccount:{namespace}:{account}"
        claims = {"iss": "https://kubernetes.default.svc", "sub": subject, "aud": [audience], "kubernetes.io": bound}
        now = int(time.time())
        token = sign_es256({**claims, "iat": now, "nbf": now, "exp": now + 3600}, self._key)
        user = {"username": subject, "uid": "uid-1", "groups": ["system:serviceaccounts"]}
        self._known[token] = {"authenticated": True, "user": user, "audiences": [audience]}
        return token
