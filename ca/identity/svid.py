"""X.509-SVIDs: what a leaf must look like, and verification against the bundle of its own trust domain (X509-SVID)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.errors import InvalidArgument, Unauthenticated
from ca.identity.bundle import TrustBundle
from ca.identity.certificate import load_certificate
from ca.identity.issuer import Issuer, load_anchor, load_issuer, unknown_critical
from ca.identity.path import MAX_PATH_CERTIFICATES, validate_path
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.text import quote

Extensions = dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]]


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Svid:
    """A leaf and what came with it: `chain` is DER, leaf first, exactly the bytes that were checked.

    Times are aware and in UTC; `authority_key_id` is hex and empty where the leaf names none.
    """

    id: SpiffeId
    chain: tuple[bytes, ...]
    not_before: datetime
    not_after: datetime
    serial: int
    authority_key_id: str
    dns_names: tuple[str, ...] = ()


def parse_x509_svid(chain: Sequence[bytes]) -> X509Svid:
    """Checks the leaf's profile (X509-SVID §5.2) and nothing about trust or time.

    `chain` is DER, leaf first. Raises Unauthenticated with a SVID_* reason.
    """
    return _parse(chain)[1]


def verify_x509_svid(chain: Sequence[bytes], bundles: Mapping[TrustDomain, TrustBundle], *, now: datetime) -> X509Svid:
    """Authenticates a peer by its certificates, DER, leaf first, further ones in any order (X509-SVID §5).

    Only the bundle of the leaf's own trust domain is asked, so that no domain's authority vouches for another's ID.
    Tainted authorities still vouch. `now` is aware. Raises Unauthenticated with a SVID_* reason.
    """
    leaf, svid = _parse(chain)
    check_validity(svid, now)
    anchors = _anchors(svid.id.trust_domain, bundles)
    # RFC 5280 path validation, X509-SVID §5.1 (B20)
    validate_path(
        leaf,
        bytes.fromhex(svid.authority_key_id),
        intermediates=[_intermediate(der) for der in svid.chain[1:]],
        anchors=anchors,
        now=now,
    )
    return svid


def _parse(chain: Sequence[bytes]) -> tuple[x509.Certificate, X509Svid]:
    if not chain:
        raise Unauthenticated("no certificate was presented", reason="SVID_MISSING")
    if len(chain) > MAX_PATH_CERTIFICATES:
        raise Unauthenticated(
            f"more than {MAX_PATH_CERTIFICATES} certificates were presented", reason="SVID_CHAIN_TOO_COMPLEX"
        )
    leaf, extensions = _load(chain[0])
    _check_constraints(extensions)
    _check_key_usage(extensions)
    _check_extended_key_usage(extensions)
    unknown = unknown_critical(extensions)
    if unknown:  # RFC 5280 §6.1.5 (f), §4.2
        raise Unauthenticated(f"SVID has the unknown critical extension {unknown}", reason="SVID_CRITICAL_EXTENSION")
    spiffe_id, dns_names = _names(extensions)
    # ID and key come out of the signed part of the certificate, SPIFFE-ID §3.2 (A23).
    return leaf, X509Svid(
        id=spiffe_id,
        chain=tuple(chain),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        serial=leaf.serial_number,
        authority_key_id=_authority_key_id(extensions),
        dns_names=dns_names,
    )


def _load(der: bytes) -> tuple[x509.Certificate, Extensions]:
    """Only an X.509 certificate will do, SPIFFE-ID §3.3 (A24)."""
    try:
        leaf = load_certificate(der)
        extensions = {extension.oid: extension for extension in leaf.extensions}
        _ = leaf.issuer, leaf.subject, leaf.signature_hash_algorithm
    except (
        InvalidArgument,
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise Unauthenticated("SVID is not a well-formed certificate", reason="SVID_MALFORMED") from error
    return leaf, extensions


def _check_constraints(extensions: Extensions) -> None:
    found = extensions.get(x509.BasicConstraints.oid)
    # A signing certificate never authenticates, X509-SVID §3.2 (B8); cA is false, §4.1 (B10), §5.2 (B21)
    if found is not None and isinstance(found.value, x509.BasicConstraints) and found.value.ca:
        raise Unauthenticated("SVID is a CA certificate", reason="SVID_IS_CA")
    if x509.NameConstraints.oid in extensions:  # RFC 5280 §4.2.1.10: only in CA certificates
        raise Unauthenticated("SVID has name constraints, which only a CA may have", reason="SVID_MALFORMED")


def _check_key_usage(extensions: Extensions) -> None:
    found = extensions.get(x509.KeyUsage.oid)
    if found is None or not isinstance(found.value, x509.KeyUsage):  # X509-SVID §4.3 (B12)
        raise Unauthenticated("SVID has no key usage", reason="SVID_KEY_USAGE")
    if not found.critical:  # X509-SVID §4.3 (B13)
        raise Unauthenticated("key usage of the SVID is not critical", reason="SVID_KEY_USAGE")
    if not found.value.digital_signature:  # X509-SVID §4.3 (B15)
        raise Unauthenticated("SVID has no key usage digitalSignature", reason="SVID_KEY_USAGE")
    if found.value.key_cert_sign:  # X509-SVID §4.3 (B16), §5.2 (B22)
        raise Unauthenticated("SVID has key usage keyCertSign", reason="SVID_KEY_USAGE")
    if found.value.crl_sign:  # X509-SVID §4.3 (B17), §5.2 (B22)
        raise Unauthenticated("SVID has key usage cRLSign", reason="SVID_KEY_USAGE")


def _check_extended_key_usage(extensions: Extensions) -> None:
    """Absent is allowed: only issuers should set it, X509-SVID §4.4 (B18)."""
    found = extensions.get(x509.ExtendedKeyUsage.oid)
    if found is None or not isinstance(found.value, x509.ExtendedKeyUsage):
        return
    for purpose in (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH):
        if purpose not in found.value:  # X509-SVID §4.4 (B19)
            raise Unauthenticated(
                "extended key usage of the SVID lacks serverAuth or clientAuth", reason="SVID_EXTENDED_KEY_USAGE"
            )


def _names(extensions: Extensions) -> tuple[SpiffeId, tuple[str, ...]]:
    found = extensions.get(x509.SubjectAlternativeName.oid)
    names = list(found.value) if found is not None and isinstance(found.value, x509.SubjectAlternativeName) else []
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if not uris:
        raise Unauthenticated("SVID has no URI SAN", reason="SVID_NO_URI_SAN")
    if len(uris) > 1:  # X509-SVID §2, §5.2 (B1, B2)
        raise Unauthenticated(
            f"SVID has {len(uris)} URI SANs, the first two are {quote(uris[0])} and {quote(uris[1])}",
            reason="SVID_MULTIPLE_URI_SANS",
        )
    return _spiffe_id(uris[0]), tuple(name.value for name in names if isinstance(name, x509.DNSName))


def _spiffe_id(uri: str) -> SpiffeId:
    try:
        spiffe_id = SpiffeId.parse(uri)  # scheme and all else, X509-SVID §5.2 (B23)
    except InvalidArgument as error:
        raise Unauthenticated(f"URI SAN is not a SPIFFE ID: {error.detail}", reason="SVID_ID_INVALID") from error
    if str(spiffe_id) != uri:  # Envoy and others compare the text of the SAN: only one spelling may pass
        raise Unauthenticated(f"URI SAN {quote(uri)} is not in lower case", reason="SVID_ID_INVALID")
    if spiffe_id.is_trust_domain_id:  # X509-SVID §5.2 (B24)
        raise Unauthenticated(f"SPIFFE ID {quote(uri)} of the SVID has no path", reason="SVID_ID_NO_PATH")
    return spiffe_id


def _authority_key_id(extensions: Extensions) -> str:
    found = extensions.get(x509.AuthorityKeyIdentifier.oid)
    if found is None or not isinstance(found.value, x509.AuthorityKeyIdentifier):
        return ""
    return (found.value.key_identifier or b"").hex()


def check_validity(svid: X509Svid, now: datetime) -> None:
    """RFC 5280 §6.1.3 (a)(2), both ends included."""
    if now > svid.not_after:
        raise Unauthenticated(
            f"SVID of {quote(str(svid.id))} expired at {svid.not_after.isoformat()}, "
            f"the clock here says {now.isoformat()}",
            reason="SVID_EXPIRED",
        )
    if now < svid.not_before:
        raise Unauthenticated(
            f"SVID of {quote(str(svid.id))} is not valid before {svid.not_before.isoformat()}, "
            f"the clock here says {now.isoformat()}",
            reason="SVID_NOT_YET_VALID",
            hint="is one of the two clocks wrong?",
        )


def _anchors(trust_domain: TrustDomain, bundles: Mapping[TrustDomain, TrustBundle]) -> list[Issuer]:
    bundle = bundles.get(trust_domain)
    authorities = bundle.x509_authorities if bundle is not None else ()
    anchors = [anchor for a in authorities if (anchor := load_anchor(a.certificate)) is not None]
    if not anchors:  # an empty or unusable bundle makes all SVIDs of its domain untrusted, SPIFFE Bundle §4.1.3 (G9)
        raise Unauthenticated(
            f"no trust bundle with X.509 authorities for trust domain `{trust_domain}`",
            reason="SVID_UNTRUSTED_DOMAIN",
            hint="is the trust domain federated with this one?",
        )
    return anchors


def _intermediate(der: bytes) -> Issuer:
    try:
        return load_issuer(der)
    except InvalidArgument as error:
        raise Unauthenticated("a certificate of the chain is malformed", reason="SVID_MALFORMED") from error
