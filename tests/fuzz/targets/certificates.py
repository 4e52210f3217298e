"""X.509-SVIDs and authorities, as a peer or a federated bundle would bring them."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509

from ca.errors import InvalidArgument, Unauthenticated
from ca.identity.bundle import TrustBundle, X509Authority, authority_id
from ca.identity.issuer import load_anchor
from ca.identity.svid import X509Svid, parse_x509_svid, verify_x509_svid
from ca.issuing.issuer import IssuerTemplate
from tests.fuzz.harness import Target, outcome
from tests.fuzz.mutators import resigning
from tests.fuzz.targets.requests import NOW, TD, root

TIME = NOW + timedelta(minutes=1)
SAN = x509.SubjectAlternativeName


def run_svid(data: bytes) -> None:
    bundle = TrustBundle(trust_domain=TD, x509_authorities=(X509Authority(certificate=root()),))
    parsed = outcome(parse_x509_svid, [data], refusal=Unauthenticated)
    verified = outcome(verify_x509_svid, [data], {TD: bundle}, now=TIME, refusal=Unauthenticated)
    assert verified is None or verified == parsed
    if parsed is not None:
        _check_names(data, parsed)
    if verified is not None:
        seen = x509.load_der_x509_certificate(data)
        seen.verify_directly_issued_by(x509.load_der_x509_certificate(root()))
        assert seen.not_valid_before_utc <= TIME <= seen.not_valid_after_utc
        assert seen.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature


def _check_names(data: bytes, parsed: X509Svid) -> None:
    """cryptography accepts it too, and the ID is its only URI."""
    names = x509.load_der_x509_certificate(data).extensions.get_extension_for_class(SAN).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(parsed.id)]
    assert tuple(names.get_values_for_type(x509.DNSName)) == parsed.dns_names
    assert parsed.id.path
    assert parsed.chain == (data,)


def run_authority(data: bytes) -> None:
    """The bytes as a root of our bundle, as an intermediate of a chain, and as the certificate that we issue with."""
    load_anchor.cache_clear()
    load_anchor(data)
    outcome(authority_id, data, refusal=InvalidArgument)
    issuer = outcome(IssuerTemplate.from_certificate, data, refusal=InvalidArgument)
    if issuer is not None:
        assert issuer.trust_domain.id.path == ""
        assert len(issuer.key_id) <= len(data)
    trusted = TrustBundle(trust_domain=TD, x509_authorities=(X509Authority(certificate=data),))
    outcome(verify_x509_svid, [_leaf()], {TD: trusted}, now=TIME, refusal=Unauthenticated)
    outcome(verify_x509_svid, [_leaf(), data], {TD: trusted}, now=TIME, refusal=Unauthenticated)


def _leaf() -> bytes:
    return (SVID.corpus / "a-good-leaf").read_bytes()


_WORDS = (b"\x06\x03\x55\x1d\x1e", b"\x06\x03\x55\x1d\x24", b"\x06\x03\x55\x1d\x20", b"\x01\x01\xff", b"spiffe://")

SVID = Target(name="x509_svid", run=run_svid, mutate=resigning("root"), words=_WORDS)
TARGETS = (SVID, Target(name="authority", run=run_authority, mutate=resigning("root"), words=_WORDS))
