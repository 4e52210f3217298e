"""What a Kubernetes API server answers about tokens, pods and nodes, without Kubernetes: over TLS, in a thread.

Its words are those of the real one (1.37): `tests/attestor/node/test_k8s_psat_real.py` asks both the same. As a program
(`python -m tests.support.kube_stand_in FOLDER`) it serves one attestable pod until its standard input ends.
"""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tests.support.openbao_mounts import sign_es256
from tests.support.tls_ca import TlsCa

Object = dict[str, Any]
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
EXTRA = "authentication.kubernetes.io/"


class KubeStandIn:
    """Holds `objects` by path; `refuse` maps (method, beginning of a path) to a status to answer with instead.

    `asked` is what was asked for, `reviewed` each token. `change` may put another status into a TokenReview's answer.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.refuse: dict[tuple[str, str], int] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.reviewed: list[str] = []
        self.change: Object = {}
        self.directory = Path(tempfile.mkdtemp(prefix="bg-kube-"))
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self.ca = TlsCa("Kubernetes stand-in")
        self.ca_file = self.directory / "ca.pem"
        self.ca_file.write_bytes(self.ca.pem)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.socket = self._tls().wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self._server.server_port}"

    def start(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, **user: Any) -> Path:
        """A kubeconfig that leads here, with a token unless another way in is given."""
        path = self.directory / f"{uuid.uuid4()}.yaml"
        values = {
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": "me", "user": user or {"token": "the-servers-own"}}],
        }
        path.write_text(yaml.safe_dump(values))
        return path

    def node(self, name: str, *, labels: Mapping[str, str] | None = None) -> Object:
        return self._keep(f"/api/v1/nodes/{name}", {"name": name}, labels)

    def pod(
        self,
        namespace: str,
        name: str,
        *,
        node: str,
        account: str = "default",
        labels: Mapping[str, str] | None = None,
    ) -> Object:
        """A running pod."""
        pod = self._keep(f"/api/v1/namespaces/{namespace}/pods/{name}", {"name": name, "namespace": namespace}, labels)
        pod["spec"] = {"serviceAccountName": account, "nodeName": node}
        pod["status"] = {"phase": "Running", "hostIP": "10.1.2.3"}
        return pod

    def token_for(self, pod: Object, audience: str = "spire-server", seconds: int = 600) -> str:
        """As the real one's, bound to the pod and to its node."""
        meta, account = pod["metadata"], pod["spec"]["serviceAccountName"]
        node = self.objects.get(f"/api/v1/nodes/{pod['spec']['nodeName']}", {"metadata": {"name": "?", "uid": "?"}})
        bound = {
            "namespace": meta["namespace"],
            "serviceaccount": {"name": account, "uid": "sa-uid"},
            "pod": {"name": meta["name"], "uid": meta["uid"]},
            "node": {"name": node["metadata"]["name"], "uid": node["metadata"]["uid"]},
        }
        now = int(time.time())
        claims = {
            "iss": "https://stand-in.test",
            "sub": f"system:serviceaccount:{meta['namespace']}:{account}",
            "aud": [audience],
            "iat": now,
            "nbf": now,
            "exp": now + seconds,
            "kubernetes.io": bound,
        }
        return sign_es256(claims, self.key)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Object]:
        for (refused_method, prefix), status in self.refuse.items():
            if method == refused_method and path.startswith(prefix):
                return status, {"kind": "Status", "message": "the stand-in was told to refuse"}
        if method == "POST" and path == REVIEWS:
            return 201, json.loads(body) | {"status": self._review(json.loads(body)["spec"]) | self.change}
        if method == "GET" and path in self.objects:
            return 200, self.objects[path]
        return 404, {"kind": "Status", "message": "not found"}

    def _review(self, spec: Object) -> Object:
        self.reviewed.append(spec["token"])
        claims = self._verified(spec["token"])
        if claims is None:
            return {"user": {}, "error": "invalid bearer token"}
        if claims["exp"] < time.time():
            return {"user": {}, "error": "[invalid bearer token, service account token has expired]"}
        common = [a for a in spec["audiences"] if a in claims["aud"]]
        if not common:
            return {"user": {}, "error": "[invalid bearer token, token audiences are invalid for the target audiences]"}
        bound = claims["kubernetes.io"]
        names = {f"{EXTRA}{kind}-{key}": [bound[kind][key]] for kind in ("pod", "node") for key in ("name", "uid")}
        user = {
            "username": claims["sub"],
            "uid": bound["serviceaccount"]["uid"],
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{bound['namespace']}"],
            "extra": names,
        }
        return {"authenticated": True, "user": user, "audiences": common}

    def _verified(self, token: str) -> Object | None:
        try:
            head, claims, signature = token.split(".")
            raw = _decode(signature)
            der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
            self.key.public_key().verify(der, f"{head}.{claims}".encode(), ec.ECDSA(hashes.SHA256()))
            value: Object = json.loads(_decode(claims))
        except (ValueError, InvalidSignature):
            return None
        return value

    def _keep(self, path: str, meta: Object, labels: Mapping[str, str] | None) -> Object:
        self.objects[path] = {"metadata": {**meta, "uid": str(uuid.uuid4()), "labels": dict(labels or {})}}
        return self.objects[path]

    def _tls(self) -> ssl.SSLContext:
        certificate, key = self.directory / "tls.pem", self.directory / "tls.key"
        self.ca.server("127.0.0.1").write(certificate, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(self.ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context


def _handler(api: KubeStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            api.asked.append((self.command, self.path, self._who()))
            status, value = api.answer(self.command, self.path, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def _who(self) -> str:
            """The bearer token, else the common name of the client's certificate."""
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            certificate = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
            names: Any = (certificate or {}).get("subject", ())
            return token or next((value for part in names for key, value in part if key == "commonName"), "")

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def main() -> None:
    folder = Path(sys.argv[1])
    api = KubeStandIn().start()
    api.node("n1", labels={"zone": "a"})
    token = api.token_for(api.pod("spire", "agent-1", node="n1", account="agent"), seconds=3600)
    (folder / "token").write_text(token)
    (folder / "kubeconfig").write_text(api.kubeconfig().read_text())
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
