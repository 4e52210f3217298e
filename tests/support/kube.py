"""A real Kubernetes API server with nodes and pods that only it knows of: no kubelet, no container runs.

    cluster = kube_lab()                       # one per test process; skips where Kubernetes was not built
    cluster.node("n1")
    pod = cluster.pod(cluster.namespace(), "agent", node="n1")
    token = cluster.token_for(pod, audience="spire-server", by=cluster.node_user("n1"))

`other_cluster()` is a second one, with an authority, an issuer and keys of its own. Whoever uses either carries
`@pytest.mark.xdist_group("kube")`, so that one worker alone starts them. Names that tests choose themselves must differ
between tests; `fresh` makes such.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import shutil
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.support.kube_programs import Etcd, Program, free_ports, need_kubernetes
from tests.support.openbao_mounts import sign_es256
from tests.support.tls_ca import TlsCa

Object = dict[str, Any]
_numbers = itertools.count(1)


def fresh(prefix: str = "t") -> str:
    """A name that no other test of this process has."""
    return f"{prefix}-{next(_numbers)}"


class Refused(Exception):
    """The API server said no; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class User:
    """Somebody with a client certificate: a `name` and its groups, as Kubernetes reads them from it."""

    def __init__(self, cluster: Cluster, name: str, *groups: str) -> None:
        self.name = name
        self.certificate = cluster.directory / f"{fresh('user')}.pem"
        self.key = self.certificate.with_suffix(".key")
        cluster.ca.client(name, *groups).write(self.certificate, self.key)
        context = ssl.create_default_context(cafile=str(cluster.ca_file))
        context.load_cert_chain(self.certificate, self.key)
        self.http = httpx.Client(base_url=cluster.url, verify=context, timeout=30, trust_env=False)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Object:
        """One request. Raises Refused."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        content = None if body is None else json.dumps(body).encode()
        answer = self.http.request(method, path, content=content, headers={"Content-Type": kind})
        value: Object = answer.json() if answer.content.startswith(b"{") else {}
        if answer.status_code >= 400:
            raise Refused(answer.status_code, value.get("message") or answer.text)
        return value


class Cluster:
    """One API server. `admin` may do everything; methods that ask use it unless told `by` whom."""

    def __init__(self, etcd_url: str, name: str) -> None:
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix="bg-kube-"))
        self.ca = TlsCa(f"Kubernetes {name}")
        self.ca_file = self.directory / "ca.pem"
        self.ca_file.write_bytes(self.ca.pem)
        self.port = free_ports(1)[0]
        self.url = f"https://127.0.0.1:{self.port}"
        self.issuer = f"https://{name}.kube.test"
        self._etcd_url = etcd_url
        self._token_key = ec.generate_private_key(ec.SECP256R1())
        self._users: dict[str, User] = {}
        self.admin = User(self, "admin", "system:masters")

    def start(self) -> Self:
        """Returns when it is ready, its own roles included."""
        self.ca.server("127.0.0.1").write(self.directory / "tls.pem", self.directory / "tls.key")
        private, public = self.directory / "sa.key", self.directory / "sa.pub"
        private.write_bytes(
            self._token_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        public.write_bytes(self._token_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        self._program = Program("kube-apiserver", self.directory, self._arguments())
        self._program.until(self._ready, "become ready")
        return self

    def stop(self) -> None:
        """It answers nobody until `start` is called again; what it kept is in etcd."""
        self._program.stop()

    def close(self) -> None:
        """Before its etcd: the other way round it would wait for that."""
        self._program.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    # Who

    def user(self, name: str, *groups: str) -> User:
        if name not in self._users:
            self._users[name] = User(self, name, *groups)
        return self._users[name]

    def node_user(self, node: str) -> User:
        """As whom the kubelet of a node comes."""
        return self.user(f"system:node:{node}", "system:nodes")

    def kubeconfig(self, user: User | None = None) -> Path:
        """A file that lets somebody in by client certificate; the admin unless told whom."""
        who = user or self.admin
        return self._kubeconfig({"client-certificate": str(who.certificate), "client-key": str(who.key)})

    def token_kubeconfig(self, token_file: Path) -> Path:
        """A file that lets in whoever holds the token in that file."""
        return self._kubeconfig({"tokenFile": str(token_file)})

    # Objects

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates whatever it is, or leaves the one of that name."""
        for value in objects:
            prefix = "/api/v1" if value["apiVersion"] == "v1" else f"/apis/{value['apiVersion']}"
            namespace = value["metadata"].get("namespace")
            where = f"/namespaces/{namespace}" if namespace else ""
            try:
                self.admin.call("POST", f"{prefix}{where}/{value['kind'].lower()}s", value)
            except Refused as refused:
                if refused.status != 409:
                    raise

    def namespace(self, name: str = "", *, labels: Mapping[str, str] | None = None) -> str:
        """A new one with the service account `default`, which a controller would have made. Gives its name."""
        name = name or fresh("ns")
        self.apply(_object("v1", "Namespace", name, labels=labels))
        self.service_account(name, "default")
        return name

    def service_account(self, namespace: str, name: str) -> None:
        self.apply(_object("v1", "ServiceAccount", name, namespace))

    def node(self, name: str, *, labels: Mapping[str, str] | None = None) -> Object:
        """A node without a machine."""
        self.apply(_object("v1", "Node", name, labels=labels))
        return self.admin.call("GET", f"/api/v1/nodes/{name}")

    def delete_node(self, name: str) -> None:
        self.admin.call("DELETE", f"/api/v1/nodes/{name}")

    def pod(
        self,
        namespace: str,
        name: str = "",
        *,
        node: str = "",
        account: str = "default",
        labels: Mapping[str, str] | None = None,
        audience: str = "spire-server",
        spec: Mapping[str, Any] | None = None,
        status: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Object:
        """A pod that is said to run, bound to `node` where one is named; gives it as the API server has it.

        Its projected token is for `audience`: a kubelet may ask for tokens for audiences that a pod mounts, no others.
        `spec`, `status` and `metadata` override what is there, key by key.
        """
        value = _object("v1", "Pod", name or fresh("pod"), namespace, labels=labels)
        value["metadata"] |= metadata or {}
        containers = [{"name": "main", "image": "registry.test/main:1"}]
        token = {"serviceAccountToken": {"audience": audience, "expirationSeconds": 600, "path": "token"}}
        volumes = [{"name": "token", "projected": {"sources": [token]}}]
        given = {"serviceAccountName": account, "containers": containers, "volumes": volumes}
        value["spec"] = given | dict(spec or {})
        if node:
            value["spec"]["nodeName"] = node
        made = self.admin.call("POST", f"/api/v1/namespaces/{namespace}/pods", value)
        said = {"phase": "Running", "hostIP": "10.1.2.3", "podIP": "10.244.0.9"} if node else {}
        return self.set_status(made, **(said | dict(status or {})))

    def set_status(self, pod: Object, **status: Any) -> Object:
        """What a kubelet would report; gives the pod as it is then."""
        return self.admin.call("PATCH", f"{path_of(pod)}/status", {"status": status})

    def relabel(self, pod: Object, **labels: str | None) -> Object:
        return self.admin.call("PATCH", path_of(pod), {"metadata": {"labels": labels}})

    def delete_pod(self, pod: Object, *, grace_seconds: int = 0) -> None:
        """At once, as when its kubelet has reported it ended; with a grace it stays, marked."""
        self.admin.call("DELETE", f"{path_of(pod)}?gracePeriodSeconds={grace_seconds}")

    # Tokens

    def token_for(
        self, pod: Object, audience: str = "spire-server", seconds: int = 600, *, by: User | None = None
    ) -> str:
        """A projected token of the pod's service account, bound to the pod. 600 seconds are Kubernetes' least."""
        bound = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        }
        account = pod["spec"]["serviceAccountName"]
        return self.account_token(pod["metadata"]["namespace"], account, audience, seconds, bound=bound, by=by)

    def account_token(
        self,
        namespace: str,
        account: str,
        audience: str = "spire-server",
        seconds: int = 600,
        *,
        bound: Mapping[str, str] | None = None,
        by: User | None = None,
    ) -> str:
        """A token of a service account, bound to nothing unless told to what."""
        spec: Object = {"audiences": [audience], "expirationSeconds": seconds}
        if bound is not None:
            spec["boundObjectRef"] = bound
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        token: str = (by or self.admin).call("POST", path, request)["status"]["token"]
        return token

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token by this cluster's own key, whatever it says: an expired one need not be waited for."""
        return sign_es256(claims, self._token_key)

    def review(self, token: str, audiences: Sequence[str] = ("spire-server",)) -> Object:
        """The status of a TokenReview."""
        spec = {"token": token, "audiences": list(audiences)}
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        status: Object = self.admin.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)["status"]
        return status

    def _ready(self) -> bool:
        try:
            return self.admin.http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def _kubeconfig(self, user: Mapping[str, str]) -> Path:
        path = self.directory / f"{fresh('kubeconfig')}.yaml"
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        values = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "me", "user": dict(user)}],
        }
        path.write_text(yaml.safe_dump(values))
        return path

    def _arguments(self) -> list[str]:
        return [
            f"--etcd-servers={self._etcd_url}",
            f"--etcd-prefix=/{self.name}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--tls-cert-file=tls.pem",
            "--tls-private-key-file=tls.key",
            "--client-ca-file=ca.pem",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            f"--service-account-issuer={self.issuer}",
            f"--api-audiences={self.issuer}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",  # as every distribution has it
        ]


@functools.cache
def _etcd() -> Etcd:
    need_kubernetes()
    etcd = Etcd()
    atexit.register(etcd.close)
    return etcd


def _started(name: str) -> Cluster:
    cluster = Cluster(_etcd().url, name)
    atexit.register(cluster.close)  # runs before etcd's, which was registered before it
    return cluster.start()


@functools.cache
def kube_lab() -> Cluster:
    """The cluster of this test process; started by the first who asks, gone when the process ends."""
    return _started("demo")


@functools.cache
def other_cluster() -> Cluster:
    """Another one, whose tokens mean nothing to the first."""
    return _started("other")


def path_of(value: Object) -> str:
    """Where a pod is."""
    meta = value["metadata"]
    return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"


def _object(
    version: str, kind: str, name: str, namespace: str = "", *, labels: Mapping[str, str] | None = None
) -> Object:
    meta: Object = {"name": name, "labels": dict(labels or {})}
    if namespace:
        meta["namespace"] = namespace
    return {"apiVersion": version, "kind": kind, "metadata": meta}
