"""What a person copies into a proxy's configuration, in a real Envoy: refused until policies come, with its own ids."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from google.protobuf.json_format import MessageToDict

from policy import envoy
from policy.authentication import JwtRule
from policy.envoy import Proxy, http_filter
from policy.envoy_jwt import NO_KEYS, jwt_filter
from policy.envoy_names import Resource, parsed
from policy.envoy_snippet import DECISION_HEADER, any_of, http_snippet, network_snippet
from policy.matching import holds
from policy.model import Action, Attribute, Clause, Match, MatchKind, Request, Rule
from policy.tokens import Vouchers, svid_claims
from tests.policy.test_envoy import MESH, TARGET, clause, policy
from tests.support.envoys import Envoy
from tests.support.policy_envoy import Call, PolicyEnvoy, extension

pytestmark = [pytest.mark.xdist_group("policy-envoy"), pytest.mark.real("envoy")]

EVERYTHING = Proxy(ext_authz=True, jwt=True)


def serving(directory: Path, proxy: Proxy) -> dict[str, Any]:
    """A bootstrap around the snippets, for HTTP and for connections; the agent is not there."""
    http = http_snippet(proxy, "agent", str(directory / "agent.sock"), prefix="p1")
    tcp = network_snippet(proxy, "agent", str(directory / "agent.sock"), prefix="p1")
    manager = http["http_connection_manager"]
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    hcm = extension(
        "http",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="inbound",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        **{**manager, "http_filters": [*manager["http_filters"], extension("router", "filters.http.router.v3.Router")]},
    )
    proxied = extension(
        "tcp", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="agent", access_log=tcp["access_log"]
    )
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    return {
        "node": {"id": "p", "cluster": "p"},
        "admin": {"address": {"pipe": {"path": str(directory / "envoy" / "admin.sock"), "mode": 0o600}}},
        "static_resources": {
            "clusters": http["clusters"],
            "listeners": [
                {"name": "http", "address": address, "filter_chains": [{"filters": [hcm]}]},
                {"name": "tcp", "address": address, "filter_chains": [{"filters": [*tcp["filters"], proxied]}]},
            ],
        },
    }


@pytest.mark.parametrize("proxy", [EVERYTHING, Proxy()], ids=["everything", "alone"])
def test_until_policies_come_everything_is_refused_and_has_an_id_of_the_proxys_own(
    tmp_path: Path, proxy: Proxy
) -> None:
    found = Envoy("snippet", tmp_path / "envoy")
    try:
        found.start(serving(tmp_path, proxy))
        url = f"http://127.0.0.1:{found.port('http')}/"
        first, second = (httpx.get(url, headers={"x-request-id": "mine"}) for _ in range(2))
        found.port("tcp")
    finally:
        found.stop()
    assert (first.status_code, second.status_code) == (403, 403)
    decision = first.json()["decision"]
    assert decision == first.headers[DECISION_HEADER]
    assert decision == f"p1-{first.headers['x-request-id']}"
    assert "mine" not in first.text + str(first.headers)
    assert decision != second.json()["decision"]
    assert "burgee/" not in first.text


NAMES = [
    *("burgee.http.policy", "burgee.http.policy+ask", "burgee.http.policy+jwt", "burgee.http.policy+ask+jwt"),
    *("burgee.tcp.policy", "burgee.tcp.policy+ask", "burgee.http.policy/spiffe://td/a/b"),
]
NOT_OURS = [
    *(
        "burgee.http.policy+jwt+ask",
        "burgee.http.policy+ask+ask",
        "burgee.http",
        "burgee.http.jwt",
        "burgee.tcp.policy+jwt",
    ),
    *("other.http.policy", "burgee.udp.policy", "burgee.http.policy/", "", "burgee.burgee.http.policy"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_stands_beside_the_filter(name: str) -> None:
    found = parsed(name)
    assert found is not None
    assert str(found) == name


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_name_that_is_written_otherwise_is_not_ours(name: str) -> None:
    assert parsed(name) is None


def test_a_name_has_the_identity_it_is_for() -> None:
    assert parsed("burgee.tcp.policy+ask/spiffe://td/x") == Resource(
        protocol="tcp", proxy=Proxy(ext_authz=True), spiffe_id="spiffe://td/x"
    )


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Issuer:
    """Signs tokens with ES256."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        x, y = (encoded(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
        self.jwks = json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "1", "x": x, "y": y}]})

    def token(self, **claims: Any) -> str:
        parts = ({"alg": "ES256", "kid": "1", "typ": "JWT"}, claims)
        text = ".".join(encoded(json.dumps(part).encode()) for part in parts)
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


AUDIENCE = TARGET.spiffe_id


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def verifying(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[PolicyEnvoy]:
    """An Envoy that verifies tokens of two issuers; the keys of a third are not known."""
    rules = [
        JwtRule(issuer="https://i", audiences=("us",)),
        JwtRule(issuer="https://j", jwks=issuer.jwks),
        JwtRule(issuer="https://unknown"),
    ]
    before = {"name": "jwt", "typed_config": MessageToDict(any_of(jwt_filter(rules, {"https://i": issuer.jwks})))}
    found = PolicyEnvoy(tmp_path_factory.mktemp("jwt"), before=[before])
    try:
        found.start(
            {
                "scope": rules_on(clause(Attribute.CLAIM, "write", key=("scope",))),
                "principal": rules_on(
                    Clause(
                        attribute=Attribute.REQUEST_PRINCIPAL,
                        matches=(Match(MatchKind.REQUEST_PRINCIPAL, "https://i/a*"),),
                    )
                ),
                "nested": rules_on(clause(Attribute.CLAIM, "x*", key=("n", "m"))),
                "not": rules_on(clause(Attribute.CLAIM, "bad", key=("groups",)), action=Action.DENY),
            }
        )
        yield found
    finally:
        found.stop()


def rules_on(wanted: Clause, action: Action = Action.ALLOW) -> Any:
    policies = [policy(Rule(conditions=(wanted,)), action=action)]
    if action is Action.DENY:
        policies.append(policy(Rule(), name="all"))
    return http_filter(TARGET, policies, MESH, Proxy(jwt=True))[0]


def status(found: PolicyEnvoy, case: str, token: str | None) -> int:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return found.ask([Call(case=case, uris=("spiffe://td/x",), headers=headers)])[0].status


def test_claims_of_verified_tokens_alone_count(verifying: PolicyEnvoy, issuer: Issuer) -> None:
    def token(**claims: Any) -> str:
        return issuer.token(**{"iss": "https://i", "sub": "alice", "aud": "us", **claims})

    assert status(verifying, "scope", token(scope="read write")) == 200
    assert status(verifying, "scope", token(scope=["read", "write"])) == 200
    assert status(verifying, "scope", token(scope="writer")) == 403
    assert status(verifying, "scope", None) == 403
    assert status(verifying, "scope", token(scope="write", aud="them")) == 403
    assert status(verifying, "scope", Issuer().token(iss="https://i", sub="alice", aud="us", scope="write")) == 401
    assert status(verifying, "scope", issuer.token(iss="https://unknown", sub="a", scope="write")) == 401
    assert status(verifying, "principal", token()) == 200
    assert status(verifying, "principal", token(sub="bob")) == 403
    assert status(verifying, "principal", issuer.token(iss="https://j", sub="alice")) == 403
    assert status(verifying, "nested", token(n={"m": ["y", "xy"]})) == 200
    assert status(verifying, "nested", token(n={"m": "y"})) == 403
    assert status(verifying, "not", token(groups=["good"])) == 200
    assert status(verifying, "not", token(groups=["good", "bad"])) == 403
    assert status(verifying, "not", None) == 200


@pytest.mark.parametrize("taken_back", ['{"keys":[]}', '{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}'])
def test_an_issuer_that_took_its_keys_back_has_none_in_the_proxy(taken_back: str) -> None:
    """Envoy refuses a set without keys, and goes on with those that it had."""
    fetched, inline = JwtRule(issuer="https://i", jwks_uri="https://i/k"), JwtRule(issuer="https://j", jwks=taken_back)
    made = jwt_filter([fetched, inline], {"https://i/k": taken_back})
    assert {one.local_jwks.inline_string for one in made.providers.values()} == {NO_KEYS}


def test_nobody_made_the_key_of_issuers_whose_keys_are_not_known() -> None:
    point = json.loads(NO_KEYS)["keys"][0]
    x, y = (int.from_bytes(base64.urlsafe_b64decode(point[name] + "="), "big") for name in ("x", "y"))
    assert x == int.from_bytes(sha256(b"nobody has this key 4").digest(), "big")
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()  # on the curve


def test_a_proxy_without_the_filter_asks_about_rules_on_tokens() -> None:
    made, unsaid = http_filter(
        TARGET, [policy(Rule(conditions=(clause(Attribute.CLAIM, "a", key=("g",)),)))], MESH, Proxy(ext_authz=True)
    )
    assert [u.reason for u in unsaid] == ["the proxy has no filter that verifies tokens"]
    assert envoy.ASK.encode() in made.SerializeToString()


@pytest.mark.parametrize("ruled", [False, True], ids=["without rules", "beside a rule"])
def test_jwt_svids_meant_for_the_target_count_without_a_rule(tmp_path: Path, issuer: Issuer, ruled: bool) -> None:
    """And no others: not of a domain under another's keys, nor for another audience, nor without end."""
    foreign = Issuer()
    rules = [JwtRule(issuer="https://i", audiences=("us",)), JwtRule(issuer="spiffe://td")] if ruled else []
    domains = {"td": issuer.jwks, "other": foreign.jwks}
    made = jwt_filter(rules, {"https://i": foreign.jwks}, domains=domains, audience=TARGET.spiffe_id)
    found = PolicyEnvoy(tmp_path, before=[{"name": "jwt", "typed_config": MessageToDict(any_of(made))}])
    refused = (401, 403) if ruled else (403,)

    def svid(by: Issuer = issuer, **claims: Any) -> str:
        return by.token(**{"sub": "spiffe://td/a", "aud": [TARGET.spiffe_id], "exp": 4_000_000_000, **claims})

    try:
        found.start({"sub": rules_on(clause(Attribute.CLAIM, "spiffe://td/a", "spiffe://other/a", key=("sub",)))})
        assert status(found, "sub", svid()) == 200
        assert status(found, "sub", svid(foreign, sub="spiffe://other/a")) == 200
        assert status(found, "sub", svid(sub="spiffe://td/b")) == 403
        assert status(found, "sub", None) == 403
        assert status(found, "sub", svid(foreign)) in refused
        assert status(found, "sub", svid(sub="spiffe://other/a")) in refused
        assert status(found, "sub", svid(aud=["spiffe://td/another"])) in refused
        assert status(found, "sub", svid(exp=1)) in refused
        assert status(found, "sub", issuer.token(sub="spiffe://td/a", aud=[TARGET.spiffe_id])) in refused
        if ruled:
            named = issuer.token(iss="spiffe://td", sub="spiffe://td/a", exp=4_000_000_000)
            assert status(found, "sub", named) == 200
            assert status(found, "sub", foreign.token(iss="https://i", aud="us", sub="spiffe://td/a")) == 200
    finally:
        found.stop()


ISSUERS = (
    *("*", "https://i/*", "https://*", "spiffe://td/*", "spiffe://other/*", "spiffe://oth*", "spi*", "spiffe://other"),
    *("*other/x", "*//other/x", "*er/x", "*r/y", "*x", "*/a//other/x", "spiffe://td/x", "spiffe://ot/*"),
)


def test_the_issuer_of_a_jwt_svid_is_its_trust_domain_whatever_it_says(tmp_path: Path, issuer: Issuer) -> None:
    """Else a federated domain would be whoever policies let in; here and where a proxy asks alike."""
    foreign = Issuer()
    domains = {"td": issuer.jwks, "other": foreign.jwks}
    made = jwt_filter([JwtRule(issuer="https://i")], {"https://i": issuer.jwks}, domains=domains, audience=AUDIENCE)
    found = PolicyEnvoy(tmp_path, before=[{"name": "jwt", "typed_config": MessageToDict(any_of(made))}])

    def wanted(text: str) -> Clause:
        matches = (Match(MatchKind.REQUEST_PRINCIPAL, text),)
        return Clause(attribute=Attribute.REQUEST_PRINCIPAL, matches=matches)

    clauses = {f"p{number}": wanted(text) for number, text in enumerate(ISSUERS)}
    claims = ("https://i", "spiffe://other", "spiffe://o*", "*other", "*i", "*/other", "http*", "*")
    clauses |= {f"c{number}": clause(Attribute.CLAIM, text, key=("iss",)) for number, text in enumerate(claims)}
    token = foreign.token(iss="https://i", sub="spiffe://other/x", aud=[AUDIENCE], exp=4_000_000_000)
    seen = svid_claims(token, Vouchers(domains=domains), AUDIENCE, datetime.now(UTC))
    asked = Request(claims=seen)
    try:
        found.start({name: rules_on(one) for name, one in clauses.items()})
        for name, one in clauses.items():
            assert (status(found, name, token) == 200) == holds(one, asked), (name, one)
        assert not holds(wanted("https://i/*"), asked)
        assert holds(wanted("spiffe://other/*"), asked)
    finally:
        found.stop()
