"""Certification requests (PKCS#10) to an upstream: checked before anything else is done, and made for rehearsals."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca.errors import InvalidArgument
from ca.identity.spiffe_id import TrustDomain

MAX_CSR_BYTES = 16 * 1024


def read_request(csr: bytes) -> x509.CertificateSigningRequest:
    """A request whose sender holds the key. Raises InvalidArgument (CSR_TOO_LONG, CSR_MALFORMED, CSR_SIGNATURE)."""
    if len(csr) > MAX_CSR_BYTES:
        raise InvalidArgument(f"CSR is longer than {MAX_CSR_BYTES} bytes", reason="CSR_TOO_LONG")
    try:
        request = x509.load_der_x509_csr(csr)
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("failed to parse CSR", reason="CSR_MALFORMED") from error
    if not proven:
        raise InvalidArgument(
            "CSR signature does not verify",
            reason="CSR_SIGNATURE",
            hint="the request must be signed with the private key of the public key that it names",
        )
    return request


def make_request(key: ec.EllipticCurvePrivateKey, trust_domain: TrustDomain) -> bytes:
    """DER. The only name that is asked for is the trust domain's ID."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
