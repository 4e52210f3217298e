"""Who vouches for a TPM: the files of authorities, and a manufacturer's certificate of an endorsement key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestor.node.files import read_bounded
from ca.errors import Denied, InvalidArgument, Unauthenticated
from ca.identity.bundle_pem import parse_certificates
from ca.identity.issuer import load_anchor, load_issuer, unknown_critical
from ca.identity.path import validate_path
from ca.runtime.notes import note

EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")  # TCG EK Credential Profile §3.2.16: tcg-kp-EKCertificate

E = TypeVar("E", bound=x509.ExtensionType)


class _Untrusted(Exception):
    """Its text is for administrators."""


def read_authorities(path: Path) -> tuple[bytes, ...]:
    """DER. Raises ValueError, also for a certificate that can vouch for nobody."""
    try:
        found = parse_certificates(read_bounded(path))
        for issuer in map(load_issuer, found):
            if issuer.flaw is not None:
                raise ValueError(f"`{issuer.certificate.subject.rfc4514_string()}` in `{path}` {issuer.flaw[1]}")
    except (OSError, InvalidArgument) as error:
        why = error.detail if isinstance(error, InvalidArgument) else error.strerror
        raise ValueError(f"cannot read authorities from `{path}`: {why}") from error
    return found


def verify_endorsement(der: bytes, authorities: Sequence[bytes], now: datetime) -> x509.Certificate:
    """One of the authorities signed it itself: agents send no intermediate certificates. Raises Denied
    TPM_EK_UNTRUSTED, or InvalidArgument for what is no certificate."""
    certificate = load_issuer(der).certificate  # which reads names and extensions; that it issues nothing is meant
    try:
        _check(certificate, authorities, now)
    except _Untrusted as error:
        note("endorsement certificate", error)
        raise Denied(
            "the endorsement certificate is not from a trusted manufacturer",
            reason="TPM_EK_UNTRUSTED",
            hint="add the CA that signed it, not only the one above, to `endorsement_ca_path`",
        ) from error
    issuer = certificate.issuer.rfc4514_string()
    note("endorsement certificate", f"serial number {certificate.serial_number:x} of `{issuer}`")
    return certificate


def _check(certificate: x509.Certificate, authorities: Sequence[bytes], now: datetime) -> None:
    problem = unknown_critical({extension.oid: extension for extension in certificate.extensions})
    if problem:
        raise _Untrusted(f"it has the unknown critical extension {problem}")
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise _Untrusted("it is a CA's")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        raise _Untrusted(f"it is valid from {begins.isoformat()} to {ends.isoformat()}, not at {now.isoformat()}")
    extended = _extension(certificate, x509.ExtendedKeyUsage)
    if extended is not None and not {EK_CERTIFICATE, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(extended):
        raise _Untrusted("it is made for something else than an endorsement key")
    identifier = _extension(certificate, x509.AuthorityKeyIdentifier)
    anchors = [anchor for der in dict.fromkeys(authorities) if (anchor := load_anchor(der)) is not None]
    try:
        validate_path(
            certificate,
            (identifier.key_identifier if identifier else None) or b"",
            intermediates=(),
            anchors=anchors,
            now=now,
        )
    except Unauthenticated as error:
        raise _Untrusted(error.detail) from error


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
