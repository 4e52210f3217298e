"""The certificates of a TPM: its DevID's, up to a DevID CA, and its endorsement key's, up to a manufacturer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.errors import ConfigError, InvalidArgument, Unauthenticated
from ca.identity.issuer import Issuer, load_issuer, unknown_critical
from ca.identity.path import validate_path

MAX_CA_FILE_BYTES = 4 << 20
EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")  # TCG EK Credential Profile §3.2.16: tcg-kp-EKCertificate

E = TypeVar("E", bound=x509.ExtensionType)


class Untrusted(Exception):
    """A certificate that proves nothing here; its text is for administrators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate that was found trustworthy, and those above it up to the CA (DER), nearest first."""

    certificate: x509.Certificate
    der: bytes
    issuers: tuple[bytes, ...]


def load_roots(path: Path, key: str) -> tuple[Issuer, ...]:
    """The certificates of a PEM file, each of which may vouch. Raises ConfigError naming the configuration's key."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CA_FILE_BYTES)
        found = x509.load_pem_x509_certificates(data)
        issuers = tuple(load_issuer(certificate.public_bytes(Encoding.DER)) for certificate in found)
    except OSError as error:
        raise ConfigError(f"`{key}`: cannot read `{path}`: {error.strerror}") from error
    except (ValueError, InvalidArgument) as error:
        raise ConfigError(f"`{key}`: `{path}` is not a file of PEM certificates") from error
    for issuer in issuers:
        if issuer.flaw is not None:
            name = issuer.certificate.subject.rfc4514_string()
            raise ConfigError(f"`{key}`: `{name}` in `{path}` {issuer.flaw[1]}")
    return issuers


def verify_devid(chain: Sequence[bytes], roots: Sequence[Issuer], now: datetime) -> Leaf:
    """The DevID certificate (first) with its intermediates. Raises Untrusted, or InvalidArgument for what is none."""
    leaf = load_issuer(chain[0]).certificate  # which reads its names and extensions; that it issues nothing is meant
    found = _verify(leaf, chain[0], [load_issuer(der) for der in chain[1:]], roots, now)
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise Untrusted("its key usage lacks digitalSignature")
    return found


def verify_ek(der: bytes, roots: Sequence[Issuer], now: datetime) -> Leaf:
    """The endorsement key's certificate, directly or by CAs of the file. Raises as `verify_devid`."""
    leaf = load_issuer(der).certificate
    found = _verify(leaf, der, [], roots, now)
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    if extended is not None and not {EK_CERTIFICATE, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(extended):
        raise Untrusted("it is made for something else than an endorsement key")
    return found


def common_name(name: x509.Name) -> str:
    """The last one, as Go has it; empty where there is none."""
    values = [attribute.value for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return str(values[-1]) if values else ""


def _verify(
    leaf: x509.Certificate, der: bytes, intermediates: list[Issuer], roots: Sequence[Issuer], now: datetime
) -> Leaf:
    problem = unknown_critical({extension.oid: extension for extension in leaf.extensions})
    constraints = _extension(leaf, x509.BasicConstraints)
    identifier = _extension(leaf, x509.AuthorityKeyIdentifier)
    if problem:
        raise Untrusted(f"it has the unknown critical extension {problem}")
    if constraints is not None and constraints.ca:
        raise Untrusted("it is a CA's")
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise Untrusted(f"it is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}, now is {now}")
    key_identifier = (identifier.key_identifier if identifier else None) or b""
    try:
        path = validate_path(leaf, key_identifier, intermediates=intermediates, anchors=roots, now=now)
    except Unauthenticated as error:
        raise Untrusted(error.detail) from error
    return Leaf(
        certificate=leaf, der=der, issuers=tuple(issuer.certificate.public_bytes(Encoding.DER) for issuer in path)
    )


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
