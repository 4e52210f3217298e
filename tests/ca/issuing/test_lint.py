"""Every lint rule refuses its bad certificate, and the fast lint says what the full one says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ca.errors import Internal, InvalidArgument
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.issuing import der
from ca.issuing import extensions as ext
from ca.issuing.lifetime import Lifetime
from ca.issuing.lint import CONSTANT_RULES, VARYING_RULES, findings, lint
from ca.issuing.names import COMMON_NAME, encode_name
from ca.issuing.parts import VARYING, VERSION_3, Parts, parse_tbs
from ca.issuing.profile import SVID_SUBJECT, WORKLOAD, authority_subject
from ca.issuing.rules import RULES, Expected
from ca.issuing.signature import ECDSA_SHA256, RSA_SHA256
from ca.issuing.spki import PublicKeyInfo
from ca.issuing.template import MAX_OUTLINES
from ca.issuing.times import encode_validity
from ca.issuing.token import IssuanceToken
from ca.issuing.x509 import prepare_intermediate, prepare_leaf, prepare_root
from ca.ports import KeyType
from tests.ca.issuing.support import NOW, TD, issuer, lifetime, signer, subject_key

TIMES = lifetime(NOW, NOW + timedelta(hours=1))
ID = SpiffeId.of(TD, "/ns/a/sa/b")


def leaf(
    dns_names: tuple[str, ...] = (),
    key: PublicKeyInfo | None = None,
    path: str = "/ns/a/sa/b",
    serial: int = 7,
    times: Lifetime = TIMES,
) -> IssuanceToken:
    return prepare_leaf(
        profile=WORKLOAD,
        spiffe_id=SpiffeId.of(TD, path),
        dns_names=dns_names,
        public_key=key or subject_key(),
        lifetime=times,
        serial=serial,
        issuer=issuer(),
    )


def authority() -> IssuanceToken:
    return prepare_intermediate(public_key_der=subject_key().der, lifetime=TIMES, serial=8, issuer=issuer())


def self_signed() -> IssuanceToken:
    made = signer()
    return prepare_root(
        trust_domain=TD, public_key_der=made.public_key_der, key_type=KeyType.EC_P256, lifetime=TIMES, serial=9
    )


@dataclass(frozen=True)
class Tbs:
    """A to-be-signed certificate in pieces that a test can spoil one at a time."""

    serial: bytes = b"\x02\x01\x07"
    version: bytes = VERSION_3
    algorithm: bytes = ECDSA_SHA256.identifier
    issuer: bytes = field(default_factory=lambda: issuer().name)
    validity: bytes = field(default_factory=lambda: encode_validity(TIMES.not_before, TIMES.not_after))
    subject: bytes = encode_name(SVID_SUBJECT)
    key: bytes = field(default_factory=lambda: subject_key().der)
    unique_id: bytes = b""
    usage: bytes = ext.extension(ext.KEY_USAGE, ext.DIGITAL_SIGNATURE, critical=True)
    purposes: bytes = ext.extension(ext.EXTENDED_KEY_USAGE, der.tlv(0x30, ext.SERVER_AUTH + ext.CLIENT_AUTH))
    constraints: bytes = ext.extension(ext.BASIC_CONSTRAINTS, b"\x30\x00", critical=True)
    subject_key_id: bytes = field(
        default_factory=lambda: ext.extension(ext.SUBJECT_KEY_IDENTIFIER, der.tlv(0x04, subject_key().identifier))
    )
    authority_key_id: bytes = field(default_factory=lambda: ext.authority_key(issuer().key_id))
    names: bytes = ext.extension(ext.SUBJECT_ALT_NAME, ext.alternative_names(str(ID), ()))
    more: bytes = b""

    def encode(self) -> bytes:
        extensions = (
            self.usage
            + self.purposes
            + self.constraints
            + self.subject_key_id
            + self.authority_key_id
            + self.names
            + self.more
        )
        fields = self.serial, self.algorithm, self.issuer, self.validity, self.subject, self.key, self.unique_id
        return der.tlv(0x30, self.version + b"".join(fields) + der.tlv(0xA3, der.tlv(0x30, extensions)))


def usage(bits: bytes, *, critical: bool = True) -> bytes:
    return ext.extension(ext.KEY_USAGE, bits, critical=critical)


def names(value: bytes, *, critical: bool = False) -> bytes:
    return ext.extension(ext.SUBJECT_ALT_NAME, value, critical=critical)


def utc(text: str) -> bytes:
    return der.tlv(der.UTC_TIME, text.encode())


A_URI = der.tlv(ext.URI, str(ID).encode())

SPOILED: list[tuple[str, dict[str, bytes]]] = [
    ("version", {"version": b""}),
    ("version", {"version": b"\xa0\x03\x02\x01\x01"}),
    ("serial number", {"serial": b"\x02\x01\x00"}),
    ("serial number", {"serial": b"\x02\x01\x08"}),
    ("serial number", {"serial": der.tlv(0x02, b"\x01" * 21)}),
    ("signature algorithm", {"algorithm": RSA_SHA256.identifier}),
    ("signature algorithm", {"algorithm": der.tlv(0x30, ECDSA_SHA256.identifier[2:] + b"\x05\x00")}),
    ("issuer", {"issuer": b"\x30\x00"}),
    ("issuer", {"issuer": encode_name(authority_subject(1))}),
    ("validity", {"validity": encode_validity(TIMES.not_before, TIMES.not_after + timedelta(seconds=1))}),
    ("validity", {"validity": encode_validity(TIMES.not_after, TIMES.not_before)}),
    ("subject", {"subject": encode_name(authority_subject(1))}),
    ("critical names", {"subject": b"\x30\x00"}),
    ("public key", {"key": subject_key("ec-p256", 1).der}),
    ("unique identifiers", {"unique_id": b"\x81\x02\x00\x01"}),
    ("extensions", {"more": ext.extension(der.object_identifier("2.5.29.31"), b"\x30\x00")}),
    ("extensions", {"more": ext.extension(ext.BASIC_CONSTRAINTS, b"\x30\x00", critical=True)}),
    ("key usage there", {"usage": b""}),
    ("key usage there", {"usage": usage(ext.DIGITAL_SIGNATURE, critical=False)}),
    ("key usage bits", {"usage": usage(ext.DIGITAL_SIGNATURE_KEY_ENCIPHERMENT)}),
    ("key usage bits", {"usage": usage(b"\x03\x02\x03\x88")}),
    ("key usage bits", {"usage": usage(b"\x03\x02\x02\x84")}),
    ("key usage bits", {"usage": usage(b"\x03\x02\x01\x82")}),
    ("key usage bits", {"usage": usage(ext.KEY_CERT_SIGN_CRL_SIGN)}),
    ("extended key usage", {"purposes": b""}),
    ("extended key usage", {"purposes": ext.extension(ext.EXTENDED_KEY_USAGE, der.tlv(0x30, ext.SERVER_AUTH))}),
    ("basic constraints", {"constraints": b""}),
    ("basic constraints", {"constraints": ext.extension(ext.BASIC_CONSTRAINTS, b"\x30\x00")}),
    (
        "basic constraints",
        {"constraints": ext.extension(ext.BASIC_CONSTRAINTS, b"\x30\x03\x01\x01\xff", critical=True)},
    ),
    ("subject key identifier", {"subject_key_id": b""}),
    ("subject key identifier", {"subject_key_id": ext.extension(ext.SUBJECT_KEY_IDENTIFIER, b"\x04\x14" + bytes(20))}),
    ("authority key identifier", {"authority_key_id": b""}),
    ("authority key identifier", {"authority_key_id": ext.authority_key(bytes(20))}),
    ("one URI", {"names": b""}),
    ("one URI", {"names": names(der.tlv(0x30, A_URI + A_URI))}),
    ("one URI", {"names": names(der.tlv(0x30, A_URI + der.tlv(ext.URI, b"https://example.org")))}),
    ("one URI", {"names": names(ext.alternative_names("spiffe://example.org/other", ()))}),
    ("DNS names", {"names": names(ext.alternative_names(str(ID), ("a.example.org",)))}),
    ("name forms", {"names": names(der.tlv(0x30, A_URI + der.tlv(0x81, b"a@example.org")))}),
    ("critical names", {"names": names(ext.alternative_names(str(ID), ()), critical=True)}),
]

UNREADABLE: list[dict[str, bytes]] = [
    {"serial": b"\x02\x02\x00\x07"},
    {"serial": b"\x02\x01\x80"},
    {"serial": b"\x02\x00"},
    {"validity": der.tlv(0x30, utc("2611011200Z") + utc("261101130000Z"))},
    {"validity": der.tlv(0x30, utc("261101120000Z") + utc("261301130000Z"))},
    {"validity": der.tlv(0x30, utc("261101120000Z") + der.tlv(der.GENERALIZED_TIME, b"20261101130000Z"))},
    {"validity": der.tlv(0x30, utc("261101120000Z") + der.tlv(der.GENERALIZED_TIME, b"20501101130000.5Z"))},
    {"validity": der.tlv(0x30, utc("261101120000Z"))},
    {"more": b"\x00"},
    {"usage": der.tlv(0x30, ext.KEY_USAGE + b"\x01\x01\x00" + der.tlv(0x04, ext.DIGITAL_SIGNATURE))},
    {"names": names(A_URI)},
]


@pytest.fixture(autouse=True)
def _warm() -> None:
    """The template of `leaf()` has passed its full lint: what follows is linted the fast way."""
    leaf()
    assert leaf().template.linted is not None


def test_the_pieces_make_the_certificate_that_the_template_makes() -> None:
    """Else the spoiled ones below would be refused for another reason than they were spoiled for."""
    assert Tbs().encode() == leaf().tbs


@pytest.mark.parametrize(("rule", "spoiled"), SPOILED)
def test_each_rule_refuses_what_it_is_about(rule: str, spoiled: dict[str, bytes]) -> None:
    tbs = replace(Tbs(), **spoiled).encode()
    token = leaf()
    assert rule in {found.name for found, _ in findings(tbs, token.want)}
    with pytest.raises(Internal) as caught:
        lint(tbs, token.want, token.template)
    assert caught.value.reason == "LINT"


@pytest.mark.parametrize("spoiled", UNREADABLE)
def test_what_cannot_be_read_is_refused(spoiled: dict[str, bytes]) -> None:
    tbs = replace(Tbs(), **spoiled).encode()
    token = leaf()
    with pytest.raises(InvalidArgument):
        findings(tbs, token.want)
    with pytest.raises(Internal, match="not well-formed"):
        lint(tbs, token.want, token.template)


@pytest.mark.parametrize(
    ("rule", "spoiled"),
    [
        ("subject", {"subject": b"\x30\x00"}),
        ("key usage bits", {"usage": usage(ext.DIGITAL_SIGNATURE)}),
        ("extended key usage", {"purposes": Tbs.purposes}),
        ("basic constraints", {"constraints": Tbs.constraints}),
    ],
)
def test_rules_of_authorities(rule: str, spoiled: dict[str, bytes]) -> None:
    good = {
        "subject": encode_name(authority_subject(8)),
        "serial": b"\x02\x01\x08",
        "usage": usage(ext.KEY_CERT_SIGN_CRL_SIGN),
        "purposes": b"",
        "constraints": ext.extension(ext.BASIC_CONSTRAINTS, b"\x30\x03\x01\x01\xff", critical=True),
        "names": names(ext.alternative_names("spiffe://example.org", ())),
    }
    token = authority()
    assert replace(Tbs(), **good).encode() == token.tbs
    found = findings(replace(Tbs(), **{**good, **spoiled}).encode(), token.want)
    assert rule in {broken.name for broken, _ in found}


@pytest.mark.parametrize("text", [b"", b"x" * 65])
def test_a_subjects_attributes_have_bounds(text: bytes) -> None:
    common_name = der.tlv(0x30, COMMON_NAME + der.tlv(0x0C, text))
    subject = der.tlv(0x30, der.tlv(0x31, common_name))
    tbs = replace(Tbs(), subject=subject).encode()
    assert [rule.name for rule, _ in findings(tbs, leaf().want._replace(subject=subject))] == ["subject"]


def test_a_root_names_no_other_authority() -> None:
    token = self_signed()
    parts = parse_tbs(token.tbs)._replace(authority_key_id=parse_tbs(leaf().tbs).authority_key_id)
    rule = next(rule for rule in RULES if rule.name == "authority key identifier")
    assert rule.check(parts, token.want)
    assert not rule.check(parse_tbs(token.tbs), token.want)


@pytest.mark.parametrize(
    ("token", "identity"),
    [
        (leaf(), SpiffeId.of(TrustDomain("other.org"), "/ns/a/sa/b")),
        (leaf(), TD.id),
        (authority(), ID),
    ],
)
def test_the_identity_must_fit_kind_and_trust_domain(token: IssuanceToken, identity: SpiffeId) -> None:
    broken = {rule.name for rule, _ in findings(token.tbs, token.want._replace(spiffe_id=identity))}
    assert {"identity", "one URI"} <= broken


def test_a_dns_name_of_a_wrong_form_is_found_in_the_bytes() -> None:
    wrong = ("-a.example.org",)
    tbs = replace(Tbs(), names=names(ext.alternative_names(str(ID), wrong))).encode()
    found = findings(tbs, leaf().want._replace(dns_names=wrong))
    assert [rule.name for rule, _ in found] == ["DNS names"]


def test_an_rsa_key_may_carry_keys_and_an_ec_key_may_not() -> None:
    rsa_leaf = leaf(key=subject_key("rsa-2048"))
    usage_part = parse_tbs(rsa_leaf.tbs).key_usage
    assert usage_part is not None
    assert usage_part.value == ext.DIGITAL_SIGNATURE_KEY_ENCIPHERMENT
    ec_parts = parse_tbs(leaf().tbs)._replace(key_usage=usage_part)
    rule = next(rule for rule in RULES if rule.name == "key usage bits")
    assert "EC key" in rule.check(ec_parts, leaf().want)


def everything() -> Iterator[tuple[bytes, IssuanceToken]]:
    """Good and spoiled bytes, each with the token whose expectations they should be held to."""
    token = leaf()
    yield token.tbs, token
    for other in (
        leaf(serial=2**127),
        leaf(path="/other"),
        leaf(("a.example.org",)),
        leaf(key=subject_key("rsa-2048")),
    ):
        yield other.tbs, other
        yield other.tbs, token
        yield token.tbs, other
    for _, spoiled in SPOILED:
        yield replace(Tbs(), **spoiled).encode(), token
    for spoiled in UNREADABLE:
        yield replace(Tbs(), **spoiled).encode(), token


def full_verdict(tbs: bytes, want: Expected) -> bool:
    try:
        return not findings(tbs, want)
    except InvalidArgument:
        return False


def fast_verdict(tbs: bytes, token: IssuanceToken) -> bool:
    assert token.template.linted is not None
    try:
        lint(tbs, token.want, token.template)
    except Internal:
        return False
    return True


def quick_verdict(tbs: bytes, token: IssuanceToken) -> bool:
    """Whether the bytes need no rule at all, being like some that passed."""
    return token.template.expects(tbs, token.want, ext.alternative_names(str(token.want.spiffe_id), ()))


def test_fast_and_full_lint_agree() -> None:
    for tbs, token in everything():
        assert fast_verdict(tbs, token) == full_verdict(tbs, token.want)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_fast_and_full_lint_agree_on_every_changed_byte(flip: int) -> None:
    token = leaf(("a.example.org",), serial=0x7766554433221100)
    for at in range(len(token.tbs)):
        changed = bytearray(token.tbs)
        changed[at] ^= flip
        verdict = full_verdict(bytes(changed), token.want)
        assert fast_verdict(bytes(changed), token) is verdict is False


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_the_quickest_lint_and_the_full_one_agree_on_every_changed_byte(flip: int) -> None:
    """Of a leaf without DNS names, like the one before it: only serial number, key and ID are looked at anew."""
    token = leaf()
    assert quick_verdict(token.tbs, token)
    for at in range(len(token.tbs)):
        changed = bytearray(token.tbs)
        changed[at] ^= flip
        verdict = full_verdict(bytes(changed), token.want)
        assert quick_verdict(bytes(changed), token) is False
        assert fast_verdict(bytes(changed), token) is verdict is False


def test_what_failed_the_lint_leaves_no_outline() -> None:
    """A common name where the profile has none, twice: the second is no more like one that passed than the first."""
    token = leaf()
    subject = der.tlv(0x30, der.tlv(0x31, der.tlv(0x30, COMMON_NAME + der.tlv(0x0C, b"x" * 65))))
    want = token.want._replace(subject=subject)
    for _ in range(2):
        with pytest.raises(Internal, match="subject"):
            lint(replace(Tbs(), subject=subject).encode(), want, token.template)


def test_lifetimes_and_lengths_in_turn_stay_quick() -> None:
    """A batch of entries with several TTLs and IDs of several lengths; a key of another length is another outline."""
    tokens = [
        leaf(path=path, serial=serial, key=key, times=lifetime(NOW, NOW + timedelta(seconds=seconds)))
        for path in ("/web", "/database", "/" + "x" * 200)
        for serial in (1, 2**127, 2**128 - 1)
        for key in (subject_key("ec-p256"), subject_key("ec-p384"))
        for seconds in (60, 3600)
    ]
    for token in tokens:
        assert quick_verdict(token.tbs, token)
        for other in tokens:
            same = other is token
            assert quick_verdict(other.tbs, token) is same
            assert full_verdict(other.tbs, token.want) is same


def test_a_template_keeps_so_many_outlines_and_no_more() -> None:
    for length in range(1, MAX_OUTLINES + 10):
        token = leaf(path="/" + "x" * length)
        assert quick_verdict(token.tbs, token)
    assert len(token.template.outlines) <= MAX_OUTLINES


@pytest.mark.parametrize(
    "other",
    [
        {"serial": 0},
        {"serial": 1 << 159},
        {"spiffe_id": SpiffeId.parse("spiffe://example.org")},
        {"spiffe_id": SpiffeId.parse("spiffe://other.org/web")},
        {"kind": "authority"},
        {"dns_names": ("a.example.org",)},
    ],
)
def test_the_quickest_lint_leaves_to_the_rules_what_it_does_not_know(other: dict[str, Any]) -> None:
    token = leaf()
    want = token.want._replace(**other)
    tbs = token.template.fill(
        serial=want.serial,
        lifetime=want.lifetime,
        key_der=want.key.der,
        key_identifier=want.key_identifier,
        names=ext.alternative_names(str(want.spiffe_id), ()),
        subject=want.subject,
    )
    assert not full_verdict(tbs, want)
    with pytest.raises(Internal):
        lint(tbs, want, token.template)


@pytest.mark.parametrize("cut_off", [1, 2, 10, 100])
def test_fast_and_full_lint_agree_on_other_lengths(cut_off: int) -> None:
    token = leaf()
    for tbs in (token.tbs[:-cut_off], token.tbs + bytes(cut_off)):
        assert fast_verdict(tbs, token) is full_verdict(tbs, token.want) is False


def test_a_template_is_not_believed_before_a_full_lint() -> None:
    token = self_signed()
    spoiled = token.template
    spoiled.linted = None
    assert spoiled.cut(token.tbs, token.want) is None
    with pytest.raises(Internal):
        lint(token.tbs, token.want._replace(kind="leaf"), spoiled)
    assert spoiled.linted is None


class Only:
    """Lends the named fields of a tuple and no others."""

    def __init__(self, value: Any, allowed: frozenset[str]) -> None:
        self._value = value
        self._allowed = allowed

    def __getattr__(self, name: str) -> Any:
        assert name in self._allowed, f"the rule reads `{name}` without saying so"
        return getattr(self._value, name)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rules_read_only_what_they_say(rule: Any) -> None:
    """The fast lint leaves out rules that say they read nothing varying: they must not read it behind its back."""
    seen = [*everything(), (authority().tbs, authority()), (self_signed().tbs, self_signed())]
    for tbs, token in seen:
        try:
            parts: Parts = parse_tbs(tbs)
            expected = rule.check(parts, token.want)
        except InvalidArgument:
            continue
        assert rule.check(Only(parts, rule.reads), Only(token.want, rule.expects)) == expected


def test_the_rules_left_out_read_nothing_that_varies() -> None:
    assert not any(rule.reads & VARYING for rule in CONSTANT_RULES)
    assert set(CONSTANT_RULES) | set(VARYING_RULES) == set(RULES)
    for rule in CONSTANT_RULES:
        assert rule.expects <= {"kind", "issuer"}
    assert all(rule.citation.startswith(("RFC ", "X509-SVID ")) for rule in RULES)


def test_the_lints_own_subject_is_the_profiles() -> None:
    assert leaf().template.subject == Tbs.subject
    never = replace(Tbs(), validity=encode_validity(datetime(2026, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)))
    assert {rule.name for rule, _ in findings(never.encode(), leaf().want)} == {"validity"}
