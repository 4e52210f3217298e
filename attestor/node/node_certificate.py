"""A node's own certificate: chained to one of the authorities that an administrator named, and fit to sign with.

Paths are validated by the same code as those of SVIDs (RFC 5280 §6.1): signatures, validity, basic constraints, path
length, key usage and name constraints, within a bounded number of signature checks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca.errors import Denied, InvalidArgument, Unauthenticated
from ca.identity.certificate import load_certificate
from ca.identity.issuer import Issuer, load_anchor, load_issuer, unknown_critical
from ca.identity.path import validate_path
from ca.identity.text import quote
from ca.runtime.notes import note

MIN_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MALFORMED = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCertificate:
    """A leaf that was parsed: exactly the bytes `der`. Nothing is said about trust."""

    der: bytes
    certificate: x509.Certificate
    key: PublicKey
    uris: tuple[str, ...]
    authority_key_id: bytes

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.der)

    @property
    def common_name(self) -> str:
        """Empty without one, where there are several (which of them counts is anybody's guess), and where a terminal
        would obey it."""
        found = self.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        name = str(found[0].value) if len(found) == 1 else ""
        return name if name.isprintable() else ""

    @property
    def serial_hex(self) -> str:
        """Lower case, two digits for each octet."""
        serial = self.certificate.serial_number
        return serial.to_bytes((serial.bit_length() + 7) // 8, "big").hex()


def fingerprint(der: bytes) -> str:
    """SHA-1 of a certificate, which names nodes and authorities in SPIRE's IDs and selectors."""
    return hashlib.sha1(der, usedforsecurity=False).hexdigest()


def parse_node_certificate(der: bytes, *, max_rsa_bits: int) -> NodeCertificate:
    """Raises InvalidArgument for what is no certificate, Denied for one that a node cannot prove itself with."""
    certificate = load_certificate(der)
    try:
        extensions = {extension.oid: extension for extension in certificate.extensions}
        key = certificate.public_key()
        _ = certificate.issuer, certificate.subject, certificate.signature_hash_algorithm
    except _MALFORMED as error:
        raise InvalidArgument("malformed certificate", reason="CERTIFICATE_MALFORMED") from error
    usage = extensions.get(x509.KeyUsage.oid)
    if usage is None or not isinstance(usage.value, x509.KeyUsage) or not usage.value.digital_signature:
        _refuse_leaf("NODE_CERTIFICATE_USAGE", "the node's certificate has no key usage digitalSignature")
    if unknown := unknown_critical(extensions):  # RFC 5280 §6.1.5 (f), §4.2
        _refuse_leaf("NODE_CERTIFICATE_USAGE", f"the node's certificate has the unknown critical extension {unknown}")
    names = extensions.get(x509.SubjectAlternativeName.oid)
    identifier = extensions.get(x509.AuthorityKeyIdentifier.oid)
    return NodeCertificate(
        der=der,
        certificate=certificate,
        key=_fit_key(key, max_rsa_bits),
        uris=tuple(names.value.get_values_for_type(x509.UniformResourceIdentifier)) if names else (),
        authority_key_id=(identifier.value.key_identifier or b"") if identifier else b"",
    )


def verify_chain(
    leaf: NodeCertificate, intermediates: Sequence[bytes], authorities: Sequence[bytes], *, now: datetime
) -> tuple[bytes, ...]:
    """Every certificate above the leaf in a path to one of `authorities` (all DER), each once, nearest first.

    One path is looked for to each authority that the leaf or an intermediate names as its issuer. Raises Denied
    NODE_CERTIFICATE_*, InvalidArgument for an intermediate that is no certificate.
    """
    _check_validity(leaf.certificate, now)
    between = [load_issuer(der) for der in intermediates]
    issuers = {leaf.certificate.issuer, *(one.certificate.issuer for one in between)}
    anchors = [one for der in dict.fromkeys(authorities) if (one := load_anchor(der)) is not None]
    found: dict[bytes, None] = {}
    misses: list[Unauthenticated] = []
    for anchor in anchors:
        if anchor.certificate.subject not in issuers:
            continue
        try:
            path = validate_path(
                leaf.certificate, leaf.authority_key_id, intermediates=between, anchors=[anchor], now=now
            )
        except Unauthenticated as miss:
            misses.append(miss)
            continue
        found.update(dict.fromkeys(_der(one) for one in path))
    if not found:
        _refuse_chain(leaf, len(anchors), misses)
    return tuple(found)


def _fit_key(key: object, max_rsa_bits: int) -> PublicKey:
    if isinstance(key, rsa.RSAPublicKey):
        if MIN_RSA_BITS <= key.key_size <= max_rsa_bits:
            return key
        note("certificate's key", f"RSA of {key.key_size} bits; {MIN_RSA_BITS} to {max_rsa_bits} are accepted")
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    else:
        note("certificate's key", f"{type(key).__name__} is not accepted")
    return _refuse_leaf(
        "NODE_CERTIFICATE_KEY",
        f"the key of the node's certificate is not accepted: P-256, P-384, P-521, or RSA of {MIN_RSA_BITS} to "
        f"{max_rsa_bits} bits",
    )


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    """RFC 5280 §6.1.3 (a)(2), both ends included."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    note("certificate's validity", f"{begins.isoformat()} to {ends.isoformat()}, the clock here says {now.isoformat()}")
    if now > ends:
        _refuse_leaf("NODE_CERTIFICATE_EXPIRED", f"the node's certificate expired at {ends.isoformat()}")
    if now < begins:
        _refuse_leaf(
            "NODE_CERTIFICATE_NOT_YET_VALID", f"the node's certificate is not valid before {begins.isoformat()}"
        )


def _refuse_chain(leaf: NodeCertificate, authorities: int, misses: Sequence[Unauthenticated]) -> NoReturn:
    issuer = quote(leaf.certificate.issuer.rfc4514_string())
    for miss in misses:
        note("certificate's chain", miss.detail)
    if not misses:
        note("certificate's chain", f"issuer {issuer}; none of {authorities} authorities is at the end of this chain")
    raise Denied(
        f"the node's certificate, issued by {issuer}, does not chain to an authority that is configured here",
        reason="NODE_CERTIFICATE_UNTRUSTED",
        hint="does the agent send its intermediate certificates, and does the server have their authority?",
    )


def _refuse_leaf(reason: str, detail: str) -> NoReturn:
    note("certificate", detail)
    raise Denied(detail, reason=reason)


def _der(issuer: Issuer) -> bytes:
    return issuer.certificate.public_bytes(Encoding.DER)
