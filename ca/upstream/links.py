"""The rules of a proof, each about one certificate, one link or one whole path; paths go from the new authority up to
its root, both included."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.errors import FailedPrecondition, Unauthenticated
from ca.identity.issuer import Issuer, load_anchor, load_issuer
from ca.identity.name_constraints import first_violation, violation_of
from ca.identity.path import check_algorithm
from ca.identity.spiffe_id import TrustDomain
from ca.identity.text import quote
from ca.ports import Finding, FindingLevel

E = TypeVar("E", bound=x509.ExtensionType)

_ISSUED_SUBJECT = x509.Name(
    [x509.NameAttribute(NameOID.COUNTRY_NAME, "US"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIRE")]
)
"""Of SVIDs."""


def refused(why: str, reason: str, hint: str = "") -> FailedPrecondition:
    """An answer of the upstream that cannot be used."""
    return FailedPrecondition(f"the upstream's answer is refused: {why}", reason=reason, hint=hint)


def name_of(issuer: Issuer) -> str:
    """For messages."""
    return quote(issuer.certificate.subject.rfc4514_string())


def check_authority(authority: Issuer, trust_domain: TrustDomain) -> None:
    """What a signing certificate of this trust domain is: X509-SVID §3.2, §4.1, §4.3; RFC 5280 §4.2.1.2."""
    certificate = authority.certificate
    _refuse_flawed(authority)
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None:  # X509-SVID §4.3 (B12, B14)
        raise refused("its certificate has no key usage", "UPSTREAM_NOT_CA")
    if constraints is None or not constraints.critical or not usage.critical:  # RFC 5280 §4.2.1.9, X509-SVID (B13)
        raise refused("basic constraints or key usage of its certificate are not critical", "UPSTREAM_NOT_CA")
    if not authority.key_identifier:  # RFC 5280 §4.2.1.2
        raise refused("its certificate has no subject key identifier", "UPSTREAM_PROFILE")
    if not certificate.subject.rdns:  # RFC 5280 §4.1.2.6: an issuer has a name
        raise refused("its certificate has no subject", "UPSTREAM_PROFILE")
    if authority.self_issued:
        raise refused(
            f"its certificate has the name of its own issuer, {name_of(authority)}",
            "UPSTREAM_PROFILE",
            "verifiers find issuers by their names: let the upstream give each authority one of its own",
        )
    _check_spiffe_id(certificate, trust_domain)


def _check_spiffe_id(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    """Exactly the trust domain's own ID: SPIFFE-ID §3.1 (A20, A21, A22), X509-SVID §2 (B1) and §3.2 (B6, B7)."""
    found = _extension(certificate, x509.SubjectAlternativeName)
    uris = found.value.get_values_for_type(x509.UniformResourceIdentifier) if found else []
    wanted = str(trust_domain.id)
    if uris != [wanted]:
        shown = ", ".join(quote(uri) for uri in uris[:3]) or "none"
        raise refused(
            f"the URI of its certificate is to be `{wanted}` alone, and is {shown}",
            "UPSTREAM_SPIFFE_ID",
            "does the upstream belong to this trust domain, and does it set the URI?",
        )


def find_root(chain: Sequence[Issuer], roots: Sequence[Issuer], *, now: datetime) -> Issuer:
    """The root that the chain ends in; of several with the same key a valid one before others, then the one that lasts
    longest."""
    for issuer in chain:
        if issuer.self_issued and _signed(issuer, issuer):
            raise refused(f"its chain holds the root {name_of(issuer)}", "UPSTREAM_CHAIN_HAS_ROOT")
    signers = [root for root in roots if _signed(chain[-1], root)]
    anchors = [root for root in signers if root.self_issued and _signed(root, root)]
    if anchors:
        return max(anchors, key=lambda root: (root.not_before <= now <= root.not_after, root.not_after))
    if signers:  # OpenSSL and others stop at such a certificate only where they are told to
        raise refused(f"root {name_of(signers[0])} is not self-signed", "UPSTREAM_ROOT_NOT_SELF_SIGNED")
    raise refused(
        f"no root of it signed {name_of(chain[-1])}, whose issuer is "
        f"{quote(chain[-1].certificate.issuer.rfc4514_string())}",
        "UPSTREAM_ROOT_MISSING",
        "the upstream must give the root, and every certificate between",
    )


def check_link(child: Issuer, issuer: Issuer) -> None:
    """RFC 5280 §6.1.3 (a)(1) and (4), and the identifiers that OpenSSL compares as well (§4.2.1.1)."""
    if not _signed(child, issuer):
        raise refused(f"{name_of(issuer)} did not sign {name_of(child)}", "UPSTREAM_CHAIN_BROKEN")
    try:
        check_algorithm(child.certificate)
    except Unauthenticated as error:
        raise refused(f"{name_of(child)}: {error.detail}", "UPSTREAM_WEAK") from error
    named = _extension(child.certificate, x509.AuthorityKeyIdentifier)
    if named is None:
        return
    key, serial = named.value.key_identifier, named.value.authority_cert_serial_number
    other_key = key is not None and issuer.key_identifier and key != issuer.key_identifier
    if other_key or (serial is not None and serial != issuer.certificate.serial_number):
        raise refused(f"{name_of(child)} names another issuer than {name_of(issuer)}", "UPSTREAM_CHAIN_BROKEN")


def check_usages(issuer: Issuer) -> None:
    """It may sign certificates (RFC 5280 §6.1.4), for TLS too: OpenSSL and Go apply extended key usages downwards, and
    OpenSSL does not take anyExtendedKeyUsage for these two."""
    _refuse_flawed(issuer)
    found = _extension(issuer.certificate, x509.ExtendedKeyUsage)
    if found is None:
        return
    for usage in (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH):
        if usage not in found.value:
            raise refused(
                f"the extended key usage of {name_of(issuer)} lacks serverAuth or clientAuth",
                "UPSTREAM_EXTENDED_KEY_USAGE",
            )


def check_path_lengths(path: Sequence[Issuer]) -> int | None:
    """RFC 5280 §6.1.4 (l), (m), for a leaf below the new authority. How many authorities may follow it; None: any."""
    room: int | None = None
    for issuer in reversed(path):
        if room is not None and not issuer.self_issued:
            room -= 1
        if room is not None and room < 0:
            raise refused(
                f"the path lengths above {name_of(issuer)} leave no room for it",
                "UPSTREAM_PATH_LENGTH",
                "raise the path length of the authorities above, or put fewer of them between",
            )
        if issuer.path_length is not None:
            room = issuer.path_length if room is None else min(room, issuer.path_length)
    return room


def room_below(chain: Sequence[bytes], roots: Sequence[bytes], *, now: datetime) -> int | None:
    """How many authorities may follow the first of a chain that was proved once; None for any number. A root that is
    not among these says nothing."""
    path = [load_issuer(der) for der in chain]
    if not path:
        return None
    try:
        path.append(find_root(path, [root for der in roots if (root := load_anchor(der)) is not None], now=now))
    except FailedPrecondition:
        pass
    return check_path_lengths(path)


def check_names(path: Sequence[Issuer], trust_domain: TrustDomain) -> list[Finding]:
    """RFC 5280 §6.1.3 (b), (c): every name below a constraint, those of SVIDs included as far as they are known."""
    issued: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f"{trust_domain.id}/workload"),
        x509.DirectoryName(_ISSUED_SUBJECT),
    ]
    found = []
    for position, issuer in enumerate(path):
        constraints = issuer.name_constraints
        if constraints is None:
            continue
        below = [child for child in path[:position] if not child.self_issued]
        try:
            violations = [first_violation(child.certificate, constraints) for child in below]
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
            raise refused(f"names below {name_of(issuer)} cannot be read", "UPSTREAM_CHAIN_MALFORMED") from error
        for violation in (*violations, _empty_constraint(constraints) or violation_of(issued, constraints)):
            if violation:
                raise refused(
                    f"name constraints of {name_of(issuer)}: {violation}",
                    "UPSTREAM_NAME_CONSTRAINTS",
                    f"they must permit the host `{trust_domain}` in URIs",
                )
        if any(isinstance(name, x509.DNSName) for name in _all_constraints(constraints)):
            found.append(_limited(issuer))
    return found


def check_validity(path: Sequence[Issuer], now: datetime) -> tuple[datetime, datetime]:
    """RFC 5280 §6.1.3 (a)(2) for all of the path: from when and until when it can be used."""
    for issuer in path:
        if now > issuer.not_after:
            raise refused(
                f"{name_of(issuer)} expired at {issuer.not_after.isoformat()}, the clock here says {now.isoformat()}",
                "UPSTREAM_EXPIRED",
                "renew it at the upstream; or is one of the two clocks wrong?",
            )
        if now < issuer.not_before:
            raise refused(
                f"{name_of(issuer)} is not valid before {issuer.not_before.isoformat()}, the clock here says "
                f"{now.isoformat()}",
                "UPSTREAM_NOT_YET_VALID",
                "is one of the two clocks wrong?",
            )
    return max(issuer.not_before for issuer in path), min(issuer.not_after for issuer in path)


def _refuse_flawed(issuer: Issuer) -> None:
    """See ca.identity.issuer for what is looked at."""
    if issuer.flaw is not None:
        code, why = issuer.flaw
        reason = {"SVID_ISSUER_NOT_CA": "UPSTREAM_NOT_CA", "SVID_WEAK": "UPSTREAM_WEAK"}.get(code)
        raise refused(f"{name_of(issuer)} {why}", reason or "UPSTREAM_UNSUPPORTED")


def _signed(child: Issuer, issuer: Issuer) -> bool:
    try:
        child.certificate.verify_directly_issued_by(issuer.certificate)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _extension(certificate: x509.Certificate, kind: type[E]) -> x509.Extension[E] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _all_constraints(constraints: x509.NameConstraints) -> Sequence[x509.GeneralName]:
    return [*(constraints.permitted_subtrees or ()), *(constraints.excluded_subtrees or ())]


def _empty_constraint(constraints: x509.NameConstraints) -> str:
    """An empty text permits every URI for some verifiers and none for others (OpenSSL)."""
    uris = [c.value for c in constraints.permitted_subtrees or () if isinstance(c, x509.UniformResourceIdentifier)]
    return "an empty one permits URIs" if "" in uris else ""


def _limited(issuer: Issuer) -> Finding:
    return Finding(
        what="name constraints",
        level=FindingLevel.WARNING,
        detail=f"{name_of(issuer)} limits DNS names: SVIDs of entries with others would not be believed",
        hint="give entries DNS names that it permits, or none",
    )
