"""Name constraints: what is inside and what is not, by kind of name, and through whole paths."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID, ObjectIdentifier

from ca.errors import Unauthenticated
from ca.identity.name_constraints import first_violation
from ca.identity.svid import verify_x509_svid
from tests.ca.identity.forge import NOW, TD, Cert, distinguished_name, intermediate, key, root, uri

ROOT = root()
DNS, EMAIL = x509.DNSName, x509.RFC822Name


def ip(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_network(text) if "/" in text else ipaddress.ip_address(text))


def directory(*pairs: tuple[ObjectIdentifier, str]) -> x509.DirectoryName:
    return x509.DirectoryName(x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs]))


COUNTRY, ORG = (NameOID.COUNTRY_NAME, "US"), (NameOID.ORGANIZATION_NAME, "SPIFFE")

# (name, constraint, inside?)
JUDGED = {
    "uri: host itself": (uri("spiffe://example.org/a"), uri("example.org"), True),
    "uri: constraint in upper case": (uri("spiffe://example.org/a"), uri("EXAMPLE.org"), True),
    "uri: host below a host": (uri("spiffe://a.example.org/a"), uri("example.org"), False),
    "uri: host below a leading dot": (uri("spiffe://a.example.org/a"), uri(".example.org"), True),
    "uri: host itself and a leading dot": (uri("spiffe://example.org/a"), uri(".example.org"), False),
    "uri: host that only ends alike": (uri("spiffe://badexample.org/a"), uri("example.org"), False),
    "uri: other host": (uri("spiffe://other.org/example.org"), uri("example.org"), False),
    "uri: host hidden in the path": (uri("spiffe://other.org/@example.org"), uri("example.org"), False),
    "uri: host hidden in user information": (uri("https://example.org@other.org/"), uri("example.org"), False),
    "uri: user information and port": (uri("https://u@example.org:443/"), uri("example.org"), True),
    "uri: empty constraint": (uri("spiffe://example.org/a"), uri(""), True),
    "dns: itself": (DNS("example.org"), DNS("example.org"), True),
    "dns: below": (DNS("a.b.example.org"), DNS("example.org"), True),
    "dns: case": (DNS("A.EXAMPLE.org"), DNS("example.ORG"), True),
    "dns: only ends alike": (DNS("badexample.org"), DNS("example.org"), False),
    "dns: leading dot, below": (DNS("a.example.org"), DNS(".example.org"), True),
    "dns: leading dot, itself": (DNS("example.org"), DNS(".example.org"), False),
    "dns: empty constraint": (DNS("example.org"), DNS(""), True),
    "dns: wildcard below": (DNS("*.example.org"), DNS("example.org"), True),
    "email: mailbox": (EMAIL("a@example.org"), EMAIL("a@EXAMPLE.org"), True),
    "email: other mailbox": (EMAIL("b@example.org"), EMAIL("a@example.org"), False),
    "email: host": (EMAIL("b@example.org"), EMAIL("example.org"), True),
    "email: host below": (EMAIL("b@a.example.org"), EMAIL("example.org"), False),
    "email: below a leading dot": (EMAIL("b@a.example.org"), EMAIL(".example.org"), True),
    "ip: inside": (ip("10.1.2.3"), ip("10.0.0.0/8"), True),
    "ip: outside": (ip("11.1.2.3"), ip("10.0.0.0/8"), False),
    "ip: other version": (ip("::1"), ip("10.0.0.0/8"), False),
    "ip6: inside": (ip("fd00::1"), ip("fd00::/8"), True),
    "directory: prefix": (directory(COUNTRY, ORG), directory(COUNTRY), True),
    "directory: longer constraint": (directory(COUNTRY), directory(COUNTRY, ORG), False),
    "directory: other": (directory(ORG), directory(COUNTRY), False),
}


def certificate(*san: x509.GeneralName, subject: str = "") -> x509.Certificate:
    return x509.load_der_x509_certificate(ROOT.sign(Cert(subject=subject, san=san)))


@pytest.mark.parametrize(("name", "constraint", "inside"), JUDGED.values(), ids=JUDGED.keys())
def test_inside_or_not(name: x509.GeneralName, constraint: x509.GeneralName, inside: bool) -> None:
    subject = certificate(name)
    assert (first_violation(subject, x509.NameConstraints([constraint], None)) == "") is inside
    assert (first_violation(subject, x509.NameConstraints(None, [constraint])) == "") is not inside


CANNOT_BE_JUDGED = {
    "uri without authority": (uri("urn:x"), uri("example.org")),
    "uri with an IP address": (uri("spiffe://10.0.0.1/a"), uri("10.0.0.1")),
    "uri with an IPv6 address": (uri("https://[::1]/"), uri("example.org")),
    "registered id": (x509.RegisteredID(ObjectIdentifier("1.2.3")), x509.RegisteredID(ObjectIdentifier("1.2.3"))),
    "other name": (
        x509.OtherName(ObjectIdentifier("1.2.3"), b"\x05\x00"),
        x509.OtherName(ObjectIdentifier("1.2.3"), b"\x05\x00"),
    ),
}


@pytest.mark.parametrize(("name", "constraint"), CANNOT_BE_JUDGED.values(), ids=CANNOT_BE_JUDGED.keys())
def test_names_that_cannot_be_judged_are_refused_both_ways(
    name: x509.GeneralName, constraint: x509.GeneralName
) -> None:
    subject = certificate(name)
    assert first_violation(subject, x509.NameConstraints([constraint], None))
    assert first_violation(subject, x509.NameConstraints(None, [constraint]))


def test_a_wildcard_that_may_stand_for_an_excluded_name() -> None:
    excluded = x509.NameConstraints(None, [DNS("secret.example.org")])
    assert first_violation(certificate(DNS("*.example.org")), excluded)
    assert not first_violation(certificate(DNS("*.a.example.org")), excluded)
    assert not first_violation(certificate(DNS("*.org")), excluded)


def test_kinds_without_a_constraint_are_free() -> None:
    subject = certificate(uri("spiffe://example.org/a"), DNS("anything"), subject="anyone")
    assert not first_violation(subject, x509.NameConstraints([uri("example.org")], None))
    assert first_violation(subject, x509.NameConstraints([directory(COUNTRY)], None))


def test_email_addresses_in_the_subject_count() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@other.org")])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .serial_number(1)
        .public_key(ROOT.key.public_key())
        .sign(key("P-256", "root"), hashes.SHA256())
    )
    assert first_violation(built, x509.NameConstraints([EMAIL("example.org")], None))
    assert not first_violation(built, x509.NameConstraints([EMAIL("other.org")], None))


def test_constraints_of_every_issuer_hold_for_everything_beneath() -> None:
    def outcome(top_allows: str, middle_allows: str, leaf: str, middle_id: str = "spiffe://example.org") -> str:
        top = root("top", extra=[(x509.NameConstraints([uri(top_allows)], None), True)])
        middle = intermediate(
            top, "middle", san=[uri(middle_id)], extra=[(x509.NameConstraints([uri(middle_allows)], None), True)]
        )
        chain = [middle.sign(Cert(san=[uri(leaf)])), middle.der]
        try:
            verify_x509_svid(chain, {TD: top.bundle()}, now=NOW)
        except Unauthenticated as error:
            return error.reason
        return "ok"

    assert outcome("example.org", "example.org", "spiffe://example.org/a") == "ok"
    assert outcome("other.org", "example.org", "spiffe://example.org/a") == "SVID_NAME_CONSTRAINTS"
    assert outcome("example.org", "other.org", "spiffe://example.org/a") == "SVID_NAME_CONSTRAINTS"
    assert outcome("example.org", "example.org", "spiffe://example.org/a", "spiffe://x.org") == "SVID_NAME_CONSTRAINTS"


def test_self_issued_intermediates_are_exempt_and_a_self_issued_leaf_is_not() -> None:
    only_leaf = [(x509.NameConstraints(None, [DNS("middle.example")]), True)]
    top = root("top", extra=only_leaf)
    rolled = intermediate(top, "top", key=key("P-256", "rolled"), san=[DNS("middle.example")])
    verify_x509_svid([rolled.sign(Cert()), rolled.der], {TD: top.bundle()}, now=NOW)
    leaf = top.sign(Cert(subject="top", san=[uri("spiffe://example.org/a"), DNS("middle.example")]))
    with pytest.raises(Unauthenticated) as caught:
        verify_x509_svid([leaf], {TD: top.bundle()}, now=NOW)
    assert caught.value.reason == "SVID_NAME_CONSTRAINTS"
    assert "`middle.example` is excluded" in caught.value.detail
    assert distinguished_name("top").rfc4514_string() in caught.value.detail
