"""Tokens of foreign issuers: what is believed, and that each fault is told to administrators alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestor.node.foreign_jwt import IssuerKey, TokenRules, take_apart, verify_token
from ca.errors import Denied, InvalidArgument
from ca.runtime.notes import collecting
from tests.support.oidc_issuer import sign, sign_with_secret

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ISSUER, AUDIENCE = "https://forge.example", "burgee-test"
RULES = TokenRules(
    issuer=ISSUER, audience=AUDIENCE, algorithms=frozenset({"ES256", "RS256"}), max_lifetime_seconds=3600
)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
HEADER = {"alg": "ES256", "kid": "key-1", "typ": "JWT"}


class Keys:
    """One EC and one RSA key; remembers what it was asked for."""

    def __init__(self, **bound: str) -> None:
        self.asked: list[str] = []
        self._known = {
            "key-1": [IssuerKey(key_id="key-1", key=EC_KEY.public_key(), algorithm=bound.get("ec"))],
            "rsa": [IssuerKey(key_id="rsa", key=RSA_KEY.public_key(), algorithm=bound.get("rsa"))],
        }

    async def keys(self, key_id: str) -> Sequence[IssuerKey]:
        self.asked.append(key_id)
        return self._known.get(key_id, [])


def claims(**changes: Any) -> dict[str, Any]:
    at = int(NOW.timestamp())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "job", "iat": at, "exp": at + 300}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(header: dict[str, Any] | None = None, /, **changes: Any) -> str:
    return sign(json.dumps({**HEADER, **(header or {})}), json.dumps(claims(**changes)), EC_KEY)


async def verify(text: str | bytes, keys: Keys | None = None, now: datetime = NOW) -> Any:
    return await verify_token(take_apart(text), rules=RULES, keys=keys or Keys(), now=now)


async def fault(text: str, keys: Keys | None = None, now: datetime = NOW) -> str:
    """What administrators see; the caller sees the same for all of them."""
    with collecting() as notes, pytest.raises(Denied) as caught:
        await verify(text, keys, now)
    error = caught.value
    assert (error.reason, error.detail) == ("TOKEN_REFUSED", "the token proves nothing here")
    cause = error.__cause__
    assert isinstance(cause, Denied)
    assert [note.value.partition(":")[0] for note in notes] == [cause.reason]
    assert cause.reason not in error.detail + error.hint
    return cause.reason


async def test_a_good_token_says_its_claims_and_how_long_it_is_good() -> None:
    found = await verify(token(aud=["other", AUDIENCE], exp=int(NOW.timestamp()) + 100).encode())
    assert found.claims["sub"] == "job"
    assert found.expires_at == NOW + timedelta(seconds=100)
    assert found.valid_until == NOW + timedelta(seconds=160)
    rsa_token = sign(json.dumps({"alg": "RS256", "kid": "rsa"}), json.dumps(claims()), RSA_KEY)
    assert (await verify(rsa_token)).claims["sub"] == "job"


def at(seconds: int) -> int:
    return int(NOW.timestamp()) + seconds


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://forge.example/"}, "TOKEN_ISSUER"),
        ({"iss": "https://FORGE.example"}, "TOKEN_ISSUER"),
        ({"iss": None}, "TOKEN_ISSUER"),
        ({"iss": [ISSUER]}, "TOKEN_ISSUER"),
        ({"aud": None}, "TOKEN_AUDIENCE"),
        ({"aud": "other"}, "TOKEN_AUDIENCE"),
        ({"aud": AUDIENCE.upper()}, "TOKEN_AUDIENCE"),
        ({"aud": [AUDIENCE, 1]}, "TOKEN_AUDIENCE"),
        ({"aud": {AUDIENCE: 1}}, "TOKEN_AUDIENCE"),
        ({"aud": []}, "TOKEN_AUDIENCE"),
        ({"exp": None}, "TOKEN_LIFETIME"),
        ({"iat": None}, "TOKEN_LIFETIME"),
        ({"exp": "soon"}, "TOKEN_LIFETIME"),
        ({"exp": True}, "TOKEN_LIFETIME"),
        ({"exp": 1e300}, "TOKEN_LIFETIME"),
        ({"exp": at(3601)}, "TOKEN_LIFETIME"),
        ({"iat": at(-3600), "exp": at(1)}, "TOKEN_LIFETIME"),
        ({"iat": at(10), "exp": at(5)}, "TOKEN_LIFETIME"),
        ({"iat": at(-300), "exp": at(-60)}, "TOKEN_EXPIRED"),
        ({"iat": at(61), "exp": at(300)}, "TOKEN_NOT_YET_VALID"),
        ({"nbf": at(61)}, "TOKEN_NOT_YET_VALID"),
    ],
)
async def test_each_wrong_claim_is_refused_before_a_key_is_asked_for(changes: dict[str, Any], reason: str) -> None:
    keys = Keys()
    assert await fault(token(**changes), keys) == reason
    assert not keys.asked


async def test_skew_is_bounded() -> None:
    await verify(token(iat=at(-300), exp=at(-59)))
    await verify(token(iat=at(59), exp=at(100), nbf=at(60)))


def public_pem() -> bytes:
    return RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "HS512", "EdDSA", "ES384", "PS256"])
async def test_only_algorithms_of_the_list_count(algorithm: str) -> None:
    keys = Keys()
    assert await fault(token({"alg": algorithm}), keys) == "TOKEN_ALGORITHM"
    assert not keys.asked


async def test_a_public_key_is_no_secret() -> None:
    header = json.dumps({"alg": "HS256", "kid": "rsa"})
    assert await fault(sign_with_secret(header, json.dumps(claims()), public_pem())) == "TOKEN_ALGORITHM"
    disguised = json.dumps({"alg": "RS256", "kid": "rsa"})
    assert await fault(sign_with_secret(disguised, json.dumps(claims()), public_pem())) == "TOKEN_SIGNATURE"


async def test_no_signature_is_no_signature() -> None:
    head, body, _ = token().split(".")
    assert await fault(f"{head}.{body}.") == "TOKEN_SIGNATURE"


@pytest.mark.parametrize("header", [{"kid": "rsa"}, {"alg": "RS256"}])
async def test_algorithm_and_kind_of_key_agree(header: dict[str, str]) -> None:
    assert await fault(token(header)) == "TOKEN_SIGNATURE"


async def test_a_key_that_is_bound_to_another_algorithm_does_not_count() -> None:
    assert await fault(token(), Keys(ec="ES384")) == "TOKEN_SIGNATURE"
    await verify(token(), Keys(ec="ES256"))


async def test_a_key_that_the_issuer_does_not_have() -> None:
    assert await fault(token({"kid": "other"})) == "TOKEN_KEY_UNKNOWN"


async def test_another_key_of_the_same_name() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    assert await fault(sign(json.dumps(HEADER), json.dumps(claims()), stranger)) == "TOKEN_SIGNATURE"


async def test_a_key_that_comes_with_the_token_counts_for_nothing() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    header = {**HEADER, "jwk": {"kty": "EC"}, "jku": "https://evil.example/keys", "x5u": "https://evil.example/"}
    assert await fault(sign(json.dumps(header), json.dumps(claims()), stranger)) == "TOKEN_SIGNATURE"


TWICE = json.dumps(claims())[:-1] + ', "aud": "burgee-test"}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b",
        "a.b.c.d",
        "..",
        "e30.e30.",
        "x" * (16 * 1024 + 1),
        token({"kid": ""}),
        token({"kid": None}),
        token({"kid": "k" * 257}),
        token({"alg": None}),
        token({"alg": ["ES256"]}),
        token({"crit": ["exp"]}),
        token({"typ": "at+jwt"}),
        token({"typ": 1}),
        token() + "=",
        sign(json.dumps(HEADER), TWICE, EC_KEY),
        sign('{"alg": "none", "alg": "ES256", "kid": "key-1"}', json.dumps(claims()), EC_KEY),
        sign(json.dumps(HEADER), "[]", EC_KEY),
        sign(json.dumps(HEADER), '{"exp": NaN}', EC_KEY),
        sign(json.dumps(HEADER), '{"a":' * 3000, EC_KEY),
    ],
)
def test_what_is_no_token_is_malformed(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        take_apart(text)
    assert caught.value.reason == "TOKEN_MALFORMED"


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(InvalidArgument):
        take_apart(b"\xff" * 10)


@pytest.mark.parametrize("algorithms", [set(), {"HS256"}, {"none"}, {"ES256", "EdDSA"}])
def test_no_rules_without_asymmetric_algorithms(algorithms: set[str]) -> None:
    with pytest.raises(ValueError, match="asymmetric"):
        TokenRules(issuer=ISSUER, audience=AUDIENCE, algorithms=frozenset(algorithms), max_lifetime_seconds=60)


GOOD = token().encode()


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(GOOD) * 8 - 1))
async def test_a_flipped_bit_is_never_believed(position: int) -> None:
    """A JWT in canonical base64url has one text: whatever differs is another token."""
    flipped = bytearray(GOOD)
    flipped[position // 8] ^= 1 << position % 8
    with pytest.raises((Denied, InvalidArgument)):
        await verify(bytes(flipped))
