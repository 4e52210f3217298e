"""JWT-SVIDs: SPIRE's bytes, every claim checked, signatures in JWS form."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.errors import Internal, InvalidArgument
from ca.identity.spiffe_id import SpiffeId
from ca.issuing.jwt import MAX_AUDIENCES, prepare_jwt, sign_jwt
from ca.issuing.jwt_lint import ExpectedJwt, lint_jwt
from ca.issuing.jwt_token import JwtKey, JwtToken
from ca.issuing.lifetime import plan_lifetime
from ca.ports import KeyType
from tests.ca.issuing.support import TD, private_key, signer

KID = "epRoaPDRDcJDen29trSqBLGoYGlRO3kt"
ISSUED = datetime.fromtimestamp(1795447706, UTC)
LIFE = plan_lifetime(ISSUED, 300, 0, None, backdate_seconds=0)
ID = SpiffeId.of(TD, "/w/plain")


def key(key_type: KeyType = KeyType.EC_P256) -> JwtKey:
    return JwtKey(kid=KID, key_type=key_type, public_key_der=signer(key_type).public_key_der)


def prepare(audience: tuple[str, ...] = ("aud1",), **more: Any) -> JwtToken:
    return prepare_jwt(**{"spiffe_id": ID, "audience": audience, "lifetime": LIFE, "key": key(), **more})


def decode(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_the_bytes_are_those_of_spire() -> None:
    """Header and claims of a token that a SPIRE 1.16 server signed for the same request, character for character."""
    header, claims = prepare().signing_input.decode().split(".")
    assert decode(header) == b'{"alg":"ES256","kid":"epRoaPDRDcJDen29trSqBLGoYGlRO3kt","typ":"JWT"}'
    assert decode(claims) == (
        b'{"aud":["aud1"],"exp":1795448006,"iat":1795447706,"sub":"spiffe://example.org/w/plain"}'
    )


def test_issuer_and_token_id_are_in_alphabetical_order() -> None:
    token = prepare(("a",), issuer="https://issuer.example", jti="a0uARs-6SGy6mDkjOhxijg")
    assert decode(token.signing_input.decode().split(".")[1]) == (
        b'{"aud":["a"],"exp":1795448006,"iat":1795447706,"iss":"https://issuer.example",'
        b'"jti":"a0uARs-6SGy6mDkjOhxijg","sub":"spiffe://example.org/w/plain"}'
    )


def test_times_and_audience_are_at_hand() -> None:
    token = prepare(("b", "", "a", "b"))
    assert (token.issued_at, token.expires_at) == (1795447706, 1795448006)
    assert token.audience == ("b", "a", "b")


@pytest.mark.parametrize(
    ("key_type", "algorithm", "size"),
    [
        (KeyType.EC_P256, "ES256", 64),
        (KeyType.EC_P384, "ES384", 96),
        (KeyType.RSA_2048, "RS256", 256),
        (KeyType.RSA_3072, "RS256", 384),
    ],
)
@pytest.mark.parametrize("remote", [True, False])
def test_signatures_verify_in_jws_form(key_type: KeyType, algorithm: str, size: int, remote: bool) -> None:
    text = sign_jwt(prepare(key=key(key_type)), signer(key_type), remote=remote)
    header, claims, signature = text.split(".")
    assert json.loads(decode(header))["alg"] == algorithm
    raw, signed = decode(signature), f"{header}.{claims}".encode()
    assert len(raw) == size
    public = private_key(signer(key_type)).public_key()
    if isinstance(public, rsa.RSAPublicKey):
        public.verify(raw, signed, padding.PKCS1v15(), hashes.SHA256())
    else:
        half = size // 2
        pair = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
        digest = hashes.SHA384() if algorithm == "ES384" else hashes.SHA256()
        public.verify(pair, signed, ec.ECDSA(digest))


@pytest.mark.parametrize(
    ("audience", "reason"),
    [
        ((), "AUDIENCE_EMPTY"),
        (("", ""), "AUDIENCE_EMPTY"),
        (("a",) * (MAX_AUDIENCES + 1), "AUDIENCE_TOO_LONG"),
        (("a" * 9000,), "AUDIENCE_TOO_LONG"),
        (("\ud800",), "AUDIENCE_MALFORMED"),
    ],
)
def test_audiences_that_are_refused(audience: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        prepare(audience)
    assert caught.value.reason == reason


def test_a_trust_domain_gets_no_token() -> None:
    with pytest.raises(InvalidArgument) as caught:
        prepare(spiffe_id=TD.id)
    assert caught.value.reason == "SPIFFE_ID_NO_PATH"


def test_a_token_signs_once_and_with_its_key_alone() -> None:
    token = prepare()
    sign_jwt(token, signer(), remote=False)
    with pytest.raises(Internal) as caught:
        sign_jwt(token, signer(), remote=False)
    assert caught.value.reason == "TOKEN_USED"
    with pytest.raises(Internal) as caught:
        sign_jwt(prepare(), signer(name="other"), remote=False)
    assert caught.value.reason == "SIGNER_MISMATCH"


class Answering:
    """A Signer that answers with given bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.key_id = "fake"
        self.key_type = KeyType.EC_P256
        self.public_key_der = signer().public_key_der

    def sign(self, data: bytes) -> bytes:
        return self._answer


@pytest.mark.parametrize(
    ("answer", "remote"),
    [
        (b"", False),
        (b"\x30\x00", False),
        (encode_dss_signature(1, 2**256), False),
        (encode_dss_signature(0, 1), False),
        (encode_dss_signature(1, 1) + b"\x00", False),
        (encode_dss_signature(1, 1), True),
    ],
)
def test_garbage_out_of_the_signer_is_found(answer: bytes, remote: bool) -> None:
    with pytest.raises(Internal) as caught:
        sign_jwt(prepare(), Answering(answer), remote=remote)
    assert caught.value.reason == "RECHECK"


def test_short_numbers_are_padded_to_their_size() -> None:
    token = next(token for token in (prepare((str(n),)) for n in range(1000)) if not token.sampled)
    text = sign_jwt(token, Answering(encode_dss_signature(1, 2)), remote=False)
    assert decode(text.split(".")[2]) == bytes(31) + b"\x01" + bytes(31) + b"\x02"


WANT = ExpectedJwt(algorithm="ES256", kid=KID, subject=str(ID), audience=("aud1",), lifetime=LIFE, issuer="", jti="")
HEADER: dict[str, Any] = {"alg": "ES256", "kid": KID, "typ": "JWT"}
CLAIMS: dict[str, Any] = {"aud": ["aud1"], "exp": 1795448006, "iat": 1795447706, "sub": str(ID)}


def part(value: object) -> bytes:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def without(claims: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in claims.items() if key != name}


@pytest.mark.parametrize(
    ("header", "claims", "section"),
    [
        ({**HEADER, "jku": "https://example.org"}, CLAIMS, "C2"),
        (without(HEADER, "typ"), CLAIMS, "C2"),
        ({**HEADER, "alg": "none"}, CLAIMS, "C3"),
        ({**HEADER, "alg": "HS256"}, CLAIMS, "C3"),
        ({**HEADER, "kid": "other"}, CLAIMS, "2.2"),
        ({**HEADER, "typ": "JOSE"}, CLAIMS, "C5"),
        (HEADER, {**CLAIMS, "sub": "spiffe://example.org/other"}, "C6"),
        (HEADER, without(CLAIMS, "sub"), "C6"),
        (HEADER, {**CLAIMS, "aud": "aud1"}, "C7"),
        (HEADER, {**CLAIMS, "aud": []}, "C7"),
        (HEADER, without(CLAIMS, "aud"), "C7"),
        (HEADER, without(CLAIMS, "exp"), "C11"),
        (HEADER, {**CLAIMS, "exp": 1795448007}, "C11"),
        (HEADER, {**CLAIMS, "exp": 1795448006.0}, "C11"),
        (HEADER, {**CLAIMS, "iat": 1795447705}, "4.1.6"),
        (HEADER, without(CLAIMS, "iat"), "4.1.6"),
        (HEADER, {**CLAIMS, "nbf": 1}, "§4)"),
        (HEADER, {**without(CLAIMS, "sub"), "iss": "x", "sub": str(ID)}, "§4)"),
        (HEADER, [], "7.1"),
    ],
)
def test_the_lint_refuses_other_tokens(header: object, claims: object, section: str) -> None:
    lint_jwt(part(HEADER) + b"." + part(CLAIMS), WANT)
    with pytest.raises(Internal) as caught:
        lint_jwt(part(header) + b"." + part(claims), WANT)
    assert caught.value.reason == "LINT"
    assert section in caught.value.detail


@pytest.mark.parametrize("issuer", ["https://a.example", "https://b.example"])
def test_the_lint_compares_the_issuer(issuer: str) -> None:
    claims = {**without(CLAIMS, "sub"), "iss": "https://a.example", "sub": str(ID)}
    signing_input = part(HEADER) + b"." + part(claims)
    if issuer == claims["iss"]:
        lint_jwt(signing_input, WANT._replace(issuer=issuer))
    else:
        with pytest.raises(Internal, match="iss or jti"):
            lint_jwt(signing_input, WANT._replace(issuer=issuer))


@pytest.mark.parametrize(
    "signing_input", [b"", b"a", b"a.b.c", b".", part(HEADER) + b".e30=", part(HEADER) + b".A", b"\xff." + part(CLAIMS)]
)
def test_the_lint_refuses_what_is_no_token(signing_input: bytes) -> None:
    with pytest.raises(Internal):
        lint_jwt(signing_input, WANT)


def test_bytes_that_fail_the_lint_get_no_token() -> None:
    with pytest.raises(Internal):
        replace(prepare(), signing_input=b"x.y")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()), min_size=1, max_size=5),
    st.integers(1, 2**31 - 1),
    st.sampled_from(["", "https://issuer.example"]),
)
def test_any_audience_survives(audience: list[str], seconds: int, issuer: str) -> None:
    lifetime = plan_lifetime(ISSUED, seconds, 0, ISSUED + timedelta(days=1), backdate_seconds=0)
    token = prepare(tuple(audience), lifetime=lifetime, issuer=issuer)
    claims = json.loads(decode(token.signing_input.decode().split(".")[1]))
    assert claims["aud"] == audience
    assert claims["exp"] == min(1795447706 + seconds, 1795447706 + 86400)
    assert claims.get("iss", "") == issuer
