"""What a kubelet does about a `podCertificate` volume, done by hand at a real API server."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.kube import Cluster, Object, User, fresh

API = "/apis/certificates.k8s.io/v1"
SIGNER = "burgee.dev/svid"


def volume(signer: str = SIGNER, **fields: Any) -> Object:
    """A projected volume that asks for a certificate."""
    source = {
        "signerName": signer,
        "keyType": "ECDSAP256",
        "maxExpirationSeconds": 86400,
        "credentialBundlePath": "credentials.pem",
        **fields,
    }
    return {"name": "svid", "projected": {"sources": [{"podCertificate": source}]}}


def certified_pod(cluster: Cluster, namespace: str, *, node: str, signer: str = SIGNER, **fields: Any) -> Object:
    """A pod that mounts one, bound to the node; `fields` go to `Cluster.pod`."""
    spec = {"volumes": [volume(signer)], **fields.pop("spec", {})}
    return cluster.pod(namespace, node=node, spec=spec, **fields)


def stub(key: Any = None) -> bytes:
    """PKCS#10, DER: the key and the proof that it is held; nothing else."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    digest: Any = None if type(key).__name__ == "Ed25519PrivateKey" else hashes.SHA256()
    return builder.sign(key or ec.generate_private_key(ec.SECP256R1()), digest).public_bytes(Encoding.DER)


def request_certificate(
    cluster: Cluster,
    pod: Object,
    *,
    key: Any = None,
    signer: str = SIGNER,
    max_seconds: int = 86400,
    annotations: Mapping[str, str] | None = None,
    by: User | None = None,
    name: str = "",
    **changes: Any,
) -> str:
    """As the kubelet of the pod's node, unless told `by` whom; gives the request's path. `changes` go to its spec."""
    meta, spec = pod["metadata"], pod["spec"]
    node = cluster.admin.call("GET", f"/api/v1/nodes/{spec['nodeName']}")
    account_path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{spec['serviceAccountName']}"
    account = cluster.admin.call("GET", account_path)
    wanted = {
        "signerName": signer,
        "podName": meta["name"],
        "podUID": meta["uid"],
        "serviceAccountName": spec["serviceAccountName"],
        "serviceAccountUID": account["metadata"]["uid"],
        "nodeName": spec["nodeName"],
        "nodeUID": node["metadata"]["uid"],
        "maxExpirationSeconds": max_seconds,
        "stubPKCS10Request": base64.b64encode(stub(key)).decode(),
        **({"unverifiedUserAnnotations": dict(annotations)} if annotations else {}),
        **changes,
    }
    body = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "PodCertificateRequest",
        "metadata": {"name": name or fresh("req"), "namespace": meta["namespace"]},
        "spec": wanted,
    }
    collection = f"{API}/namespaces/{meta['namespace']}/podcertificaterequests"
    made = (by or cluster.node_user(spec["nodeName"])).call("POST", collection, body)
    return f"{collection}/{made['metadata']['name']}"


def status_of(cluster: Cluster, path: str) -> Object:
    found: Object = cluster.admin.call("GET", path).get("status") or {}
    return found


def condition(status: Object) -> tuple[str, str]:
    """Type and reason of the one condition; nothing while there is none."""
    found = status.get("conditions") or []
    assert len(found) <= 1, found
    return (found[0]["type"], found[0]["reason"]) if found else ("", "")


def answered(cluster: Cluster, path: str, *, seconds: float = 20.0) -> Object:
    """The status, when it has a condition. Blocks."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = status_of(cluster, path)
        if status.get("conditions"):
            return status
        time.sleep(0.02)
    raise AssertionError(f"{path} has no answer after {seconds} s")


def chain_of(status: Object) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(status["certificateChain"].encode())


def uri_of(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return str(uri)
