"""Trust bundles: the standard's tolerance case by case, SPIRE's documents byte for byte, round trips."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import InvalidArgument
from ca.identity import base64url, bundle_json
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority, authority_id
from ca.identity.bundle_format import format_jwks, format_oidc_jwks, format_plain_jwks, format_spiffe_bundle
from ca.identity.bundle_json import parse_spiffe_bundle, parse_workload_jwks
from ca.identity.bundle_pem import certificate_pem, format_pem, parse_certificates, parse_pem
from tests.ca.identity.forge import NOW, TD, Cert, jwt_bundle, key, root, spki

ROOT, SECOND = root(), root("second", key=key("RSA-2048", "second"))
FULL = TrustBundle(
    trust_domain=TD,
    x509_authorities=(X509Authority(certificate=ROOT.der), X509Authority(certificate=SECOND.der)),
    jwt_authorities=(
        JwtAuthority(key_id="ec", public_key=spki(key("P-256", "jwt"))),
        JwtAuthority(key_id="rsa", public_key=spki(key("RSA-2048", "jwt"))),
    ),
    refresh_hint_seconds=300,
    sequence_number=2,
)


def b64(der: bytes) -> str:
    return base64.b64encode(der).decode()


def x509_key(**changes: Any) -> dict[str, Any]:
    return {"use": "x509-svid", "kty": "EC", "x5c": [b64(ROOT.der)]} | changes


def jwt_key(**changes: Any) -> dict[str, Any]:
    element = json.loads(format_spiffe_bundle(jwt_bundle(k=key("P-256", "jwt"))))["keys"][0]
    return {name: value for name, value in (element | changes).items() if value is not None}


def rsa_key(**changes: Any) -> dict[str, Any]:
    element = json.loads(format_spiffe_bundle(jwt_bundle(k=key("RSA-2048", "jwt"))))["keys"][0]
    return element | changes


def document(*keys: Any, **members: Any) -> str:
    return json.dumps({"keys": list(keys)} | members)


def parse(text: str | bytes) -> TrustBundle:
    return parse_spiffe_bundle(text, TD)


def test_spires_document_layout_byte_for_byte() -> None:
    ca = x509.load_der_x509_certificate(ROOT.der).public_key()
    signer = key("RSA-2048", "jwt").public_key()
    assert isinstance(ca, ec.EllipticCurvePublicKey)
    assert isinstance(signer, rsa.RSAPublicKey)
    point, modulus = ca.public_numbers(), signer.public_numbers().n
    bundle = dataclasses.replace(
        FULL, x509_authorities=FULL.x509_authorities[:1], jwt_authorities=FULL.jwt_authorities[1:]
    )
    assert (
        format_spiffe_bundle(bundle)
        == f"""{{
    "keys": [
        {{
            "use": "x509-svid",
            "kty": "EC",
            "crv": "P-256",
            "x": "{base64url.encode(point.x.to_bytes(32, "big"))}",
            "y": "{base64url.encode(point.y.to_bytes(32, "big"))}",
            "x5c": [
                "{b64(ROOT.der)}"
            ]
        }},
        {{
            "use": "jwt-svid",
            "kty": "RSA",
            "kid": "rsa",
            "n": "{base64url.encode(modulus.to_bytes(256, "big"))}",
            "e": "AQAB"
        }}
    ],
    "spiffe_sequence": 2,
    "spiffe_refresh_hint": 300
}}"""
    )


def test_members_of_each_kind_of_jwks() -> None:
    def members(text: str) -> list[list[str]]:
        document = json.loads(text)
        assert list(document) == ["keys"]
        return [list(k) for k in document["keys"]]

    ec_members, rsa_members = ["kty", "kid", "crv", "x", "y"], ["kty", "kid", "n", "e"]
    assert members(format_plain_jwks(FULL)) == [ec_members, rsa_members]
    assert members(format_jwks(FULL)) == [["use", *ec_members], ["use", *rsa_members]]
    assert {k["use"] for k in json.loads(format_jwks(FULL))["keys"]} == {"jwt-svid"}
    assert {k["use"] for k in json.loads(format_oidc_jwks(FULL))["keys"]} == {"sig"}
    assert format_jwks(TrustBundle(trust_domain=TD)) == '{\n    "keys": []\n}'


def test_a_refresh_hint_of_zero_is_left_out_and_the_sequence_is_not() -> None:
    document = json.loads(format_spiffe_bundle(TrustBundle(trust_domain=TD)))
    assert document == {"keys": [], "spiffe_sequence": 0}


def test_what_is_written_is_read() -> None:
    assert parse(format_spiffe_bundle(FULL)) == FULL
    assert parse(format_spiffe_bundle(FULL).encode()) == FULL
    jwt_alone = TrustBundle(trust_domain=TD, jwt_authorities=FULL.jwt_authorities)
    assert parse_workload_jwks(format_jwks(FULL).encode(), TD) == jwt_alone
    assert parse_workload_jwks(format_plain_jwks(FULL), TD) == jwt_alone


def test_taints_and_expiry_are_not_published() -> None:
    marked = dataclasses.replace(
        FULL,
        x509_authorities=tuple(dataclasses.replace(a, tainted=True) for a in FULL.x509_authorities),
        jwt_authorities=tuple(
            dataclasses.replace(a, tainted=True, expires_at=NOW + timedelta(1)) for a in FULL.jwt_authorities
        ),
    )
    assert format_spiffe_bundle(marked) == format_spiffe_bundle(FULL)


@pytest.mark.parametrize("kind", ["P-256", "P-384", "P-521", "RSA-2048"])
def test_jwt_keys_of_every_kind_round_trip(kind: str) -> None:
    bundle = jwt_bundle(k=key(kind, "round trip"))
    assert parse(format_spiffe_bundle(bundle)) == bundle


def test_an_ed25519_ca_can_be_published_and_an_unknown_curve_cannot() -> None:
    bundle = root("ed", key=key("Ed25519", "ca")).bundle()
    assert json.loads(format_spiffe_bundle(bundle))["keys"][0]["kty"] == "OKP"
    assert parse(format_spiffe_bundle(bundle)) == bundle
    for unsupported in (root("k", key=key("K-256", "ca")).bundle(), jwt_bundle(k=key("K-256", "ca"))):
        with pytest.raises(InvalidArgument) as caught:
            format_spiffe_bundle(unsupported)
        assert caught.value.reason == "PUBLIC_KEY_UNSUPPORTED"
    with pytest.raises(InvalidArgument) as caught:
        format_spiffe_bundle(jwt_bundle(**{"": key("P-256", "jwt")}))
    assert caught.value.reason == "JWT_AUTHORITY_NO_KEY_ID"


IGNORED: dict[str, dict[str, Any]] = {
    "unknown kty": x509_key(kty="UNKNOWN"),
    "symmetric key": jwt_key(kty="oct"),
    "no kty": {"use": "x509-svid", "x5c": [b64(ROOT.der)]},
    "kty a number": x509_key(kty=1),
    "unknown use": x509_key(use="wit-svid"),
    "use in another case": x509_key(use="X509-SVID"),
    "use sig": jwt_key(use="sig"),
    "no use": jwt_key(use=None),
    "use null": x509_key(use=None),
    "use a list": x509_key(use=["x509-svid"]),
    "no x5c": {"use": "x509-svid", "kty": "EC"},
    "empty x5c": x509_key(x5c=[]),
    "x5c null": x509_key(x5c=None),
    "x5c a string": x509_key(x5c=b64(ROOT.der)),
    "x5c of no string": x509_key(x5c=[1]),
    "x5c no base64": x509_key(x5c=["!"]),
    "x5c base64url": x509_key(x5c=["-_-_"]),
    "x5c no certificate": x509_key(x5c=["AAAA"]),
    "x5c first broken, second good": x509_key(x5c=["AAAA", b64(ROOT.der)]),
    "jwt key without kid": jwt_key(kid=None),
    "jwt key with empty kid": jwt_key(kid=""),
    "jwt key with numeric kid": jwt_key(kid=1),
    "jwt key without crv": jwt_key(crv=None),
    "jwt key on an unknown curve": jwt_key(crv="secp256k1"),
    "jwt key without x": jwt_key(x=None),
    "jwt key with padded x": jwt_key(x=jwt_key()["x"] + "="),
    "jwt key with short x": jwt_key(x="AAAA"),
    "jwt key off the curve": jwt_key(y=base64url.encode(b"\x01" * 32)),
    "jwt key of Ed25519": {"use": "jwt-svid", "kty": "OKP", "kid": "k", "crv": "Ed25519", "x": "A" * 43},
    "rsa key without e": {k: v for k, v in rsa_key().items() if k != "e"},
    "rsa key with even e": rsa_key(e="AAAC"),
    "rsa key with e of 1": rsa_key(e="AQ"),
    "rsa key with long e": rsa_key(e="A" * 40),
    "rsa key of 17000 bits": rsa_key(n=base64url.encode(b"\xff" * 2125)),
    "rsa key with empty n": rsa_key(n=""),
    "nothing in it": {},
}


@pytest.mark.parametrize("element", IGNORED.values(), ids=IGNORED.keys())
def test_unusable_elements_are_ignored_and_the_rest_is_loaded(element: dict[str, Any]) -> None:
    alone = parse(document(element))
    assert (alone.x509_authorities, alone.jwt_authorities) == ((), ())
    beside = parse(document(x509_key(x5c=[b64(SECOND.der)]), element, rsa_key(kid="good")))
    assert [a.certificate for a in beside.x509_authorities] == [SECOND.der]
    assert [a.key_id for a in beside.jwt_authorities] == ["good"]


def test_only_the_first_certificate_of_an_element_counts() -> None:
    bundle = parse(document(x509_key(x5c=[b64(ROOT.der), b64(SECOND.der)])))
    assert bundle.x509_authorities == (X509Authority(certificate=ROOT.der),)
    broken_second = parse(document(x509_key(x5c=[b64(ROOT.der), 7])))
    assert broken_second == bundle


def test_a_jwt_svid_key_with_a_certificate_gives_no_x509_authority_and_the_reverse() -> None:
    bundle = parse(
        document(jwt_key(x5c=[b64(ROOT.der)]), x509_key(**{k: v for k, v in jwt_key().items() if k != "use"}))
    )
    assert [len(bundle.jwt_authorities), len(bundle.x509_authorities)] == [1, 1]
    assert parse(document(jwt_key(x5c=[b64(ROOT.der)]))).x509_authorities == ()


def test_the_same_authority_twice_counts_once() -> None:
    bundle = parse(document(x509_key(), x509_key(kid="x"), jwt_key(), jwt_key(alg="ES256")))
    assert [len(bundle.x509_authorities), len(bundle.jwt_authorities)] == [1, 1]


def test_only_keys_is_required_and_unknown_members_are_ignored() -> None:
    bundle = parse(document(x509_key(), something={"a": [1]}))
    assert (bundle.sequence_number, bundle.refresh_hint_seconds) == (0, 0)
    assert parse(document()) == TrustBundle(trust_domain=TD)
    assert parse(document(spiffe_sequence=2**64 - 1)).sequence_number == 2**64 - 1


REFUSED: dict[str, str | bytes] = {
    "empty": "",
    "no JSON": "not json",
    "a list": "[]",
    "null": "null",
    "no keys": "{}",
    "keys null": '{"keys":null}',
    "keys an object": '{"keys":{}}',
    "keys with a string": '{"keys":["a"]}',
    "keys with null": '{"keys":[null]}',
    "keys twice": '{"keys":[],"keys":[]}',
    "a member of a key twice": '{"keys":[{"use":"jwt-svid","use":"x509-svid"}]}',
    "a member twice, once escaped": '{"keys":[],"\\u006beys":[]}',
    "sequence a string": document(spiffe_sequence="1"),
    "sequence a fraction": document(spiffe_sequence=1.5),
    "sequence with a point": '{"keys":[],"spiffe_sequence":1.0}',
    "sequence true": document(spiffe_sequence=True),
    "sequence null": document(spiffe_sequence=None),
    "sequence negative": document(spiffe_sequence=-1),
    "sequence of 65 bits": document(spiffe_sequence=2**64),
    "refresh hint a string": document(spiffe_refresh_hint="5m"),
    "refresh hint a fraction": document(spiffe_refresh_hint=0.5),
    "not UTF-8": b'{"keys":[],"x":"\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"keys":[]}',
    "nested too deeply": '{"keys":[],"x":' + "[" * 100_000 + "]" * 100_000 + "}",
    "cut": document(x509_key())[:-1],
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_broken_documents_are_refused_as_a_whole(text: str | bytes) -> None:
    with pytest.raises(InvalidArgument, match="malformed bundle") as caught:
        parse(text)
    assert caught.value.reason == "BUNDLE_MALFORMED"


def test_size_is_checked_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_json, "MAX_BUNDLE_BYTES", 10)
    with pytest.raises(InvalidArgument, match="longer than 10 bytes"):
        parse(document())


class TestWorkloadJwks:
    def test_absent_use_is_taken_and_any_other_is_not(self) -> None:
        text = document(
            jwt_key(use=None, kid="none"),
            jwt_key(kid="jwt"),
            *(
                jwt_key(kid=f"bad {use}") | {"use": use}
                for use in ("sig", "x509-svid", "wit-svid", "JWT-SVID", "", None)
            ),
        )
        assert [a.key_id for a in parse_workload_jwks(text, TD).jwt_authorities] == ["none", "jwt"]

    def test_x509_authorities_are_not_taken(self) -> None:
        assert parse_workload_jwks(format_spiffe_bundle(FULL), TD).x509_authorities == ()

    def test_a_broken_document(self) -> None:
        with pytest.raises(InvalidArgument):
            parse_workload_jwks(b"{}", TD)


class TestPem:
    def test_round_trip_and_layout(self) -> None:
        text = format_pem(FULL)
        assert parse_pem(text, TD) == TrustBundle(trust_domain=TD, x509_authorities=FULL.x509_authorities)
        assert parse_pem(text.encode(), TD) == parse_pem(text.replace("\n", "\r\n"), TD) == parse_pem(text + text, TD)
        assert max(len(line) for line in text.splitlines()) == 64
        assert text.endswith("-----END CERTIFICATE-----\n")
        assert x509.load_pem_x509_certificates(text.encode())

    def test_text_between_blocks_is_passed_over(self) -> None:
        text = "subject: caf\u00e9\n" + format_pem(FULL) + "\nthe end"
        assert parse_certificates(text) == (ROOT.der, SECOND.der)
        assert parse_certificates(text.encode("latin-1")) == (ROOT.der, SECOND.der)

    PEM = certificate_pem(ROOT.der)
    BROKEN = (
        "",
        "no blocks",
        PEM.replace("-----END CERTIFICATE-----", ""),
        PEM.replace("CERTIFICATE", "PRIVATE KEY"),
        PEM.replace("END CERTIFICATE", "END X509 CRL"),
        PEM + PEM.replace("CERTIFICATE", "EC PRIVATE KEY"),
        PEM.replace("M", "!", 1).replace("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\n!"),
        PEM.replace("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nAAAA"),
        certificate_pem(b"junk"),
        PEM + "-----BEGIN CERTIFICATE-----\n",
    )

    @pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
    def test_broken(self, text: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            parse_pem(text, TD)
        assert caught.value.reason == "PEM_MALFORMED"


class TestAuthorityId:
    def test_is_the_hex_of_the_key_identifier(self) -> None:
        certificate = x509.load_der_x509_certificate(ROOT.der)
        ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert authority_id(ROOT.der) == ski.hex()
        assert len(authority_id(ROOT.der)) == 40

    def test_is_computed_where_the_certificate_has_none(self) -> None:
        assert authority_id(root(key_identifiers=False).der) == authority_id(ROOT.der)

    def test_a_broken_certificate(self) -> None:
        with pytest.raises(InvalidArgument):
            authority_id(b"junk")


class TestAnAuthorityWhoseKeyCannotBeRead:
    """The library looks at a certificate's key and extensions only when asked."""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"\x03\x42\x00\x04", b"\x03\x42\x00\x05"),  # no uncompressed point
            (
                b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
                b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x70",
            ),  # no known curve
            (b"\x06\x03\x55\x1d\x0e", b"\x06\x03\x55\x1d\x13"),  # basic constraints twice
        ],
    )
    def test_is_passed_over_or_refused(self, old: bytes, new: bytes) -> None:
        broken = ROOT.der.replace(old, new)
        assert broken != ROOT.der
        with pytest.raises(InvalidArgument):
            authority_id(broken)
        assert parse(document(x509_key(x5c=[b64(broken)]))).x509_authorities == ()
        with pytest.raises(InvalidArgument) as caught:
            parse_pem(certificate_pem(broken), TD)
        assert caught.value.reason == "PEM_MALFORMED"
        with pytest.raises(InvalidArgument):
            format_spiffe_bundle(TrustBundle(trust_domain=TD, x509_authorities=(X509Authority(certificate=broken),)))


def test_values_are_frozen_and_hashable() -> None:
    assert {FULL: 1}[parse(format_spiffe_bundle(FULL))] == 1
    for value, name in (
        (FULL, "sequence_number"),
        *((a, "tainted") for a in FULL.x509_authorities + FULL.jwt_authorities),
    ):
        assert not hasattr(value, "__dict__")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)


def test_a_leaf_among_the_authorities_is_kept_and_vouches_for_nothing() -> None:
    """Whether a certificate may vouch is decided when a path ends in it."""
    assert parse(document(x509_key(x5c=[b64(ROOT.sign(Cert()))]))).x509_authorities


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.binary())
def test_no_document_crashes(text: str | bytes) -> None:
    for read in (parse_spiffe_bundle, parse_workload_jwks, parse_pem):
        with pytest.raises(InvalidArgument):
            read(text, TD)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([x509_key(), jwt_key(), rsa_key()]),
    st.sampled_from(["kty", "use", "x5c", "kid", "crv", "x", "y", "n", "e", "other"]),
    JSON,
)
def test_no_value_of_a_member_crashes_or_harms_its_neighbours(element: dict[str, Any], member: str, value: Any) -> None:
    bundle = parse(document(x509_key(x5c=[b64(SECOND.der)]), element | {member: value}, rsa_key(kid="good")))
    assert X509Authority(certificate=SECOND.der) in bundle.x509_authorities
    assert "good" in {a.key_id for a in bundle.jwt_authorities}
