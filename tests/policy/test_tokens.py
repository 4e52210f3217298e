"""Tokens of requests: only what an issuer signed, for us, now, counts; all else is refused or is no token of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from policy.authentication import JwtRule, RequestAuthentication
from policy.jwks import NotVerified, keys_of
from policy.model import Scope, Target
from policy.tokens import MAX_TOKEN_BYTES, Vouchers, claims_of, left_claims, rules_for
from tests.support.jwt_issuer import JwtIssuer, encoded

NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
SECONDS = int(NOW.timestamp())
TARGET = "spiffe://td/ns/a/sa/t"
RULE = JwtRule(issuer="https://i", audiences=("us", "them"))
GOOD = {"iss": "https://i", "sub": "alice", "aud": "us", "exp": SECONDS + 60, "nbf": SECONDS - 60}


@pytest.fixture(scope="module")
def issuer() -> JwtIssuer:
    return JwtIssuer()


def ask(
    issuer: JwtIssuer,
    token: str | None,
    *rules: JwtRule,
    headers: Mapping[str, str] | None = None,
    query: str = "",
    domains: Mapping[str, str] | None = None,
    now: datetime = NOW,
) -> Mapping[str, Any] | None:
    if headers is None:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
    vouchers = Vouchers(issuers={"https://i": issuer.jwks}, domains=domains or {})
    return claims_of(headers=headers, query=query, rules=rules, vouchers=vouchers, audience=TARGET, now=now)


@pytest.mark.parametrize("alg", ["ES256", "RS256", "PS256", "EdDSA"])
def test_a_token_of_the_issuer_gives_its_claims(issuer: JwtIssuer, alg: str) -> None:
    assert ask(issuer, issuer.token(GOOD, alg=alg), RULE) == GOOD


def test_a_request_without_a_token_goes_on_without_claims(issuer: JwtIssuer) -> None:
    assert ask(issuer, None, RULE) is None
    assert ask(issuer, None, RULE, headers={"authorization": "Basic abc"}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "https://other"},
        {"iss": None},
        {"iss": ["https://i"]},
        {"aud": "nobody"},
        {"aud": None},
        {"aud": ["nobody", 1]},
        {"aud": "us them"},
        {"exp": SECONDS - 61},
        {"exp": "never"},
        {"exp": True},
        {"exp": -1},
        {"exp": 1e300},
        {"exp": None},
        {"nbf": SECONDS + 120},
        {"nbf": [0]},
    ],
    ids=str,
)
def test_a_token_that_is_not_for_us_or_not_for_now_is_refused(issuer: JwtIssuer, change: dict[str, Any]) -> None:
    with pytest.raises(NotVerified):
        ask(issuer, issuer.token({**GOOD, **change}), RULE)


def test_clocks_may_differ_by_a_minute_and_no_more(issuer: JwtIssuer) -> None:
    token = issuer.token(GOOD)
    assert ask(issuer, token, RULE, now=NOW + timedelta(seconds=119))
    with pytest.raises(NotVerified, match="expired"):
        ask(issuer, token, RULE, now=NOW + timedelta(seconds=120))
    assert ask(issuer, issuer.token({**GOOD, "nbf": SECONDS + 60}), RULE)


def test_an_audience_is_one_of_a_list(issuer: JwtIssuer) -> None:
    assert ask(issuer, issuer.token({**GOOD, "aud": ["x", "them"]}), RULE)


def forged(issuer: JwtIssuer) -> dict[str, str]:
    """Tokens that nobody who knows the key signed as they are."""
    good = issuer.token(GOOD)
    header, payload, signature = good.split(".")
    twice = '{"iss":"https://evil","iss":"https://i","aud":"us"}'
    point = json.dumps({"alg": "ES256", "jwk": JwtIssuer().keys()[0], "kid": "ec"})
    return {
        "none": issuer.token(GOOD, alg="none"),
        "None": issuer.token(GOOD, alg="None"),
        "none-signed": ".".join([encoded(b'{"alg":"none"}'), payload, signature]),
        "hmac-with-the-public-key": issuer.token(GOOD, alg="HS256"),
        "another-key": JwtIssuer().token(GOOD),
        "own-key-in-header": JwtIssuer().sign(point, json.dumps(GOOD), "ES256"),
        "algorithm-of-another-key": issuer.sign('{"alg":"RS256","kid":"ec"}', json.dumps(GOOD), "ES256"),
        "algorithm-that-the-set-forbids": issuer.sign('{"alg":"ES384","kid":"ec"}', json.dumps(GOOD), "ES256"),
        "unknown-kid": issuer.token(GOOD, header={"kid": "../../etc/passwd"}),
        "kid-no-text": issuer.token(GOOD, header={"kid": 1}),
        "critical": issuer.token(GOOD, header={"crit": ["b64"], "b64": False}),
        "member-twice": issuer.sign('{"alg":"ES256","kid":"ec"}', twice, "ES256"),
        "payload-changed": f"{header}.{encoded(json.dumps({**GOOD, 'sub': 'root'}).encode())}.{signature}",
        "no-signature": f"{header}.{payload}.",
        "two-parts": f"{header}.{payload}",
        "four-parts": f"{good}.x",
        "padded": f"{good}=",
        "not-base64url": good.replace(".", ".+", 1),
        "deep": issuer.sign('{"alg":"ES256","kid":"ec"}', "[" * 20_000, "ES256"),
        "huge": issuer.token({**GOOD, "x": "y" * MAX_TOKEN_BYTES}),
        "not-ascii": f"{good}é",
        "empty": "",
        "list": issuer.sign('{"alg":"ES256","kid":"ec"}', "[]", "ES256"),
        "der": ".".join([header, payload, encoded(issuer.ec.sign(f"{header}.{payload}".encode(), _ecdsa()))]),
    }


def _ecdsa() -> Any:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(hashes.SHA256())


def test_nobody_else_makes_a_token(issuer: JwtIssuer) -> None:
    believed = []
    for name, token in forged(issuer).items():
        try:
            ask(issuer, token, RULE)
            believed.append(name)
        except NotVerified:
            pass
    assert not believed


@pytest.mark.parametrize(
    "value",
    ["Bearer {0},Bearer {0}", "Bearer {0}, Basic x", "Basic x,Bearer {0}", "Bearer {0} {0}", "Bearer Bearer {0}"],
)
def test_of_several_tokens_in_a_header_none_is_chosen(issuer: JwtIssuer, value: str) -> None:
    token = issuer.token(GOOD)
    with pytest.raises(NotVerified, match="more than one token"):
        ask(issuer, None, RULE, headers={"authorization": value.format(token)})


def test_a_header_and_a_query_must_not_bring_two_tokens(issuer: JwtIssuer) -> None:
    first, second = issuer.token(GOOD), issuer.token({**GOOD, "sub": "bob"})
    with pytest.raises(NotVerified, match="more than one token"):
        ask(issuer, first, RULE, query=f"access_token={second}")
    assert ask(issuer, first, RULE, query=f"access_token={first}")
    assert ask(issuer, None, RULE, query=f"a=b&access_token={first}") == GOOD
    with pytest.raises(NotVerified):
        ask(issuer, None, RULE, query=f"access_token={first}&access_token={second}")


def test_tokens_are_looked_for_where_a_rule_says(issuer: JwtIssuer) -> None:
    token = issuer.token(GOOD)
    rule = JwtRule(issuer="https://i", from_headers=(("X-Token", "t "),), from_params=("tok",), from_cookies=("sid",))
    assert ask(issuer, None, rule, headers={"x-token": f"t {token}"}) == GOOD
    assert ask(issuer, None, rule, query=f"tok={token}") == GOOD
    assert ask(issuer, None, rule, headers={"cookie": f"a=b; sid={token}"}) == GOOD
    assert ask(issuer, "not-a-token", rule) is None


def test_the_first_rule_that_is_satisfied_gives_the_claims_and_an_unknown_issuer_is_refused(issuer: JwtIssuer) -> None:
    other = JwtIssuer()
    second = JwtRule(issuer="https://j", jwks=other.jwks)
    assert (ask(issuer, other.token({"iss": "https://j", "sub": "x"}), RULE, second) or {})["sub"] == "x"
    with pytest.raises(NotVerified):
        ask(issuer, other.token({"iss": "https://k", "sub": "x"}), RULE, second)
    with pytest.raises(NotVerified, match="keys are not known"):
        ask(issuer, issuer.token({"iss": "https://u", "sub": "x"}), JwtRule(issuer="https://u"))


def test_words_become_lists_where_a_rule_says_so(issuer: JwtIssuer) -> None:
    rule = JwtRule(issuer="https://i", space_delimited_claims=("roles",))
    assert (ask(issuer, issuer.token({**GOOD, "roles": "a  b"}), rule) or {})["roles"] == ["a", "b"]


SVID = {"sub": "spiffe://td/ns/a/sa/web", "aud": [TARGET], "exp": SECONDS + 60}


def test_a_jwt_svid_for_the_target_needs_no_rule(issuer: JwtIssuer) -> None:
    domains, seen = {"td": issuer.jwks}, {**SVID, "iss": "spiffe://td"}
    assert ask(issuer, issuer.token(SVID), domains=domains) == seen
    assert ask(issuer, issuer.token(SVID), RULE, domains=domains) == seen


@pytest.mark.parametrize(
    "change",
    [
        {"aud": ["spiffe://td/other"]},
        {"sub": "spiffe://other/x"},
        {"sub": "alice"},
        {"sub": "spiffe://TD/x"},
        {"exp": None},
        {"exp": SECONDS - 100},
    ],
    ids=str,
)
def test_another_jwt_svid_gives_no_claims_and_is_refused_where_there_are_rules(
    issuer: JwtIssuer, change: dict[str, Any]
) -> None:
    token = issuer.token({name: value for name, value in {**SVID, **change}.items() if value is not None})
    assert ask(issuer, token, domains={"td": issuer.jwks}) is None
    with pytest.raises(NotVerified):
        ask(issuer, token, RULE, domains={"td": issuer.jwks})


def test_a_domain_does_not_vouch_for_another(issuer: JwtIssuer) -> None:
    domains = {"td": JwtIssuer().jwks, "other": issuer.jwks}
    assert ask(issuer, issuer.token(SVID), domains=domains) is None


def test_a_federated_domain_does_not_speak_for_an_issuer(issuer: JwtIssuer) -> None:
    evil = JwtIssuer()
    token = evil.token({"iss": "https://i", "sub": "spiffe://evil/x", "aud": [TARGET, "us"], "exp": SECONDS + 60})
    for rules in ((), (RULE,)):
        claims = ask(issuer, token, *rules, domains={"td": issuer.jwks, "evil": evil.jwks}) or {}
        assert (claims["iss"], claims["sub"]) == ("spiffe://evil", "spiffe://evil/x")


def test_claims_that_a_proxys_filter_left_are_read_alike() -> None:
    rule, svid = {"iss": "https://i", "sub": "a"}, {"iss": "https://i", "sub": "spiffe://evil/x"}
    assert left_claims({"payload": rule}) == rule
    assert left_claims({"svid": svid}) == {"iss": "spiffe://evil", "sub": "spiffe://evil/x"}
    assert left_claims({}) is None
    assert left_claims({"payload": "text", "svid": 1}) is None


def test_a_jwt_svid_needs_a_key_id_and_the_right_type(issuer: JwtIssuer) -> None:
    domains = {"td": issuer.jwks}
    assert ask(issuer, issuer.sign('{"alg":"ES256"}', json.dumps(SVID), "ES256"), domains=domains) is None
    assert ask(issuer, issuer.token(SVID, header={"typ": "dpop+jwt"}), domains=domains) is None


@pytest.mark.parametrize(
    "claim",
    [
        '"x": NaN',
        '"x": 1e999',
        '"x": [-Infinity]',
        r'"x": {"y": "\ud800"}',
        r'"\udfff": 1',
        f'"x": {"[" * 40}{"]" * 40}',
        f'"x": {"[" * 900}{"]" * 900}',
    ],
)
def test_claims_that_no_log_could_keep_are_none(issuer: JwtIssuer, claim: str) -> None:
    """A decision on them would be one that nobody can be told of."""
    payload = f"{json.dumps(SVID)[:-1]}, {claim}}}"
    assert ask(issuer, issuer.sign('{"alg":"ES256","kid":"ec"}', payload, "ES256"), domains={"td": issuer.jwks}) is None


def test_a_good_svid_does_not_excuse_a_bad_token_elsewhere(issuer: JwtIssuer) -> None:
    rule = JwtRule(issuer="https://i", from_params=("tok",))
    with pytest.raises(NotVerified):
        ask(issuer, issuer.token(SVID), rule, query="tok=bad", domains={"td": issuer.jwks})


def test_an_issuer_that_is_a_trust_domain_has_its_keys_from_the_bundle(issuer: JwtIssuer) -> None:
    rule = JwtRule(issuer="spiffe://td", audiences=("api",))
    claims = {"iss": "spiffe://td", "sub": "spiffe://td/x", "aud": "api", "exp": SECONDS + 9}
    assert ask(issuer, issuer.token(claims), rule, domains={"td": issuer.jwks}) == claims


def test_keys_that_cannot_vouch_are_passed_over(issuer: JwtIssuer) -> None:
    ec, rsa, ed = issuer.keys()
    bad = [
        {**ec, "use": "enc"},
        {**ec, "alg": "HS256"},
        {**ec, "x": ec["y"]},
        {**ec, "crv": "secp256k1"},
        {**rsa, "n": "AQAB"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "EC"},
        {**ec, "kid": 1},
        "x",
        {**rsa, "e": rsa["n"] * 40, "n": rsa["n"] * 40},
    ]
    assert keys_of(json.dumps({"keys": bad})) == ()
    assert [key.id for key in keys_of(json.dumps({"keys": [*bad, ec, rsa, ed]}))] == ["ec", "rsa", "ed"]
    assert keys_of("[") == keys_of("[]") == keys_of('{"keys": 1}') == ()


def test_rules_are_those_of_every_object_that_is_for_the_target() -> None:
    def authentication(namespace: str, issuer: str, **scope: Any) -> RequestAuthentication:
        return RequestAuthentication(
            namespace=namespace, name="x", scope=Scope(**scope), rules=(JwtRule(issuer=issuer),)
        )

    found = [
        authentication("istio-system", "mesh"),
        authentication("a", "own"),
        authentication("b", "other"),
        authentication("a", "labelled", labels=(("app", "t"),)),
        authentication("a", "elsewhere", labels=(("app", "u"),)),
    ]
    target = Target(spiffe_id=TARGET, namespace="a", labels=(("app", "t"),))
    assert [r.issuer for r in rules_for(found, target, root_namespace="istio-system")] == ["mesh", "own", "labelled"]
