"""X.509-SVIDs: a vector per defect of leaf and path, other domains' roots, every byte of a good one changed."""

from __future__ import annotations

import dataclasses
import json
from base64 import b64encode
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier, SignatureAlgorithmOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import Unauthenticated
from ca.identity.bundle import TrustBundle, X509Authority, authority_id
from ca.identity.bundle_json import parse_spiffe_bundle
from ca.identity.path import MAX_PATH_CERTIFICATES
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.svid import X509Svid, parse_x509_svid, verify_x509_svid
from tests.ca.identity.forge import (
    HOUR,
    NOW,
    OTHER,
    TD,
    Authority,
    Cert,
    distinguished_name,
    intermediate,
    key,
    root,
    uri,
    usage,
)

ROOT = root()
GOOD = ROOT.sign(Cert())
SECOND = timedelta(seconds=1)
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
URI_A = uri("spiffe://example.org/a")
LONGEST = "spiffe://example.org/" + "a" * (2048 - 21)


def verify(chain: Sequence[bytes], *bundles: TrustBundle, now: Any = NOW) -> X509Svid:
    return verify_x509_svid(chain, {b.trust_domain: b for b in bundles or (ROOT.bundle(),)}, now=now)


def refusal(chain: Sequence[bytes], *bundles: TrustBundle, now: Any = NOW) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        verify(chain, *bundles, now=now)
    return caught.value


def test_a_good_leaf_says_who_it_is() -> None:
    san = [x509.DNSName("web.example.org"), x509.DNSName("b"), uri("spiffe://example.org/ns/web")]
    leaf = ROOT.sign(Cert(san=san))
    svid = verify([leaf])
    certificate = x509.load_der_x509_certificate(leaf)
    assert svid == X509Svid(
        id=SpiffeId.parse("spiffe://example.org/ns/web"),
        chain=(leaf,),
        not_before=NOW - HOUR,
        not_after=NOW + HOUR,
        serial=certificate.serial_number,
        authority_key_id=authority_id(ROOT.der),
        dns_names=("web.example.org", "b"),
    )
    assert parse_x509_svid([leaf]) == svid
    with pytest.raises(dataclasses.FrozenInstanceError):
        svid.serial = 1  # type: ignore[misc]


GOOD_LEAVES: dict[str, Cert] = {
    "id of 2048 bytes": Cert(san=[uri(LONGEST)]),
    "no subject": Cert(subject=""),
    "no extended key usage (only a SHOULD)": Cert(purposes=None),
    "no basic constraints (not a CA)": Cert(constraints=None),
    "more purposes": Cert(
        purposes=[ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH]
    ),
    "other kinds of SAN": Cert(
        san=[URI_A, x509.RFC822Name("a@b.example"), x509.DirectoryName(distinguished_name("x"))]
    ),
    "unknown extension, not critical": Cert(extra=[(UNKNOWN, False)]),
    "no key identifiers": Cert(key_identifiers=False),
    "SPIRE's key usages": Cert(key_usage=usage("digital_signature", "key_encipherment", "key_agreement")),
    "RSA key": Cert(key=key("RSA-2048", "leaf"), key_usage=usage("digital_signature", "key_encipherment")),
    "Ed25519 key": Cert(key=key("Ed25519", "leaf")),
}


@pytest.mark.parametrize("order", GOOD_LEAVES.values(), ids=GOOD_LEAVES.keys())
def test_good_leaves(order: Cert) -> None:
    verify([ROOT.sign(order)])


BAD_LEAVES: dict[str, tuple[Cert, str]] = {
    "no URI SAN": (Cert(san=[x509.DNSName("web.example.org")]), "SVID_NO_URI_SAN"),
    "no SAN": (Cert(san=[]), "SVID_NO_URI_SAN"),
    "two URI SANs": (Cert(san=[URI_A, uri("spiffe://example.org/b")]), "SVID_MULTIPLE_URI_SANS"),
    "same URI SAN twice": (Cert(san=[URI_A, URI_A]), "SVID_MULTIPLE_URI_SANS"),
    "second URI SAN of another scheme": (Cert(san=[URI_A, uri("https://example.org")]), "SVID_MULTIPLE_URI_SANS"),
    "other scheme": (Cert(san=[uri("sparfe://example.org/a")]), "SVID_ID_INVALID"),
    "no path": (Cert(san=[uri("spiffe://example.org")]), "SVID_ID_NO_PATH"),
    "root path": (Cert(san=[uri("spiffe://example.org/")]), "SVID_ID_INVALID"),
    "upper-case trust domain": (Cert(san=[uri("spiffe://Example.org/a")]), "SVID_ID_INVALID"),
    "dot segment": (Cert(san=[uri("spiffe://example.org/a/../b")]), "SVID_ID_INVALID"),
    "query": (Cert(san=[uri("spiffe://example.org/a?b")]), "SVID_ID_INVALID"),
    "line feed at the end": (Cert(san=[uri("spiffe://example.org/a\n")]), "SVID_ID_INVALID"),
    "id of 2049 bytes": (Cert(san=[uri(LONGEST + "a")]), "SVID_ID_INVALID"),
    "cA true": (Cert(constraints=x509.BasicConstraints(True, None)), "SVID_IS_CA"),
    "cA true and path length 0": (Cert(constraints=x509.BasicConstraints(True, 0)), "SVID_IS_CA"),
    "no key usage": (Cert(key_usage=None), "SVID_KEY_USAGE"),
    "key usage not critical": (Cert(key_usage_critical=False), "SVID_KEY_USAGE"),
    "no digitalSignature": (Cert(key_usage=usage("key_encipherment")), "SVID_KEY_USAGE"),
    "keyCertSign": (Cert(key_usage=usage("digital_signature", "key_cert_sign")), "SVID_KEY_USAGE"),
    "cRLSign": (Cert(key_usage=usage("digital_signature", "crl_sign")), "SVID_KEY_USAGE"),
    "serverAuth alone": (Cert(purposes=[ExtendedKeyUsageOID.SERVER_AUTH]), "SVID_EXTENDED_KEY_USAGE"),
    "clientAuth alone": (Cert(purposes=[ExtendedKeyUsageOID.CLIENT_AUTH]), "SVID_EXTENDED_KEY_USAGE"),
    "any purpose alone": (Cert(purposes=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), "SVID_EXTENDED_KEY_USAGE"),
    "unknown critical extension": (Cert(extra=[(UNKNOWN, True)]), "SVID_CRITICAL_EXTENSION"),
    "name constraints in a leaf": (
        Cert(extra=[(x509.NameConstraints([uri("example.org")], None), False)]),
        "SVID_MALFORMED",
    ),
    "expired": (Cert(not_after=NOW - SECOND), "SVID_EXPIRED"),
    "not yet valid": (Cert(not_before=NOW + SECOND), "SVID_NOT_YET_VALID"),
    "SHA-224 signature": (Cert(digest=hashes.SHA224), "SVID_WEAK"),
    "SHA3-256 signature": (Cert(digest=hashes.SHA3_256), "SVID_WEAK"),
    "unknown issuer name": (Cert(issuer_name="stranger"), "SVID_UNTRUSTED"),
}


@pytest.mark.parametrize(("order", "reason"), BAD_LEAVES.values(), ids=BAD_LEAVES.keys())
def test_bad_leaves(order: Cert, reason: str) -> None:
    order = dataclasses.replace(order, digest=order.digest() if isinstance(order.digest, type) else order.digest)
    assert refusal([ROOT.sign(order)]).reason == reason


def test_the_standards_example_of_a_root_rotation() -> None:
    """SPIFFE Trust Domain and Bundle, appendix A: RSA roots that are SVIDs themselves, the second one added later."""
    order = {"san": [uri("spiffe://example.com/")], "key_usage": usage("key_cert_sign"), "key_identifiers": False}
    roots = [root("example.com", key=key("RSA-2048", f"#{n}"), **order) for n in (1, 2)]
    keys = [{"kty": "RSA", "use": "x509-svid", "x5c": [b64encode(r.der).decode()], "e": "AQAB"} for r in roots]
    leaves = [r.sign(Cert(san=[uri("spiffe://example.com/payments/mysql")])) for r in roots]
    domain = TrustDomain("example.com")
    for count in (1, 2):
        document = {"spiffe_sequence": count, "spiffe_refresh_hint": 2419200, "keys": keys[:count]}
        bundle = parse_spiffe_bundle(json.dumps(document), domain)
        assert (bundle.sequence_number, bundle.refresh_hint_seconds) == (count, 2419200)
        for leaf in leaves[:count]:
            assert verify([leaf], bundle).id.path == "/payments/mysql"
        for leaf in leaves[count:]:
            assert refusal([leaf], bundle).reason == "SVID_UNTRUSTED"


NOT_CERTIFICATES = {"nothing": b"", "text": b"spiffe://example.org/a", "cut": GOOD[:-1], "tail": GOOD + b"\x00"}


@pytest.mark.parametrize("der", NOT_CERTIFICATES.values(), ids=NOT_CERTIFICATES.keys())
def test_what_is_no_certificate(der: bytes) -> None:
    assert refusal([der]).reason == "SVID_MALFORMED"
    assert refusal([GOOD, der]).reason == "SVID_MALFORMED"


def test_no_certificate_and_too_many() -> None:
    assert refusal([]).reason == "SVID_MISSING"
    assert refusal([GOOD] * (MAX_PATH_CERTIFICATES + 1)).reason == "SVID_CHAIN_TOO_COMPLEX"
    assert refusal([b"\x30" * 70_000]).reason == "SVID_MALFORMED"


def test_ca_certificates_do_not_authenticate() -> None:
    assert refusal([ROOT.der]).reason == "SVID_IS_CA"
    assert refusal([intermediate(ROOT).der, ROOT.der]).reason == "SVID_IS_CA"


def test_a_name_that_is_no_text_vouches_for_nobody_and_harms_nobody() -> None:
    """A BIT STRING as common name makes cryptography raise a TypeError, late."""
    odd = ROOT.der.replace(b"\x55\x04\x03\x0c\x04root", b"\x55\x04\x03\x03\x04\x00oot")
    assert odd != ROOT.der
    assert refusal([GOOD, odd]).reason == "SVID_MALFORMED"
    authorities = tuple(X509Authority(certificate=der) for der in (odd, ROOT.der))
    assert verify([GOOD], TrustBundle(trust_domain=TD, x509_authorities=authorities))
    assert refusal([GOOD], TrustBundle(trust_domain=TD, x509_authorities=authorities[:1])).reason.startswith("SVID_")


def test_validity_includes_both_ends_and_messages_show_both_clocks() -> None:
    verify([GOOD], now=NOW - HOUR)
    verify([GOOD], now=NOW + HOUR)
    late = refusal([GOOD], now=NOW + HOUR + timedelta(microseconds=1))
    early = refusal([GOOD], now=NOW - HOUR - timedelta(microseconds=1))
    assert (late.reason, early.reason) == ("SVID_EXPIRED", "SVID_NOT_YET_VALID")
    assert "2026-06-01T13:00:00+00:00" in late.detail
    assert "2026-06-01T13:00:00.000001+00:00" in late.detail
    assert "2026-06-01T11:00:00+00:00" in early.detail
    assert "2026-06-01T10:59:59.999999+00:00" in early.detail
    assert parse_x509_svid([GOOD]).not_after == NOW + HOUR


class TestTrust:
    def test_another_domains_root_does_not_vouch_for_our_ids(self) -> None:
        foreign = root("foreign root")
        forged = foreign.sign(Cert(san=[uri("spiffe://example.org/admin")]))
        assert refusal([forged], ROOT.bundle(), foreign.bundle(OTHER)).reason == "SVID_UNTRUSTED"
        fair = foreign.sign(Cert(san=[uri("spiffe://other.org/a")]))
        assert verify([fair], ROOT.bundle(), foreign.bundle(OTHER)).id.trust_domain == OTHER

    def test_a_root_of_the_same_name_and_another_key(self) -> None:
        twin = root("root", key=key("P-256", "twin"))
        error = refusal([twin.sign(Cert())])
        assert error.reason == "SVID_UNTRUSTED"
        assert "signature" in error.detail

    def test_of_two_roots_of_one_name_the_right_one_is_found(self) -> None:
        twin = root("root", key=key("P-256", "twin"))
        both = TrustBundle(
            trust_domain=TD, x509_authorities=(X509Authority(certificate=twin.der), X509Authority(certificate=ROOT.der))
        )
        verify([GOOD], both)
        verify([twin.sign(Cert())], both)
        verify([ROOT.sign(Cert(key_identifiers=False))], both)

    @pytest.mark.parametrize(
        "bundles",
        [(), (TrustBundle(trust_domain=TD),), (ROOT.bundle(OTHER),)],
        ids=["none", "empty", "another domain's"],
    )
    def test_no_bundle_or_an_empty_one(self, bundles: tuple[TrustBundle, ...]) -> None:
        with pytest.raises(Unauthenticated) as caught:
            verify_x509_svid([GOOD], {b.trust_domain: b for b in bundles}, now=NOW)
        assert caught.value.reason == "SVID_UNTRUSTED_DOMAIN"
        assert "`example.org`" in caught.value.detail

    def test_broken_authorities_are_passed_over(self) -> None:
        broken = X509Authority(certificate=b"junk")
        assert refusal([GOOD], TrustBundle(trust_domain=TD, x509_authorities=(broken,))).reason == (
            "SVID_UNTRUSTED_DOMAIN"
        )
        verify([GOOD], TrustBundle(trust_domain=TD, x509_authorities=(broken, X509Authority(certificate=ROOT.der))))

    def test_tainted_authorities_still_vouch(self) -> None:
        tainted = X509Authority(certificate=ROOT.der, tainted=True)
        verify([GOOD], TrustBundle(trust_domain=TD, x509_authorities=(tainted,)))

    def test_a_leaf_in_the_bundle_is_no_authority(self) -> None:
        selfmade = root("self", key=key("P-256", "self"), constraints=x509.BasicConstraints(False, None))
        leaf = selfmade.sign(Cert())
        assert refusal([leaf], selfmade.bundle()).reason == "SVID_ISSUER_NOT_CA"
        assert refusal([leaf, selfmade.der]).reason == "SVID_ISSUER_NOT_CA"

    def test_a_self_signed_leaf_does_not_vouch_for_itself(self) -> None:
        own = Authority("workload", key("P-256", "leaf"), b"")
        assert refusal([own.sign(Cert())]).reason == "SVID_UNTRUSTED"


BAD_INTERMEDIATES: dict[str, tuple[dict[str, Any], str]] = {
    "no basic constraints": ({"constraints": None}, "SVID_ISSUER_NOT_CA"),
    "cA false": ({"constraints": x509.BasicConstraints(False, None)}, "SVID_ISSUER_NOT_CA"),
    "no keyCertSign": ({"key_usage": usage("crl_sign", "digital_signature")}, "SVID_ISSUER_NOT_CA"),
    "unknown critical extension": ({"extra": [(UNKNOWN, True)]}, "SVID_ISSUER_UNSUPPORTED"),
    "policy constraints": ({"extra": [(x509.PolicyConstraints(0, None), False)]}, "SVID_ISSUER_UNSUPPORTED"),
    "inhibit any policy": ({"extra": [(x509.InhibitAnyPolicy(0), True)]}, "SVID_ISSUER_UNSUPPORTED"),
    "expired": ({"not_after": NOW - SECOND}, "SVID_ISSUER_EXPIRED"),
    "not yet valid": ({"not_before": NOW + SECOND}, "SVID_ISSUER_NOT_YET_VALID"),
    "RSA key of 1024 bits": ({"key": key("RSA-1024", "weak")}, "SVID_WEAK"),
    "key on another curve": ({"key": key("K-256", "weak")}, "SVID_WEAK"),
    "SHA-224 signature on it": ({"digest": hashes.SHA224()}, "SVID_WEAK"),
    "names out of its constraints": (
        {"extra": [(x509.NameConstraints([uri("other.org")], None), True)]},
        "SVID_NAME_CONSTRAINTS",
    ),
}


class TestPath:
    def test_intermediates_in_any_order_with_or_without_the_root(self) -> None:
        first = intermediate(ROOT, "first")
        second = intermediate(first, "second")
        leaf = second.sign(Cert())
        stranger = root("stranger").der
        for extra in ([second.der, first.der], [first.der, second.der], [stranger, first.der, ROOT.der, second.der]):
            assert verify([leaf, *extra]).chain == (leaf, *extra)

    def test_missing_intermediate(self) -> None:
        first = intermediate(ROOT, "first")
        second = intermediate(first, "second")
        error = refusal([second.sign(Cert()), second.der])
        assert error.reason == "SVID_UNTRUSTED"
        assert "intermediate" in error.hint

    def test_an_intermediate_in_the_bundle_is_enough(self) -> None:
        middle = intermediate(ROOT)
        verify([middle.sign(Cert())], middle.bundle())

    def test_an_intermediate_may_hold_a_stronger_or_other_key(self) -> None:
        for kind in ("P-384", "P-521", "RSA-2048", "Ed25519"):
            middle = intermediate(ROOT, f"middle {kind}", key=key(kind, "middle"))
            verify([middle.sign(Cert()), middle.der])

    @pytest.mark.parametrize(("changes", "reason"), BAD_INTERMEDIATES.values(), ids=BAD_INTERMEDIATES.keys())
    def test_bad_intermediates_and_the_same_as_roots(self, changes: dict[str, Any], reason: str) -> None:
        middle = intermediate(ROOT, "bad", **changes)
        assert refusal([middle.sign(Cert()), middle.der]).reason == reason
        anchor = root("bad", **changes)
        if "digest" not in changes:  # how an authority itself was signed does not count
            assert refusal([anchor.sign(Cert())], anchor.bundle()).reason == reason
        else:
            verify([anchor.sign(Cert())], anchor.bundle())

    def test_no_key_usage_in_an_old_root_is_allowed(self) -> None:
        old = root("old", key_usage=None, san=[])
        verify([old.sign(Cert())], old.bundle())

    def test_a_leaf_may_not_issue(self) -> None:
        leaf = Authority("workload", key("P-256", "leaf"), GOOD)
        below = leaf.sign(Cert(subject="victim", key=key("P-256", "thief"), san=[uri("spiffe://example.org/admin")]))
        assert refusal([below, GOOD]).reason == "SVID_ISSUER_NOT_CA"

    @pytest.mark.parametrize(("length", "passes"), [(None, True), (2, True), (1, False), (0, False)])
    def test_path_length(self, length: int | None, passes: bool) -> None:
        top = root("top", constraints=x509.BasicConstraints(True, length))
        first = intermediate(top, "first")
        second = intermediate(first, "second")
        chain = [second.sign(Cert()), second.der, first.der]
        if passes:
            verify(chain, top.bundle())
        else:
            assert refusal(chain, top.bundle()).reason == "SVID_PATH_LENGTH"
        verify([first.sign(Cert()), first.der], root("top", constraints=x509.BasicConstraints(True, 1)).bundle())

    def test_self_issued_certificates_do_not_count_for_path_length(self) -> None:
        top = root("top", constraints=x509.BasicConstraints(True, 0))
        rolled = intermediate(top, "top", key=key("P-256", "rolled over"))
        verify([rolled.sign(Cert()), rolled.der], top.bundle())

    def test_the_way_up_is_found_beside_dead_ends(self) -> None:
        """A cross-certified intermediate: one certificate leads to a stranger, the other to our root."""
        astray = intermediate(root("stranger"), "shared")
        home = intermediate(ROOT, "shared")
        assert astray.key is home.key
        verify([home.sign(Cert()), astray.der, home.der])

    def test_loops_end(self) -> None:
        a = Authority("a", key("P-256", "a"), b"")
        b = Authority("b", key("P-256", "b"), b"")
        a_by_b, b_by_a = intermediate(b, "a").der, intermediate(a, "b").der
        assert refusal([a.sign(Cert()), a_by_b, b_by_a]).reason == "SVID_UNTRUSTED"

    def test_hostile_chains_cost_a_bounded_number_of_signature_checks(self) -> None:
        loop = Authority("loop", key("P-256", "loop"), b"")
        chain = [loop.sign(Cert()), *(intermediate(loop, "loop").der for _ in range(MAX_PATH_CERTIFICATES - 1))]
        assert refusal(chain).reason in {"SVID_CHAIN_TOO_COMPLEX", "SVID_UNTRUSTED"}


def test_two_statements_of_the_signature_algorithm_must_agree() -> None:
    sha256 = bytes.fromhex("2a8648ce3d040302")
    position = GOOD.rindex(sha256)
    changed = GOOD[:position] + bytes.fromhex("2a8648ce3d040303") + GOOD[position + len(sha256) :]
    assert x509.load_der_x509_certificate(changed).signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA384
    assert refusal([changed]).reason == "SVID_UNTRUSTED"


def test_no_change_of_a_single_byte_survives() -> None:
    bundles = {TD: ROOT.bundle(), OTHER: ROOT.bundle(OTHER)}
    for position in range(len(GOOD)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(GOOD)
            changed[position] ^= flip
            with pytest.raises(Unauthenticated):
                verify_x509_svid([bytes(changed)], bundles, now=NOW)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=3))
def test_no_bytes_crash(chain: list[bytes]) -> None:
    with pytest.raises(Unauthenticated):
        verify(chain)
    for extra in chain:
        assert refusal([GOOD, extra]).reason == "SVID_MALFORMED"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD)), st.integers(0, 8), st.binary(max_size=8))
def test_no_splice_survives(position: int, cut: int, inserted: bytes) -> None:
    changed = GOOD[:position] + inserted + GOOD[position + cut :]
    if changed != GOOD:
        refusal([changed])
