"""What Istio's proxies send as text: a request in PEM, and the identity for which a node's proxy asks."""

from __future__ import annotations

from ca.api.istio import der_of
from ca.errors import BurgeeError, Denied, InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.issuing.csr import parse_csr
from ca.issuing.profile import ISTIO, check_identity
from ca.service.istio import account_of
from tests.fuzz.harness import Target, check_refusal, outcome

TD = TrustDomain("example.org")


def run_istio(data: bytes) -> None:
    text = data.decode("utf-8", "backslashreplace")
    request = outcome(der_of, text, refusal=InvalidArgument)
    if request is not None:
        outcome(parse_csr, request, refusal=InvalidArgument)
    try:
        account = account_of(text, TD)
    except BurgeeError as error:
        check_refusal(error, InvalidArgument, Denied)
        return
    made = SpiffeId.of(TD, f"/ns/{account.namespace}/sa/{account.name}")
    assert made == SpiffeId.parse(text)
    check_identity(ISTIO, made, TD)


TARGETS = (
    Target(
        name="istio",
        run=run_istio,
        words=(b"-----BEGIN CERTIFICATE REQUEST-----", b"-----END CERTIFICATE REQUEST-----", b"/ns/", b"/sa/", b"NEW "),
    ),
)
