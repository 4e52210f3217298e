"""Certificates parsed once: DER in, cryptography's object out, remembered by the bytes."""

from __future__ import annotations

from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.utils import CryptographyDeprecationWarning

from ca.errors import InvalidArgument

MAX_CERTIFICATE_BYTES = 64 * 1024
"""More than any SVID or authority needs; checked before parsing."""


@lru_cache(maxsize=1024)
def load_authority(der: bytes) -> x509.Certificate:
    """An authority's certificate, remembered: handshakes meet the same few again and again.

    Raises InvalidArgument (reason CERTIFICATE_MALFORMED), also for a key or extensions that cannot be read: the
    library looks at those when asked, and an authority is of no use without them.
    """
    certificate = load_certificate(der)
    try:
        certificate.public_key()
        _ = certificate.extensions
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise InvalidArgument("malformed or unsupported authority", reason="CERTIFICATE_MALFORMED") from error
    return certificate


def load_certificate(der: bytes) -> x509.Certificate:
    """Exactly one DER certificate. Raises InvalidArgument (reason CERTIFICATE_MALFORMED)."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise InvalidArgument(
            f"certificate is longer than {MAX_CERTIFICATE_BYTES} bytes", reason="CERTIFICATE_MALFORMED"
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        serial = certificate.serial_number
    except (ValueError, TypeError, x509.InvalidVersion, CryptographyDeprecationWarning) as error:
        raise InvalidArgument("malformed certificate", reason="CERTIFICATE_MALFORMED") from error
    # The signature is whole octets: "unused bits" there would be a second spelling of one certificate, for the library
    # does not look at their number (RFC 5280 §4.1.1.3).
    if not der.endswith(b"\x00" + certificate.signature):
        raise InvalidArgument("malformed certificate signature", reason="CERTIFICATE_MALFORMED")
    if serial <= 0:  # RFC 5280 §4.1.2.2; the library only warns of it
        raise InvalidArgument("serial number of the certificate is not positive", reason="CERTIFICATE_MALFORMED")
    return certificate


def split_certificates(blob: bytes) -> list[bytes]:
    """Concatenated DER certificates, as the Workload API and SPIRE's bundles have them; what is in them is not looked
    at. Raises InvalidArgument (reason DER_MALFORMED)."""
    certificates = []
    while blob:
        end = _first_length(blob)
        certificates.append(blob[:end])
        blob = blob[end:]
    return certificates


def _first_length(blob: bytes) -> int:
    """The bytes of the SEQUENCE at the start: tag, length in short or long form, contents (X.690 §8.1)."""
    head = 2 + (blob[1] & 0x7F if len(blob) > 1 and blob[1] & 0x80 else 0)
    length = int.from_bytes(blob[2:head], "big") if head > 2 else blob[1] if len(blob) > 1 else 0
    if blob[0] != 0x30 or not length or head + length > len(blob):
        raise InvalidArgument("what should be certificates is no DER", reason="DER_MALFORMED")
    return head + length


@lru_cache(maxsize=16384)
def is_issued_by(leaf: bytes, authority: bytes) -> bool:
    """Whether the authority itself signed this certificate, both DER, with none in between; times are not looked at.

    Key identifiers tell nothing here: who signs chooses what the leaf says of its issuer.
    """
    try:
        load_certificate(leaf).verify_directly_issued_by(load_authority(authority))
    except (InvalidArgument, InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


@lru_cache(maxsize=1024)
def authority_id(certificate_der: bytes) -> str:
    """Hex of the subject key identifier, which names an X.509 authority in SPIRE's LocalAuthority API.

    A certificate without that extension gets RFC 5280 §4.2.1.2 method 1 (SHA-1 of the subjectPublicKey bits).
    Raises InvalidArgument for a malformed certificate.
    """
    certificate = load_authority(certificate_der)
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return found.value.digest.hex()
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest.hex()
