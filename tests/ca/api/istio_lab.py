"""Istio's clients and a stand-in of their cluster's API, for the tests of the CA that they call."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.errors import BurgeeError
from tests.support.istio_client import (
    IstioClient,
    Key,
)
from tests.support.kube_stand_in import KubeStandIn, Object
from tests.support.server import RunningServer

DNS = "burgee-istio.burgee.svc"
WEB = "spiffe://example.org/ns/shop/sa/web"
METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


class Api(KubeStandIn):
    """Lists pods of a namespace by node, too."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Object]:
        where = urlsplit(path)
        if method == "GET" and where.path.endswith("/pods") and "fieldSelector" in where.query:
            if refused := [s for (m, prefix), s in self.refuse.items() if m == "LIST" and path.startswith(prefix)]:
                return refused[0], {"kind": "Status", "message": "the stand-in was told to refuse"}
            (selector,) = parse_qs(where.query)["fieldSelector"]
            node = selector.removeprefix("spec.nodeName=")
            pods = [o for p, o in self.objects.items() if p.startswith(f"{where.path}/") and _node(o) == node]
            return 200, {"metadata": {"resourceVersion": "1"}, "items": pods}
        return super().answer(method, path, body)


def _node(pod: Object) -> str:
    return str(pod["spec"]["nodeName"])


def istio(api: KubeStandIn, *, cluster: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    one = {
        "kube_config_file": str(api.kubeconfig()),
        "namespaces": ["shop", "lab"],
        "impersonators": ["istio-system/ztunnel"],
        **(cluster or {}),
    }
    return {
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "dns_names": [DNS, "localhost"],
        "clusters": {"Kubernetes": one},
        **changes,
    }


def client_of(server: RunningServer, name: str = DNS) -> IstioClient:
    assert server.server.istio is not None
    roots = b"".join(x509.load_der_x509_certificate(root).public_bytes(Encoding.PEM) for root in server.roots)
    return IstioClient(server.server.istio.address, roots, name)


def token_of(api: Api, namespace: str = "shop", account: str = "web", node: str = "n1", **fields: Any) -> str:
    pod = api.pod(namespace, f"{account}-1", node=node, account=account)
    return api.token_for(pod, **({"audience": "istio-ca"} | fields))


def ztunnel(api: Api, node: str = "n1") -> str:
    return token_of(api, "istio-system", "ztunnel", node)


def fault(server: RunningServer) -> str:
    """What was behind the latest refusal, for administrators."""
    latest = next(iter(server.server.attestation.ring))
    assert latest.attestor == "istio"
    assert latest.error is not None
    cause = latest.error.__cause__
    return cause.reason if isinstance(cause, BurgeeError) else latest.error.reason


def life(leaf: x509.Certificate) -> float:
    return (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() - 10


def holds_key(leaf: x509.Certificate, key: Key) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return leaf.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
