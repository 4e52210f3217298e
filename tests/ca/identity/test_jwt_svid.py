"""JWT-SVIDs: every algorithm with every wrong key, a vector per defect, SPIRE's recorded answers, changed tokens."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import InvalidArgument
from ca.identity import base64url, jws
from ca.identity.bundle import JwtAuthority, TrustBundle
from ca.identity.jwt_svid import MAX_TOKEN_BYTES, JwtSvid, verify_jwt_svid
from ca.identity.spiffe_id import SpiffeId
from tests.ca.identity.forge import NOW, OTHER, TD, PrivateKey, claims, jwt_bundle, key, root, sign_jws, token

SIGNER = key("P-256", "jwt")
BUNDLE = jwt_bundle(k=SIGNER)
GOOD = token(claims(), SIGNER)
KEYS = {
    "RS256": "RSA-2048",
    "RS384": "RSA-2048",
    "RS512": "RSA-2048",
    "PS256": "RSA-2048",
    "PS384": "RSA-2048",
    "PS512": "RSA-2048",
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
}
SECONDS = int(NOW.timestamp())


def verify(text: str, *bundles: TrustBundle, audience: str = "api", now: datetime = NOW, **options: Any) -> JwtSvid:
    known = {b.trust_domain: b for b in bundles or (BUNDLE,)}
    return verify_jwt_svid(text, audience=audience, bundles=known, now=now, **options)


def refusal(text: str, *bundles: TrustBundle, **options: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        verify(text, *bundles, **options)
    assert "\n" not in caught.value.detail
    return caught.value


def test_a_good_token_says_who_it_is() -> None:
    svid = verify(token(claims(aud=["x", "api"], extra={"n": 1}), SIGNER))
    assert svid.id == SpiffeId.parse("spiffe://example.org/web")
    assert svid.audience == ("x", "api")
    assert svid.expires_at == NOW + timedelta(seconds=300)
    assert svid.claims["extra"] == {"n": 1}
    with pytest.raises(TypeError):
        svid.claims["sub"] = "spiffe://example.org/admin"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        svid.audience = ()  # type: ignore[misc]
    hash(svid)


@pytest.mark.parametrize("alg", sorted(jws.ALGORITHMS))
def test_each_algorithm_with_its_key_and_no_other(alg: str) -> None:
    signer = key(KEYS[alg], "jwt")
    text = token(claims(), signer, alg=alg)
    verify(text, jwt_bundle(k=signer))
    for kind in sorted(set(KEYS.values()) | {"Ed25519", "K-256"}):
        if kind != KEYS[alg]:
            assert refusal(text, jwt_bundle(k=key(kind, "jwt"))).reason == "JWT_KEY_MISMATCH"
    assert refusal(text, jwt_bundle(k=key(KEYS[alg], "another"))).reason == "JWT_SIGNATURE"


def test_the_nine_algorithms_are_all() -> None:
    assert set(KEYS) == jws.ALGORITHMS


def test_one_rsa_key_may_be_used_in_both_schemes_and_each_only_as_named() -> None:
    signer = key("RSA-2048", "jwt")
    for claimed, made in (("RS256", "PS256"), ("PS256", "RS256"), ("RS256", "RS384"), ("PS256", "PS512")):
        head, body, _ = token(claims(), signer, alg=claimed).split(".")
        forged = f"{head}.{body}." + base64url.encode(sign_jws(made, signer, f"{head}.{body}".encode()))
        assert refusal(forged, jwt_bundle(k=signer)).reason == "JWT_SIGNATURE"


def test_a_pss_salt_of_another_length_is_refused() -> None:
    signer = key("RSA-2048", "jwt")
    assert isinstance(signer, rsa.RSAPrivateKey)
    head, body, _ = token(claims(), signer, alg="PS256").split(".")
    signature = signer.sign(f"{head}.{body}".encode(), padding.PSS(padding.MGF1(hashes.SHA256()), 20), hashes.SHA256())
    assert refusal(f"{head}.{body}.{base64url.encode(signature)}", jwt_bundle(k=signer)).reason == "JWT_SIGNATURE"


def test_rsa_keys_under_2048_bits_are_refused() -> None:
    signer = key("RSA-1024", "jwt")
    assert refusal(token(claims(), signer, alg="RS256"), jwt_bundle(k=signer)).reason == "JWT_KEY_MISMATCH"


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "HS256", "HS384", "EdDSA", "ES256K", "es256", "RS1", "", None, 1, ["ES256"]]
)
def test_other_algorithms_are_refused_before_anything_is_processed(alg: Any) -> None:
    text = token(claims(), SIGNER, header={"alg": alg})
    head, body, signature = text.split(".")
    for variant in (text, f"{head}.{body}.", f"{head}.!.{signature}"):
        assert refusal(variant).reason == "JWT_ALGORITHM"


@pytest.mark.parametrize(
    "form", [(Encoding.DER, 0), (Encoding.PEM, 0), (Encoding.PEM, 1)], ids=["der", "pem", "stripped"]
)
def test_a_public_key_never_serves_as_an_hmac_secret(form: tuple[Encoding, int]) -> None:
    secret = SIGNER.public_key().public_bytes(form[0], PublicFormat.SubjectPublicKeyInfo)
    secret = secret.strip() if form[1] else secret
    for alg in ("HS256", "ES256", "RS256"):
        head, body, _ = token(claims(), SIGNER, alg="ES256", header={"alg": alg}).split(".")
        mac = hmac.HMAC(secret, hashes.SHA256())
        mac.update(f"{head}.{body}".encode())
        assert refusal(f"{head}.{body}.{base64url.encode(mac.finalize())}").reason in {
            "JWT_ALGORITHM",
            "JWT_SIGNATURE",
            "JWT_KEY_MISMATCH",
        }


@pytest.mark.parametrize("alg", ["ES256", "ES384", "ES512"])
def test_ecdsa_signatures_are_two_full_length_numbers(alg: str) -> None:
    signer = key(KEYS[alg], "jwt")
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    head, body, good = token(claims(), signer, alg=alg).split(".")
    raw = base64url.decode(good)
    half = len(raw) // 2
    digest = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384(), "ES512": hashes.SHA512()}[alg]
    defects = {
        "DER": signer.sign(f"{head}.{body}".encode(), ec.ECDSA(digest)),
        "one short": raw[:-1],
        "one long": raw + b"\x00",
        "padded in front": b"\x00" + raw,
        "each half padded": b"\x00" + raw[:half] + b"\x00" + raw[half:],
        "empty": b"",
        "all zero": bytes(len(raw)),
        "r zero": bytes(half) + raw[half:],
        "all ones": b"\xff" * len(raw),
        "halves swapped": raw[half:] + raw[:half],
    }
    assert half * 2 == {"ES256": 64, "ES384": 96, "ES512": 132}[alg]
    for name, signature in defects.items():
        text = f"{head}.{body}.{base64url.encode(signature)}"
        assert refusal(text, jwt_bundle(k=signer)).reason == "JWT_SIGNATURE", name


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "no key id": ({"kid": None}, "JWT_KEY_ID_MISSING"),
    "empty key id": ({"kid": ""}, "JWT_KEY_ID_MISSING"),
    "key id is a number": ({"kid": 1}, "JWT_KEY_ID_MISSING"),
    "unknown key id": ({"kid": "nokey"}, "JWT_KEY_UNKNOWN"),
    "key id in another case": ({"kid": "K"}, "JWT_KEY_UNKNOWN"),
    "typ wit+jwt": ({"typ": "wit+jwt"}, "JWT_TYPE"),
    "typ at+jwt": ({"typ": "at+jwt"}, "JWT_TYPE"),
    "typ invalid": ({"typ": "invalid"}, "JWT_TYPE"),
    "typ in lower case": ({"typ": "jwt"}, "JWT_TYPE"),
    "typ a list": ({"typ": ["JWT"]}, "JWT_TYPE"),
    "critical extension": ({"crit": ["foo"], "foo": 1}, "JWT_CRITICAL"),
    "unencoded payload": ({"crit": ["b64"], "b64": False}, "JWT_CRITICAL"),
    "empty crit": ({"crit": []}, "JWT_CRITICAL"),
}


@pytest.mark.parametrize(("header", "reason"), HEADERS.values(), ids=HEADERS.keys())
def test_header_defects(header: dict[str, Any], reason: str) -> None:
    assert refusal(token(claims(), SIGNER, header=header)).reason == reason


def test_null_typ_is_refused() -> None:
    head = base64url.encode(b'{"alg":"ES256","kid":"k","typ":null}')
    assert refusal(f"{head}.{GOOD.split('.')[1]}.AAAA").reason == "JWT_TYPE"


@pytest.mark.parametrize("header", [{"typ": "JOSE"}, {"typ": None}, {"jku": "https://evil.example"}, {"foo": "bar"}])
def test_headers_accepted(header: dict[str, Any]) -> None:
    verify(token(claims(), SIGNER, header=header))


def test_a_key_in_the_header_is_not_looked_at() -> None:
    thief = key("P-256", "thief")
    assert isinstance(thief, ec.EllipticCurvePrivateKey)
    numbers = thief.public_key().public_numbers()
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": base64url.encode(numbers.x.to_bytes(32, "big")),
        "y": base64url.encode(numbers.y.to_bytes(32, "big")),
    }
    certificate = base64.b64encode(root("thief").der).decode()
    for header in ({"jwk": jwk}, {"x5c": [certificate]}):
        assert refusal(token(claims(), thief, header=header)).reason == "JWT_SIGNATURE"


CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "no sub": ({"sub": None}, "JWT_SUBJECT_MISSING"),
    "sub empty": ({"sub": ""}, "JWT_SUBJECT_MISSING"),
    "sub a number": ({"sub": 1}, "JWT_SUBJECT_MISSING"),
    "sub no SPIFFE ID": ({"sub": "nope"}, "JWT_SUBJECT_INVALID"),
    "sub of another scheme": ({"sub": "https://example.org/web"}, "JWT_SUBJECT_INVALID"),
    "sub with a line feed": ({"sub": "spiffe://example.org/web\n"}, "JWT_SUBJECT_INVALID"),
    "sub in upper case": ({"sub": "spiffe://EXAMPLE.org/web"}, "JWT_SUBJECT_INVALID"),
    "sub of 2049 bytes": ({"sub": "spiffe://example.org/" + "a" * 2028}, "JWT_SUBJECT_INVALID"),
    "sub of an unknown trust domain": ({"sub": "spiffe://unknown.org/x"}, "JWT_UNTRUSTED_DOMAIN"),
    "no exp": ({"exp": None}, "JWT_EXPIRY_MISSING"),
    "exp a string": ({"exp": str(SECONDS + 300)}, "JWT_MALFORMED"),
    "exp true": ({"exp": True}, "JWT_MALFORMED"),
    "exp negative": ({"exp": -1}, "JWT_MALFORMED"),
    "exp beyond all years": ({"exp": 10**30}, "JWT_MALFORMED"),
    "exp 60 s ago": ({"exp": SECONDS - 60}, "JWT_EXPIRED"),
    "exp an hour ago": ({"exp": SECONDS - 3600}, "JWT_EXPIRED"),
    "nbf in 61 s": ({"nbf": SECONDS + 61}, "JWT_NOT_YET_VALID"),
    "nbf a string": ({"nbf": "0"}, "JWT_MALFORMED"),
    "iat in 61 s": ({"iat": SECONDS + 61}, "JWT_ISSUED_IN_FUTURE"),
    "iat a list": ({"iat": [SECONDS]}, "JWT_MALFORMED"),
    "no aud": ({"aud": None}, "JWT_AUDIENCE_MISSING"),
    "aud empty list": ({"aud": []}, "JWT_AUDIENCE_MISSING"),
    "aud empty string": ({"aud": ""}, "JWT_AUDIENCE_MISSING"),
    "aud list of empty": ({"aud": [""]}, "JWT_AUDIENCE_MISSING"),
    "aud an object": ({"aud": {"api": 1}}, "JWT_AUDIENCE_MISSING"),
    "aud with a number": ({"aud": ["api", 1]}, "JWT_AUDIENCE_MISSING"),
    "aud another": ({"aud": ["other"]}, "JWT_AUDIENCE"),
    "aud longer": ({"aud": ["api2"]}, "JWT_AUDIENCE"),
    "aud shorter": ({"aud": ["ap"]}, "JWT_AUDIENCE"),
    "aud in another case": ({"aud": ["API"]}, "JWT_AUDIENCE"),
    "aud string holding it": ({"aud": "my api"}, "JWT_AUDIENCE"),
}


@pytest.mark.parametrize(("changes", "reason"), CLAIMS.values(), ids=CLAIMS.keys())
def test_claim_defects(changes: dict[str, Any], reason: str) -> None:
    assert refusal(token(claims(**changes), SIGNER)).reason == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "api"},
        {"aud": ["api", "api"]},
        {"aud": ["", "api"]},
        {"exp": SECONDS - 59},
        {"exp": SECONDS + 0.5},
        {"nbf": SECONDS + 60},
        {"iat": SECONDS + 60},
        {"iat": None},
        {"sub": "spiffe://example.org"},
        {"sub": "spiffe://example.org/" + "a" * 2027},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_claims_accepted(changes: dict[str, Any]) -> None:
    verify(token(claims(**changes), SIGNER))


def test_leeway_is_the_callers() -> None:
    just_expired = token(claims(exp=SECONDS), SIGNER)
    verify(just_expired)
    assert refusal(just_expired, leeway_seconds=0).reason == "JWT_EXPIRED"
    detail = refusal(GOOD, now=NOW + timedelta(hours=1)).detail
    assert "2026-06-01T12:05:00+00:00" in detail
    assert "2026-06-01T13:00:00+00:00" in detail


def test_empty_audience_argument() -> None:
    assert refusal(GOOD, audience="").reason == "AUDIENCE_MISSING"


class TestKeys:
    def test_only_the_subjects_own_domain_is_asked(self) -> None:
        foreign = key("P-256", "foreign")
        bundles = (BUNDLE, jwt_bundle(OTHER, k=foreign))
        assert refusal(token(claims(), foreign), *bundles).reason == "JWT_SIGNATURE"
        assert verify(token(claims(sub="spiffe://other.org/x"), foreign), *bundles).id.trust_domain == OTHER

    def test_a_bundle_without_jwt_keys_vouches_for_nothing(self) -> None:
        assert refusal(GOOD, TrustBundle(trust_domain=TD)).reason == "JWT_UNTRUSTED_DOMAIN"

    def test_an_x509_authoritys_key_does_not_sign_tokens(self) -> None:
        ca = root()
        assert refusal(token(claims(), ca.key), ca.bundle()).reason == "JWT_UNTRUSTED_DOMAIN"

    def test_tainted_keys_vouch_and_expired_ones_do_not(self) -> None:
        authority = BUNDLE.jwt_authorities[0]
        for change, reason in (
            ({"tainted": True}, None),
            ({"expires_at": NOW + timedelta(seconds=1)}, None),
            ({"expires_at": NOW - timedelta(seconds=59)}, None),
            ({"expires_at": NOW - timedelta(seconds=60)}, "JWT_KEY_EXPIRED"),
        ):
            changed: JwtAuthority = dataclasses.replace(authority, **change)  # type: ignore[arg-type]
            bundle = TrustBundle(trust_domain=TD, jwt_authorities=(changed,))
            if reason is None:
                verify(GOOD, bundle)
            else:
                assert refusal(GOOD, bundle).reason == reason

    def test_of_two_keys_with_one_id_either_may_have_signed(self) -> None:
        second: PrivateKey = key("P-256", "second")
        bundle = TrustBundle(
            trust_domain=TD, jwt_authorities=BUNDLE.jwt_authorities + jwt_bundle(k=second).jwt_authorities
        )
        verify(GOOD, bundle)
        verify(token(claims(), second), bundle)
        assert refusal(token(claims(), key("P-256", "third")), bundle).reason == "JWT_SIGNATURE"

    def test_a_broken_key_in_the_bundle(self) -> None:
        broken = TrustBundle(trust_domain=TD, jwt_authorities=(JwtAuthority(key_id="k", public_key=b"junk"),))
        assert refusal(GOOD, broken).reason == "PUBLIC_KEY_MALFORMED"


def flattened() -> str:
    head, body, signature = GOOD.split(".")
    return json.dumps({"protected": head, "payload": body, "signature": signature})


def general() -> str:
    head, body, signature = GOOD.split(".")
    return json.dumps({"payload": body, "signatures": [{"protected": head, "signature": signature}]})


NOT_TOKENS = {
    "empty": "",
    "garbage": "garbage",
    "two parts": "a.b",
    "four parts": GOOD + ".AAAA",
    "five parts (JWE)": "a.b.c.d.e",
    "junk parts": "a.b.c",
    "flattened JSON": flattened(),
    "general JSON": general(),
    "a bare SPIFFE ID": "spiffe://example.org/web",
    "PEM": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "PASETO": "v4.public.AAAA",
    "a blank in front": " " + GOOD,
    "a line feed behind": GOOD + "\n",
    "bearer": "Bearer " + GOOD,
    "padding": GOOD + "==",
    "standard base64": GOOD.replace("-", "+").replace("_", "/") + "+/",
    "unicode": GOOD + "é",
}


@pytest.mark.parametrize("text", NOT_TOKENS.values(), ids=NOT_TOKENS.keys())
def test_what_is_no_compact_token(text: str) -> None:
    assert refusal(text).reason == "JWT_MALFORMED"


def test_size_is_checked_before_parsing() -> None:
    assert refusal("a" * (MAX_TOKEN_BYTES + 1)).reason == "JWT_TOO_LARGE"
    assert refusal("." * MAX_TOKEN_BYTES).reason == "JWT_MALFORMED"


PAYLOADS = {
    "no JSON": b"x",
    "a list": b"[]",
    "empty": b"",
    "duplicate claim": b'{"sub":"spiffe://example.org/a","sub":"spiffe://example.org/b"}',
    "duplicate in a nested object": b'{"a":{"b":1,"b":2}}',
    "NaN": b'{"exp":NaN}',
    "infinity by exponent": b'{"exp":1e999}',
    "endless number": b'{"exp":' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"sub":"\xff"}',
    "UTF-16": '{"sub":"a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"sub":"a"}',
    "lone surrogate": b'{"sub":"a","x":"\\ud800"}',
    "lone surrogate in a name": b'{"\\ud800":1}',
    "deeply nested": b'{"a":' + b"[" * 20000 + b"]" * 20000 + b"}",
    "trailing data": b"{} {}",
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_payloads_that_are_no_plain_json_object(payload: bytes) -> None:
    assert refusal(token(payload, SIGNER)).reason == "JWT_MALFORMED"


def test_no_change_of_a_single_character_survives() -> None:
    for position, character in enumerate(GOOD):
        for other in "A_.~":
            if other != character:
                refusal(GOOD[:position] + other + GOOD[position + 1 :])


def test_left_over_bits_make_no_second_spelling() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(GOOD[-1])
    assert refusal(GOOD[:-1] + alphabet[last ^ 1]).reason == "JWT_MALFORMED"


@given(st.text())
def test_no_text_crashes(text: str) -> None:
    for candidate in (text, f"{text}.{text}.{text}"):
        refusal(candidate)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["sub", "aud", "exp", "nbf", "iat", "x"]), JSON, st.sampled_from(["alg", "kid", "typ", "x"]), JSON
)
def test_no_signed_claim_or_header_crashes(claim: str, value: Any, member: str, other: Any) -> None:
    """What comes out, if anything does, is a token that is live and for us."""
    for text in (
        token(claims() | {claim: value}, SIGNER),
        token(claims(), SIGNER, header={member: other if member != "alg" else str(other)}),
    ):
        try:
            svid = verify(text)
        except InvalidArgument:
            continue
        assert "api" in svid.audience
        assert svid.expires_at > NOW - timedelta(seconds=60)
        assert svid.expires_at.tzinfo is UTC
