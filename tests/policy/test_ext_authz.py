"""What is read of a CheckRequest: no word for who is called, the certificate for who calls, and nothing left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any
from urllib.parse import quote

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from policy.authentication import JwtRule
from policy.callers import spiffe_id_of
from policy.decision_record import DecisionRecord, Source
from policy.explain import explain
from policy.ext_authz import Bound, Said, Verdict, decide
from policy.ext_authz_wire import answer, said_by
from policy.model import Action, Attribute, Clause, Match, MatchKind, Mesh, Policy, Rule, Target
from policy.paths import is_normal
from policy.snapshot import compile_set
from policy.tokens import Vouchers
from tests.policy.test_envoy import ANYTHING, clause, deny, paths, policy
from tests.support.jwt_issuer import JwtIssuer
from tests.support.policy_certificates import Authority

NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
MESH = Mesh(trust_domains=("td",), providers=frozenset({"opa"}))
TARGET = Target(spiffe_id="spiffe://td/ns/a/sa/t", namespace="a")
WEB = "spiffe://td/ns/a/sa/web"
FROM_WEB = Rule(sources=((clause(Attribute.SOURCE_PRINCIPAL, "td/ns/a/sa/web"),),))
Issue = Callable[..., str]


@pytest.fixture(scope="module")
def issue(tmp_path_factory: pytest.TempPathFactory) -> Issue:
    """A certificate with these URI names, as Envoy sends it."""
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    return lambda *uris: quote(authority.issue(*uris).certificate.read_text(), safe="")


def bound(*policies: Policy, target: Target = TARGET, **more: Any) -> Bound:
    return Bound(revision=7, snapshot=compile_set(policies, MESH, [target]), target=target, **more)


def check(
    certificate: str = "",
    *,
    path: str = "/",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    principal: str = "",
    http: bool = True,
    sni: str | None = None,
) -> Any:
    made = CheckRequest()
    attributes = made.attributes
    attributes.source.address.socket_address.address = "10.0.0.1"
    attributes.source.address.socket_address.port_value = 4711
    attributes.destination.address.socket_address.address = "10.0.0.2"
    attributes.destination.address.socket_address.port_value = 8080
    attributes.source.certificate = certificate
    attributes.source.principal = principal
    if sni is not None:
        attributes.tls_session.sni = sni
    if http:
        request = attributes.request.http
        request.method, request.path, request.host = method, path, "shop"
        request.headers.update({":path": path, ":method": method, ":authority": "shop", **(headers or {})})
    return made


def verdict(asked: Any, found: Bound, said: Said = Said()) -> Verdict:  # noqa: B008 frozen
    return decide(asked, found, said, now=NOW)


def reason(asked: Any, found: Bound, said: Said = Said()) -> str:  # noqa: B008 frozen
    made = verdict(asked, found, said)
    assert not made.allowed
    return made.reason


def test_who_calls_is_what_the_certificate_says(issue: Issue) -> None:
    found = bound(policy(FROM_WEB))
    assert verdict(check(issue(WEB)), found).allowed
    assert verdict(check(issue(WEB), principal=WEB), found).allowed
    assert reason(check(issue("spiffe://td/other")), found) == "NOTHING_ALLOWS"
    assert reason(check(), found) == "NOTHING_ALLOWS"
    assert verdict(check(), bound(ANYTHING)).allowed


def test_a_proxy_that_leaves_the_certificate_out_is_told_so(issue: Issue) -> None:
    made = verdict(check(principal=WEB), bound(ANYTHING))
    assert (made.allowed, made.reason) == (False, "CERTIFICATE_NOT_INCLUDED")
    assert "include_peer_certificate" in made.detail


@pytest.mark.parametrize(
    "uris",
    [
        (WEB, "spiffe://td/ns/a/sa/admin"),
        ("spiffe://td/ns/a/sa/admin", WEB),
        (WEB, WEB),
        ("https://x", WEB),
        (),
        ("https://x",),
        ("spiffe://TD/x",),
        ("spiffe://td/x y",),
        ("spiffe://td/x,spiffe://td/y",),
        ("spiffe:///x",),
        ("spiffe://td//x",),
        ("spiffe://td/x?y",),
        ("spiffe://td/" + "x" * 2048,),
    ],
    ids=lambda uris: "+".join(uris)[:40] or "none",
)
def test_a_certificate_names_exactly_one(issue: Issue, uris: tuple[str, ...]) -> None:
    assert reason(check(issue(*uris)), bound(ANYTHING)) == "CERTIFICATE_NAMES"


@pytest.mark.parametrize("junk", ["x", "%", "-----BEGIN CERTIFICATE-----", "%00" * 50, "a" * 100_000])
def test_what_is_no_certificate_is_refused(junk: str) -> None:
    assert reason(check(junk), bound(ANYTHING)) == "CERTIFICATE_NAMES"


def test_the_proxy_must_have_read_the_same_name(issue: Issue) -> None:
    assert reason(check(issue(WEB), principal="spiffe://td/admin"), bound(ANYTHING)) == "PRINCIPAL_MISMATCH"


def test_a_certificate_is_parsed_once(issue: Issue) -> None:
    certificate = issue("spiffe://td/only-here")
    before = spiffe_id_of.cache_info()
    for _ in range(3):
        verdict(check(certificate), bound(ANYTHING))
    after = spiffe_id_of.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)
    assert after.maxsize


FORGED = {
    "x-burgee-target": "spiffe://td/open",
    "x-burgee-decision": "forged",
    "x-forwarded-client-cert": f"URI={WEB}",
    "x-forwarded-for": "192.168.0.1",
    "x-request-id": "forged",
}


def test_no_field_of_a_request_says_who_is_called_or_who_calls(issue: Issue) -> None:
    """The target is in `bound`, which is made of who asks: a message that names another changes nothing."""
    asked = check(issue(WEB), headers=FORGED)
    asked.attributes.destination.principal = "spiffe://td/open"
    asked.attributes.destination.service = "spiffe://td/open"
    asked.attributes.context_extensions["target"] = "spiffe://td/open"
    asked.attributes.request.http.host = "open"
    everywhere = Policy(namespace="open", name="all", rules=(Rule(),))
    open_target = Target(spiffe_id="spiffe://td/open", namespace="open")
    snapshot = compile_set([everywhere], MESH, [TARGET, open_target])
    found = Bound(revision=1, snapshot=snapshot, target=TARGET)
    assert reason(asked, found) == "NOTHING_ALLOWS"
    assert verdict(asked, found).request.remote_ip is None


def test_headers_are_lower_case_joined_and_without_what_is_none(issue: Issue) -> None:
    asked = check(issue(WEB), headers={"X-A": "1", "host": "evil"})
    for key, value in (("x-b", b"1"), ("X-B", b"2"), (":path", b"/x")):
        asked.attributes.request.http.header_map.headers.add(key=key, raw_value=value)
    request = verdict(asked, bound(ANYTHING)).request
    assert request.headers == {"x-a": "1", "x-b": "1,2"}
    assert (request.method, request.host, request.path) == ("GET", "shop", "/")
    assert (request.source_ip, request.destination_ip, request.destination_port) == ("10.0.0.1", "10.0.0.2", 8080)


TRICKS = [
    *("/admin/", "//admin", "/./admin", "/x/../admin", "/x/..;/admin", "/%61dmin", "/admin%2f", "/admin%00", "/ADMIN"),
    *("/admin\\x", "/%2e%2e/admin", "/x%5cadmin", "/admin/..", "/admin\x7f", "/ädmin", "admin", ""),
]


@pytest.mark.parametrize("path", TRICKS)
def test_tricks_with_paths_do_what_they_do_to_the_pushed_policy(path: str) -> None:
    """Where rules look at paths, what proxies read differently is refused; the rest is compared as it is."""
    found = bound(ANYTHING, deny(paths("/admin")))
    made = verdict(check(path=path), found)
    assert made.allowed is is_normal(path)
    assert made.reason == ("ALLOWED_BY_RULE" if is_normal(path) else "PATH_NOT_NORMAL")
    assert verdict(check(path=path), bound(ANYTHING)).allowed  # no rule looks at it
    declared = Target(spiffe_id=TARGET.spiffe_id, namespace="a", normalized=True)
    assert verdict(check(path=path), bound(ANYTHING, deny(paths("/admin")), target=declared)).allowed


def test_a_query_is_no_part_of_a_path() -> None:
    found = bound(ANYTHING, deny(paths("/admin")))
    assert reason(check(path="/admin?x=/../.."), found) == "DENIED_BY_RULE"
    assert verdict(check(path="/public?/admin//%2e"), found).allowed


def test_a_condition_on_the_header_of_the_path_sees_the_query_and_no_record_keeps_it() -> None:
    no_debug = deny(Rule(conditions=(clause(Attribute.HEADER, "/a?debug*", key=(":path",)),)))
    found = bound(ANYTHING, no_debug)
    made = verdict(check(path="/a?debug=secret"), found)
    assert (made.allowed, made.reason) == (False, "DENIED_BY_RULE")
    record = made.record(id="p-1", at=NOW, target=TARGET.spiffe_id, revision=1)
    assert "secret" not in record.json_line()
    assert record.masked == ("headers.:path",)
    assert verdict(check(path="/a"), found).allowed
    assert reason(check(path="//a?debug"), found) == "PATH_NOT_NORMAL"
    shadow = verdict(check(path="/a?debug"), bound(ANYTHING, replace(no_debug, shadow=True)))
    assert shadow.decision is not None
    assert shadow.decision.shadow is not None
    assert not shadow.decision.shadow.allowed
    plain = check()
    plain.attributes.request.http.scheme = "http"
    secure = policy(Rule(conditions=(clause(Attribute.HEADER, "https", key=(":scheme",)),)))
    assert reason(plain, bound(secure)) == "NOTHING_ALLOWS"
    plain.attributes.request.http.scheme = "https"
    assert verdict(plain, bound(secure)).allowed


def test_of_connections_only_what_is_not_http_decides(issue: Issue) -> None:
    found = bound(policy(FROM_WEB), deny(Rule(operations=((clause(Attribute.METHOD, "POST"),),))))
    assert verdict(check(issue(WEB), http=False), bound(policy(FROM_WEB))).allowed
    assert reason(check(issue(WEB), http=False), found) == "DENIED_BY_RULE"
    assert verdict(check(issue(WEB), http=False), bound(policy(FROM_WEB))).request.http is False


def test_what_rules_look_at_must_be_told(issue: Issue) -> None:
    remote = Match(MatchKind.NETWORK, "10.0.0.0/8", ip_network("10.0.0.0/8"))
    blocked = deny(Rule(sources=((Clause(attribute=Attribute.REMOTE_IP, matches=(remote,)),),)))
    assert reason(check(), bound(ANYTHING, blocked)) == "ADDRESS_NOT_INCLUDED"
    assert verdict(check(), bound(ANYTHING, blocked), Said(remote_ip="192.168.0.1")).allowed
    assert reason(check(), bound(ANYTHING, blocked), Said(remote_ip="10.1.1.1")) == "DENIED_BY_RULE"
    named = deny(Rule(conditions=(clause(Attribute.SNI, "admin"),)))
    assert reason(check(issue(WEB)), bound(ANYTHING, named)) == "SESSION_NOT_INCLUDED"
    assert reason(check(issue(WEB), sni="admin"), bound(ANYTHING, named)) == "DENIED_BY_RULE"
    assert verdict(check(issue(WEB), sni=""), bound(ANYTHING, named)).allowed
    left = deny(Rule(conditions=(clause(Attribute.METADATA, "bad", key=("waf", "verdict")),)))
    assert reason(check(), bound(ANYTHING, left)) == "METADATA_NOT_INCLUDED"
    assert verdict(check(), bound(ANYTHING, left), Said(metadata=frozenset({"waf"}))).allowed
    asked = check()
    asked.attributes.metadata_context.filter_metadata["waf"]["verdict"] = "bad"
    assert reason(asked, bound(ANYTHING, left)) == "DENIED_BY_RULE"


@pytest.fixture(scope="module")
def issuer() -> JwtIssuer:
    return JwtIssuer()


CLAIM = policy(Rule(conditions=(clause(Attribute.CLAIM, "alice", key=("sub",)),)))


def test_a_token_is_in_no_record_wherever_it_comes(issuer: JwtIssuer) -> None:
    """A rule may have it in a header that no log masks by itself."""
    rule = JwtRule(
        issuer="https://i",
        jwks=issuer.jwks,
        from_headers=(("X-Token", "t "),),
        from_cookies=("session",),
        output_payload_to_header="X-Payload",
    )
    token = issuer.token({"iss": "https://i", "sub": "alice"})
    found = replace(bound(ANYTHING), rules=(rule,))
    for sent, verdict_reason in ((token, "ALLOWED_BY_RULE"), (f"{token}x", "TOKEN_INVALID")):
        asked = check(headers={"x-token": f"t {sent}", "cookie": f"a={sent}", "x-payload": sent, "x-a": "b"})
        made = verdict(asked, found)
        assert made.reason == verdict_reason
        record = made.record(id="p-1", at=NOW, target=TARGET.spiffe_id, revision=1)
        assert token not in record.json_line()
        assert record.headers["x-a"] == "b"
        assert record.masked == ("headers.cookie", "headers.x-payload", "headers.x-token")


def test_claims_count_only_if_a_token_was_verified(issuer: JwtIssuer) -> None:
    found = bound(CLAIM, rules=(JwtRule(issuer="https://i"),), vouchers=Vouchers(issuers={"https://i": issuer.jwks}))
    claims = {"iss": "https://i", "sub": "alice", "exp": NOW.timestamp() + 9}

    def bearer(token: str) -> Any:
        return check(headers={"authorization": f"Bearer {token}"})

    assert verdict(bearer(issuer.token(claims)), found).allowed
    assert verdict(check(path=f"/?access_token={issuer.token(claims)}"), found).allowed
    for bad in (
        issuer.token(claims, alg="none"),
        JwtIssuer().token(claims),
        issuer.token({**claims, "exp": NOW.timestamp() - 99}),
        "junk",
    ):
        assert reason(bearer(bad), found) == "TOKEN_INVALID"
    assert reason(check(), found) == "NOTHING_ALLOWS"


def test_claims_that_a_filter_left_count_only_if_the_proxy_has_ours(issuer: JwtIssuer) -> None:
    asked = check()
    asked.attributes.metadata_context.filter_metadata["envoy.filters.http.jwt_authn"]["payload"] = {"sub": "alice"}
    assert reason(asked, bound(CLAIM)) == "NOTHING_ALLOWS"
    assert verdict(asked, bound(CLAIM), Said(jwt=True)).allowed
    bare = check(headers={"authorization": f"Bearer {issuer.token({'sub': 'alice'})}"})
    assert reason(bare, bound(CLAIM), Said(jwt=True)) == "NOTHING_ALLOWS"


def test_a_client_is_told_the_id_and_nothing_else(issue: Issue) -> None:
    made = verdict(check(issue(WEB), path="/secret"), bound(ANYTHING, deny(paths("/secret"))))
    found = CheckResponse.FromString(answer(made, "p1-1", revision=7).SerializeToString())
    assert found.status.code == 7
    assert not found.status.message
    assert found.denied_response.status.code == 403
    assert json.loads(found.denied_response.body) == {"error": "refused by policy", "decision": "p1-1"}
    headers = {h.header.key: h.header.value for h in found.denied_response.headers}
    assert headers == {"x-burgee-decision": "p1-1", "content-type": "application/json"}
    told = found.dynamic_metadata
    assert (told["decision"], told["policy"], told["revision"], told["allowed"]) == ("p1-1", "a/d#0", 7, False)


def test_who_is_allowed_has_the_id_in_the_response(issue: Issue) -> None:
    found = answer(verdict(check(issue(WEB)), bound(ANYTHING)), "p1-2", revision=7)
    assert found.status.code == 0
    header = found.ok_response.response_headers_to_add[0].header
    assert (header.key, header.value) == ("x-burgee-decision", "p1-2")
    assert not found.ok_response.headers  # nothing is added to the request


def test_shadow_policies_decide_beside_the_real_ones() -> None:
    made = verdict(check(path="/a"), bound(ANYTHING, deny(paths("/a"), shadow=True)))
    assert made.allowed
    assert answer(made, "x", revision=1).dynamic_metadata["shadow"] is False
    record = made.record(id="x", at=NOW, target=TARGET.spiffe_id, revision=1)
    assert (record.allowed, record.shadow, record.shadow_policy) == (True, False, "a/d")


def test_a_provider_has_to_agree_and_one_that_is_not_configured_refuses() -> None:
    custom = policy(Rule(), action=Action.CUSTOM, name="c", provider="opa")
    made = verdict(check(), bound(ANYTHING, custom))
    assert made.decision is not None
    assert made.decision.providers == ("opa",)
    unknown = policy(Rule(), action=Action.CUSTOM, name="c", provider="nobody")
    assert reason(check(), bound(ANYTHING, unknown)) == "NO_PROVIDER"


def test_a_record_is_enough_to_decide_again(issue: Issue) -> None:
    found = bound(policy(FROM_WEB), deny(paths("/admin/{*}")))
    for path in ("/admin/x?y", "/public"):
        made = verdict(check(issue(WEB), path=path, headers={"x-a": "1"}), found)
        record = made.record(id="x", at=NOW, target=TARGET.spiffe_id, revision=7)
        again = DecisionRecord.from_json(record.json_line())
        assert again.source is Source.EXT_AUTHZ
        decision = found.snapshot.decide(again.target, again.request)
        assert (decision.allowed, decision.policy, decision.rule) == (again.allowed, again.policy, again.rule)


def test_a_decision_is_explained_from_its_record(issue: Issue) -> None:
    """What `explain --decision` has: the line in the log, and the policies of its revision."""
    found = bound(policy(FROM_WEB), deny(paths("/admin/{*}")))
    made = verdict(check(issue(WEB), path="/admin/x?y"), found)
    line = made.record(id="x", at=NOW, target=TARGET.spiffe_id, revision=7).json_line()
    record = DecisionRecord.from_json(line)
    told = explain(found.snapshot, record.target, record.request, revision=record.revision).document()
    assert (told["allowed"], told["revision"], told["decisive"]["policy"]) == (False, 7, "a/d")
    missed = verdict(check(issue("spiffe://td/other"), path="/"), found)
    record = missed.record(id="y", at=NOW, target=TARGET.spiffe_id, revision=7)
    again = explain(found.snapshot, record.target, record.request)
    assert again.document()["nearest"][0]["policy"] == "a/p"


def test_a_refusal_before_any_rule_is_a_record_too(issue: Issue) -> None:
    made = verdict(check(issue(WEB, WEB)), bound(ANYTHING))
    record = made.record(id="x", at=NOW, target=TARGET.spiffe_id, revision=7)
    assert (record.allowed, record.reason, record.principal, record.path) == (False, "CERTIFICATE_NAMES", None, "/")
    assert "2 URI names" in record.detail


def test_what_a_calls_metadata_says() -> None:
    said, target = said_by(
        [
            ("user-agent", "envoy"),
            ("x-burgee-decision", "p1-abc"),
            ("x-burgee-remote-ip", "::1"),
            ("x-burgee-tokens", "burgee.http.policy+jwt"),
            ("x-burgee-target", "spiffe://td/t"),
            ("x-burgee-metadata", "a,b"),
        ]
    )
    assert said == Said(decision="p1-abc", remote_ip="::1", jwt=True, metadata=frozenset({"a", "b"}))
    assert target == "spiffe://td/t"
    assert said_by([]) == (Said(), "")
    assert said_by([("x-burgee-decision", "a b\r\n")])[0].decision == ""
    for bad in ([("x-burgee-remote-ip", "10.0.0.1, 10.0.0.2")], [("x-burgee-target", "a"), ("x-burgee-target", "b")]):
        with pytest.raises(ValueError, match=r"."):
            said_by(bad)


def test_huge_headers_cost_no_more_than_their_size(issue: Issue) -> None:
    asked = check(issue(WEB), headers={f"x-{n}": "y" * 1000 for n in range(200)})
    assert verdict(asked, bound(ANYTHING)).allowed
    assert not verdict(CheckRequest(), bound(policy(FROM_WEB))).allowed
