"""PodCertificateRequests (certificates.k8s.io/v1) as values: those of one signer that nobody has answered yet."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ca.errors import Denied, FailedPrecondition, InvalidArgument
from ca.identity.spiffe_id import SpiffeId
from ca.identity.text import quote
from ca.runtime.kube import object_path
from ca.runtime.kube_watch import Object, with_query

API = "/apis/certificates.k8s.io/v1"
SPIFFE_ID_ANNOTATION = "burgee.dev/spiffe-id"
"""In `userAnnotations` of the volume: which identity, where the pod is entitled to several."""
MIN_SECONDS = 3600
"""No certificate of a pod lives shorter: Kubernetes would refuse it."""
MAX_STUB_CHARACTERS = 24 << 10

_ANSWERED = frozenset({"Issued", "Denied", "Failed"})
_TEXTS = ("podName", "podUID", "serviceAccountName", "nodeName", "nodeUID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. What its `spec` says the API server has checked; the stub says whose key it is and no more."""

    namespace: str
    name: str
    uid: str
    pod_name: str
    pod_uid: str
    account: str
    node_name: str
    node_uid: str
    max_seconds: int
    stub: str
    annotations: Mapping[str, str] = field(hash=False)
    whole: Object = field(repr=False, compare=False)

    @property
    def path(self) -> str:
        return object_path(f"{API}/namespaces", self.namespace, "podcertificaterequests", self.name)

    @property
    def pod(self) -> str:
        """For people."""
        return f"{self.namespace}/{self.pod_name}"

    def csr(self) -> bytes:
        """The stub, DER. Raises FailedPrecondition STUB_MISSING, InvalidArgument CSR_MALFORMED."""
        if not self.stub:
            raise FailedPrecondition(
                "the request has no stubPKCS10Request", reason="STUB_MISSING", hint="kubelets before 1.36 send none"
            )
        try:
            if len(self.stub) > MAX_STUB_CHARACTERS:
                raise ValueError("too long")
            return base64.b64decode(self.stub, validate=True)
        except (ValueError, binascii.Error) as error:
            raise InvalidArgument("the stub is no PKCS#10 request", reason="CSR_MALFORMED") from error

    def wanted_id(self) -> SpiffeId | None:
        """The identity that the volume asks for. Raises Denied ANNOTATION_UNKNOWN, InvalidArgument SPIFFE_ID…."""
        for key in self.annotations:
            if key != SPIFFE_ID_ANNOTATION:
                raise Denied(
                    f"the annotation {quote(key)} of the volume means nothing here",
                    reason="ANNOTATION_UNKNOWN",
                    hint=f"`{SPIFFE_ID_ANNOTATION}` is the only one",
                )
        text = self.annotations.get(SPIFFE_ID_ANNOTATION)
        return None if text is None else SpiffeId.parse(text)


def list_path(signer: str) -> str:
    """Where all of a signer's are, in every namespace."""
    return with_query(f"{API}/podcertificaterequests", fieldSelector=f"spec.signerName={signer}")


def reader(signer: str) -> Callable[[Object], Request | None]:
    """Makes a request of an object; None for one that is not this signer's, or that is answered."""
    return lambda value: read_request(value, signer)


def read_request(value: Object, signer: str) -> Request | None:
    meta, spec, status = (_mapping(value, key) for key in ("metadata", "spec", "status"))
    conditions = status.get("conditions")
    if spec.get("signerName") != signer or status.get("certificateChain"):
        return None
    if isinstance(conditions, list) and any(
        isinstance(one, dict) and one.get("type") in _ANSWERED for one in conditions
    ):
        return None
    texts = [_text(spec, name) for name in _TEXTS]
    names = [_text(meta, name) for name in ("namespace", "name", "uid")]
    seconds = spec.get("maxExpirationSeconds")
    if not all(texts) or not all(names) or not isinstance(seconds, int) or isinstance(seconds, bool):
        return None  # the API server admits none of that kind
    return Request(
        namespace=names[0],
        name=names[1],
        uid=names[2],
        pod_name=texts[0],
        pod_uid=texts[1],
        account=texts[2],
        node_name=texts[3],
        node_uid=texts[4],
        max_seconds=seconds,
        stub=_text(spec, "stubPKCS10Request"),
        annotations={key: str(text) for key, text in _mapping(spec, "unverifiedUserAnnotations").items()},
        whole={**value, "metadata": {key: one for key, one in meta.items() if key != "managedFields"}},
    )


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""
