"""What a certificate must be to vouch for others (RFC 5280 §6.1.4), read out once per certificate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtensionOID

from ca.errors import InvalidArgument
from ca.identity.certificate import load_certificate

RSA_BITS = range(2048, 16384 + 1)
"""Weaker ones break, stronger ones are there to keep the verifier busy."""

_CURVES = ("secp256r1", "secp384r1", "secp521r1")

UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        # Any policy will do for us and none is asked for (RFC 5280 §6.1.1 c and e), so its outcome changes nothing.
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
"""Extensions that may be critical in any certificate of a path."""

_UNDERSTOOD_OF_ISSUERS = UNDERSTOOD | {ExtensionOID.NAME_CONSTRAINTS}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Issuer:
    """A certificate seen as an issuer. `flaw` is (reason, what makes it unable to vouch for anything), or None."""

    certificate: x509.Certificate
    key_identifier: bytes
    not_before: datetime
    not_after: datetime
    self_issued: bool
    path_length: int | None = None
    name_constraints: x509.NameConstraints | None = None
    flaw: tuple[str, str] | None = None


@lru_cache(maxsize=1024)
def load_anchor(der: bytes) -> Issuer | None:
    """An authority of a bundle, remembered; None for bytes that are no certificate, which vouch for nobody."""
    try:
        return load_issuer(der)
    except InvalidArgument:
        return None


def load_issuer(der: bytes) -> Issuer:
    """A certificate that a peer sent along; not remembered. Raises InvalidArgument when it cannot be parsed."""
    certificate = load_certificate(der)
    try:
        extensions = {extension.oid: extension for extension in certificate.extensions}
        self_issued = certificate.issuer == certificate.subject
        flaw = _flaw(certificate, extensions)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise InvalidArgument("malformed certificate names or extensions", reason="CERTIFICATE_MALFORMED") from error
    constraints = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    key_identifier = extensions.get(ExtensionOID.SUBJECT_KEY_IDENTIFIER)
    names = extensions.get(ExtensionOID.NAME_CONSTRAINTS)
    return Issuer(
        certificate=certificate,
        key_identifier=key_identifier.value.digest if key_identifier else b"",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        self_issued=self_issued,
        path_length=constraints.value.path_length if constraints else None,
        name_constraints=names.value if names else None,
        flaw=flaw,
    )


def unknown_critical(
    extensions: dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]],
    understood: frozenset[x509.ObjectIdentifier] = UNDERSTOOD,
) -> str:
    """Dotted OID of a critical extension that is not understood, or empty."""
    return next((e.oid.dotted_string for e in extensions.values() if e.critical and e.oid not in understood), "")


def _flaw(
    certificate: x509.Certificate, extensions: dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]]
) -> tuple[str, str] | None:
    constraints = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    # RFC 5280 §6.1.4 (k); X509-SVID §4.1 (B9)
    if constraints is None or not isinstance(constraints.value, x509.BasicConstraints) or not constraints.value.ca:
        return "SVID_ISSUER_NOT_CA", "is not a CA certificate"
    usage = extensions.get(ExtensionOID.KEY_USAGE)
    # RFC 5280 §6.1.4 (n), X509-SVID §4.3 (B14). Absent is allowed as the RFC does: roots of older PKIs have none.
    if usage is not None and isinstance(usage.value, x509.KeyUsage) and not usage.value.key_cert_sign:
        return "SVID_ISSUER_NOT_CA", "has no key usage keyCertSign"
    unknown = unknown_critical(extensions, _UNDERSTOOD_OF_ISSUERS)
    if unknown:  # RFC 5280 §6.1.4 (o)
        return "SVID_ISSUER_UNSUPPORTED", f"has the unknown critical extension {unknown}"
    if ExtensionOID.POLICY_CONSTRAINTS in extensions:  # RFC 5280 §6.1.4 (i): explicit policies are not tracked here
        return "SVID_ISSUER_UNSUPPORTED", "asks for explicit policies"
    if not _key_is_strong(certificate):
        return "SVID_WEAK", "has a weak or unknown type of key"
    return None


def _key_is_strong(certificate: x509.Certificate) -> bool:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size in RSA_BITS
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name in _CURVES
    return isinstance(key, ed25519.Ed25519PublicKey)
