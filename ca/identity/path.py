"""Certification path validation (RFC 5280 §6.1) from a leaf up to an authority of one trust bundle.

Paths are found by climbing: from a certificate to each candidate with its issuer's name, checking on the way up what
needs no look at the whole, then name constraints over the finished path. The authority itself must satisfy the same
rules as an intermediate (validity, constraints): stricter than §6.1.1 (d), which takes only its name and key.
Left out on purpose: revocation status (§6.1.3 a 3), for SVIDs live shortly and their authorities leave the bundle;
certificate policies (§6.1.3 d-f), for any policy is acceptable and a path that demands explicit ones is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import SignatureAlgorithmOID

from ca.errors import Unauthenticated
from ca.identity.issuer import Issuer
from ca.identity.name_constraints import first_violation
from ca.identity.text import quote

MAX_PATH_CERTIFICATES = 10
MAX_SIGNATURE_CHECKS = 32
"""Bounds the work that a hostile chain can cause."""

_STRONG_SIGNATURES = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.RSASSA_PSS,
        SignatureAlgorithmOID.ED25519,
    }
)
_STRONG_DIGESTS = (None, "sha256", "sha384", "sha512")


def validate_path(
    leaf: x509.Certificate,
    authority_key_identifier: bytes,
    *,
    intermediates: Sequence[Issuer],
    anchors: Sequence[Issuer],
    now: datetime,
) -> tuple[Issuer, ...]:
    """The issuers above the leaf, nearest first, ending in an anchor. The leaf's own validity is the caller's to check.

    Raises Unauthenticated; of several failed ways up the message is that of the one that came nearest.
    """
    search = _Search(leaf, intermediates, anchors, now)
    path = search.climb(leaf, authority_key_identifier, ())
    if path is None:
        raise search.nearest_miss()
    return path


class _Search:
    """One search for a path; counts its work and remembers the failure that came nearest to success."""

    def __init__(
        self, leaf: x509.Certificate, intermediates: Sequence[Issuer], anchors: Sequence[Issuer], now: datetime
    ) -> None:
        self._leaf = leaf
        self._intermediates = intermediates
        self._anchors = anchors
        self._now = now
        self._checks = 0
        self._misses: list[tuple[int, Unauthenticated]] = []

    def climb(
        self, child: x509.Certificate, authority_key_identifier: bytes, below: tuple[Issuer, ...]
    ) -> tuple[Issuer, ...] | None:
        """`below` are the issuers between the leaf and what is looked for now, nearest to the leaf first."""
        for issuer in self._candidates(child, authority_key_identifier, below):
            path = (*below, issuer)
            try:
                self._check_link(child, issuer, below)
                if any(issuer is anchor for anchor in self._anchors):
                    self._check_names(path)
                    return path
            except Unauthenticated as error:
                self._misses.append((len(path), error))
                continue
            found = self.climb(issuer.certificate, _authority_key_identifier(issuer.certificate), path)
            if found is not None:
                return found
        return None

    def nearest_miss(self) -> Unauthenticated:
        """The failure highest up; of several there the first, for candidates come in order of likelihood."""
        if self._misses:
            return max(self._misses, key=lambda miss: miss[0])[1]
        return Unauthenticated(
            f"no authority of the trust bundle is the issuer {quote(self._leaf.issuer.rfc4514_string())}",
            reason="SVID_UNTRUSTED",
            hint="is the bundle up to date, and does the peer send its intermediate certificates?",
        )

    def _candidates(
        self, child: x509.Certificate, authority_key_identifier: bytes, below: tuple[Issuer, ...]
    ) -> list[Issuer]:
        if len(below) >= MAX_PATH_CERTIFICATES:
            return []
        wanted = child.issuer
        # RFC 5280 §6.1.3 (a)(4): the issuer's name is the subject of the certificate above.
        named = [
            issuer
            for issuer in (*self._anchors, *self._intermediates)
            if issuer.certificate.subject == wanted and not any(issuer is passed for passed in below)
        ]
        # Key identifiers help to find the right one first and prove nothing, RFC 5280 §4.2.1.1.
        named.sort(key=lambda issuer: issuer.key_identifier != authority_key_identifier)
        return named

    def _check_link(self, child: x509.Certificate, issuer: Issuer, below: tuple[Issuer, ...]) -> None:
        """Everything about one issuer and its signature on the certificate beneath it."""
        if issuer.flaw is not None:  # RFC 5280 §6.1.4 (k), (n), (o): see ca.identity.issuer
            reason, problem = issuer.flaw
            raise Unauthenticated(f"issuer {_name(issuer)} {problem}", reason=reason)
        # RFC 5280 §6.1.4 (l), (m): self-issued certificates do not count, nor does the leaf.
        if issuer.path_length is not None and sum(not i.self_issued for i in below) > issuer.path_length:
            raise Unauthenticated(
                f"issuer {_name(issuer)} allows {issuer.path_length} intermediates beneath it",
                reason="SVID_PATH_LENGTH",
            )
        self._check_signature(child, issuer)
        self._check_validity(issuer)

    def _check_signature(self, child: x509.Certificate, issuer: Issuer) -> None:
        """RFC 5280 §6.1.3 (a)(1). cryptography also compares names and both statements of the algorithm."""
        self._checks += 1
        if self._checks > MAX_SIGNATURE_CHECKS:
            raise Unauthenticated("certificate chain takes too much work to verify", reason="SVID_CHAIN_TOO_COMPLEX")
        try:
            check_algorithm(child)
            child.verify_directly_issued_by(issuer.certificate)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Unauthenticated(
                f"signature on the certificate is not that of the authority {_name(issuer)}", reason="SVID_UNTRUSTED"
            ) from error

    def _check_validity(self, issuer: Issuer) -> None:
        """RFC 5280 §6.1.3 (a)(2)"""
        if self._now > issuer.not_after:
            raise Unauthenticated(
                f"issuer {_name(issuer)} expired at {issuer.not_after.isoformat()}, "
                f"the clock here says {self._now.isoformat()}",
                reason="SVID_ISSUER_EXPIRED",
            )
        if self._now < issuer.not_before:
            raise Unauthenticated(
                f"issuer {_name(issuer)} is not valid before {issuer.not_before.isoformat()}, "
                f"the clock here says {self._now.isoformat()}",
                reason="SVID_ISSUER_NOT_YET_VALID",
            )

    def _check_names(self, path: tuple[Issuer, ...]) -> None:
        """RFC 5280 §6.1.3 (b), (c) with §6.1.4 (g); X509-SVID §4.2 (B11): each name inside the constraints of all
        issuers above it. Self-issued certificates are exempt unless they are the leaf."""
        for position, issuer in enumerate(path):
            if issuer.name_constraints is None:
                continue
            subjects = [self._leaf, *(i.certificate for i in path[:position] if not i.self_issued)]
            for subject in subjects:
                try:
                    violation = first_violation(subject, issuer.name_constraints)
                except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
                    raise Unauthenticated("malformed names in the certificate", reason="SVID_MALFORMED") from error
                if violation:
                    raise Unauthenticated(
                        f"name constraints of issuer {_name(issuer)}: {violation}", reason="SVID_NAME_CONSTRAINTS"
                    )


def check_algorithm(child: x509.Certificate) -> None:
    """Raises Unauthenticated (SVID_WEAK) for a signature by a digest or scheme that is no longer trusted."""
    digest = child.signature_hash_algorithm
    if child.signature_algorithm_oid not in _STRONG_SIGNATURES or (digest and digest.name) not in _STRONG_DIGESTS:
        raise Unauthenticated("signature algorithm of the certificate is weak or unknown", reason="SVID_WEAK")


def _authority_key_identifier(certificate: x509.Certificate) -> bytes:
    """Of a certificate whose extensions were parsed before."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return b""
    return found.value.key_identifier or b""


def _name(issuer: Issuer) -> str:
    return quote(issuer.certificate.subject.rfc4514_string())
