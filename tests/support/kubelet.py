"""A node's kubelet as far as its list of pods goes: over TLS, for whom the API server says may see it.

Who may is asked of a `Gatekeeper`: `ClusterGate` asks a real API server (TokenReview, then SubjectAccessReview for
`nodes/pods` and for `nodes/proxy` after it, as a kubelet with fine-grained authorization does), `LocalGate` knows its
tokens. Pods are what `pods` gives, or what a real API server has bound to the node (`pods_of`).

As a program (`python -m tests.support.kubelet FOLDER PODS`) it serves so many pods until its standard input ends.
"""

from __future__ import annotations

import json
import ssl
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from tests.support.tls_ca import Certified, TlsCa

if TYPE_CHECKING:
    from tests.support.kube import Cluster

Object = dict[str, Any]
FINE, COARSE = "nodes/pods", "nodes/proxy"


class Gatekeeper(Protocol):
    """Says who holds a token (None: nobody), and by which permission he may see the pods (None: by none)."""

    def user(self, token: str) -> str | None: ...

    def permission(self, user: str) -> str | None: ...


class LocalGate:
    """`tokens` by user; `granted` has permissions by user, the fine one unless told otherwise."""

    def __init__(self, **tokens: str) -> None:
        self.tokens = {token: user for user, token in tokens.items()}
        self.granted: dict[str, str | None] = {}

    def user(self, token: str) -> str | None:
        return self.tokens.get(token)

    def permission(self, user: str) -> str | None:
        return self.granted.get(user, FINE)


class ClusterGate:
    """Asks a real API server about a token and about its user's rights on this node, as the node's kubelet does."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._cluster = cluster
        self._node = node

    def user(self, token: str) -> str | None:
        status = self._cluster.review(token, ())
        name: str = status["user"]["username"] if status.get("authenticated") else ""
        return name or None

    def permission(self, user: str) -> str | None:
        return next((name for name in (FINE, COARSE) if self._may(user, name)), None)

    def _may(self, user: str, name: str) -> bool:
        resource, subresource = name.split("/")
        wanted = {"verb": "get", "resource": resource, "subresource": subresource, "name": self._node, "version": "v1"}
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{user.split(':')[2]}", "system:authenticated"]
        spec = {"user": user, "groups": groups, "resourceAttributes": wanted}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = self._cluster.admin.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])


def pods_of(cluster: Cluster, node: str) -> Callable[[], list[Object]]:
    """What a real API server has bound to a node."""

    def ask() -> list[Object]:
        found = cluster.admin.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")
        return list(found["items"])

    return ask


class StandInKubelet:
    """`pods` is asked anew for each request. `used` has the permission by which each request was let in, `requests`
    when each came; `status` is answered instead where it is set, after `delay_seconds`; `body` replaces the pods."""

    def __init__(
        self, pods: Callable[[], Iterable[Object]], gate: Gatekeeper, *, port: int = 0, ca: TlsCa | None = None
    ) -> None:
        self.pods = pods
        self.gate = gate
        self.used: list[str] = []
        self.requests: list[float] = []
        self.status: int | None = None
        self.body: bytes | None = None
        self.delay_seconds = 0.0
        self.ca = ca or TlsCa("kubelet")
        self.server = _Server(("127.0.0.1", port), _handler(self))
        self.server.socket = _tls(self.ca.server("127.0.0.1")).wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port: int = self.server.server_port

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def config(self, directory: Path, token: str) -> Object:
        """What makes the attestor ask here with that token; `token` and `ca.pem` in the directory may be changed."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "token").write_text(token + "\n")
        (directory / "ca.pem").write_bytes(self.ca.pem)
        return {
            "kubelet_address": "127.0.0.1",
            "kubelet_port": self.port,
            "kubelet_ca_file": str(directory / "ca.pem"),
            "token_file": str(directory / "token"),
        }

    def answer(self, path: str, authorization: str) -> tuple[int, bytes]:
        self.requests.append(time.monotonic())
        time.sleep(self.delay_seconds)
        if self.status is not None:
            return self.status, b"told to refuse"
        user = self.gate.user(authorization.removeprefix("Bearer "))
        if user is None:
            return 401, b"Unauthorized"
        permission = self.gate.permission(user)
        if permission is None:
            return 403, f"Forbidden (user={user}, verb=get, resource=nodes, subresource(s)=[pods proxy])".encode()
        self.used.append(permission)
        if path != "/pods":
            return 404, b"404 page not found"
        return 200, self.body if self.body is not None else pod_list(self.pods())


def pod_list(pods: Iterable[Object]) -> bytes:
    """As a kubelet writes it."""
    return json.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(pods)}).encode()


def status(name: str, container_id: str, image: str = "registry.test/app:1", digest: str = "ab" * 32) -> Object:
    """One entry of `containerStatuses`."""
    return {
        "name": name,
        "image": image,
        "imageID": f"{image.rpartition(':')[0]}@sha256:{digest}",
        "containerID": f"containerd://{container_id}" if container_id else "",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        "lastState": {},
    }


def pod(
    name: str,
    *containers: Object,
    uid: str = "",
    namespace: str = "default",
    account: str = "default",
    labels: dict[str, str] | None = None,
    **more: Any,
) -> Object:
    """A running pod with its containers' statuses; `more` are other lists of `status`, by their names."""
    metadata: Object = {"name": name, "namespace": namespace, "uid": uid or str(uuid.uuid4()), "labels": labels or {}}
    spec = {"serviceAccountName": account, "nodeName": "node-1"}
    said = {"phase": "Running", "containerStatuses": list(containers)} | more
    return {"metadata": metadata, "spec": spec, "status": said}


def many_pods(number: int) -> list[Object]:
    """Pods of about the size that clusters have them, seven KB each."""
    made = []
    for n in range(number):
        labels = {"app.kubernetes.io/name": f"app-{n}", "pod-template-hash": f"{n:010x}", "tier": "front"}
        one = pod(f"app-{n}", status("main", f"{n:064x}"), status("proxy", f"{n + 10**6:064x}"), labels=labels)
        one["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": f"app-{n}", "uid": str(uuid.uuid4())}]
        fields = {f"f:{key}{i}": {"f:value": {}} for i in range(40) for key in ("env", "mount")}
        one["metadata"]["managedFields"] = [{"manager": "kubelet", "operation": "Update", "fieldsV1": fields}]
        env = [{"name": f"SETTING_{i}", "value": "x" * 24} for i in range(40)]
        one["spec"]["containers"] = [{"name": "main", "image": "registry.test/app:1", "env": env}]
        made.append(one)
    return made


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none of ours."""


def _tls(certified: Certified) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = Path(directory) / "tls.pem", Path(directory) / "tls.key"
        certified.write(certificate, key)
        context.load_cert_chain(certificate, key)
    return context


def _handler(kubelet: StandInKubelet) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            code, body = kubelet.answer(self.path, self.headers.get("Authorization", ""))
            self.send_response(code)
            self.send_header("Content-Type", "application/json" if code == 200 else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class _Busy(StandInKubelet):
    """Says something else each time, as where pods come and go; what it says was put together before."""

    def answer(self, path: str, authorization: str) -> tuple[int, bytes]:
        code, body = super().answer(path, authorization)
        return code, body.replace(
            b'"metadata": {}', f'"metadata": {{"resourceVersion": "{len(self.requests)}"}}'.encode(), 1
        )


def main(directory: Path, number: int) -> None:
    """Serves; tells on one line the configuration that makes the attestor ask here."""
    with _Busy(lambda: (), LocalGate(agent="secret")) as kubelet:
        kubelet.body = pod_list(many_pods(number))
        print(json.dumps(kubelet.config(directory, "secret")), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
