"""What a real Envoy does with the filter that is made of policies: the traps attacked, the guard, shadow, the mark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from policy import envoy
from policy.envoy import Proxy, http_filter
from policy.model import Action, Attribute, Clause, Match, MatchKind, Mesh, Policy, Rule, Target
from tests.support.policy_authz import Authz
from tests.support.policy_envoy import Answer, Call, PolicyEnvoy

pytestmark = [pytest.mark.xdist_group("policy-envoy"), pytest.mark.real("envoy")]

MESH = Mesh(trust_domains=("td",), providers=frozenset({"opa"}))
TARGET = Target(spiffe_id="spiffe://td/ns/a/sa/t", namespace="a")
NORMALIZED = Target(spiffe_id="spiffe://td/ns/a/sa/t", namespace="a", normalized=True)
WEB = ("spiffe://td/ns/a/sa/web",)
BOTH = Proxy(ext_authz=True, jwt=True)


def clause(attribute: Attribute, *values: str, key: tuple[str, ...] = (), negated: bool = False) -> Clause:
    """Values as they are written in policies."""

    def match(text: str) -> Match:
        if "{" in text:
            return Match(MatchKind.TEMPLATE, text)
        if text.startswith("*") and len(text) > 1:
            return Match(MatchKind.SUFFIX, text[1:])
        return Match(MatchKind.PREFIX, text[:-1]) if text.endswith("*") else Match(MatchKind.EXACT, text)

    return Clause(attribute=attribute, matches=tuple(map(match, values)), key=key, negated=negated)


def paths(*values: str) -> Rule:
    return Rule(operations=((clause(Attribute.PATH, *values),),))


def policy(
    *rules: Rule, action: Action = Action.ALLOW, name: str = "p", provider: str = "", shadow: bool = False
) -> Policy:
    return Policy(namespace="a", name=name, action=action, rules=rules, provider=provider, shadow=shadow)


def deny(*rules: Rule, shadow: bool = False) -> Policy:
    return policy(*rules, action=Action.DENY, name="d", shadow=shadow)


ANYTHING = policy(Rule(), name="all")


class Lab:
    """One Envoy with an ext_authz server that says yes to those who ask for it by a header."""

    def __init__(self, directory: Path, *, normalize: bool) -> None:
        socket = directory / "authz.sock"
        self.envoy = PolicyEnvoy(directory, normalize=normalize, ask=socket)
        self.authz = Authz(socket, lambda check: check.attributes.request.http.headers.get("x-please") == "yes")
        self.target = NORMALIZED if normalize else TARGET

    def enforce(self, *policies: Policy, proxy: Proxy = BOTH, mesh: Mesh = MESH) -> None:
        self.authz.checks.clear()
        self.envoy.load({"c": http_filter(self.target, policies, mesh, proxy)[0]})

    def ask(self, path: str = "/", uris: Sequence[str] | None = WEB, **kept: object) -> Answer:
        found = Call(case="c", uris=None if uris is None else tuple(uris), path=path, **kept)  # type: ignore[arg-type]
        return self.envoy.ask([found])[0]

    def stop(self) -> None:
        self.envoy.stop()
        self.authz.stop()


def _lab(directory: Path, *, normalize: bool) -> Iterator[Lab]:
    found = Lab(directory, normalize=normalize)
    try:
        found.envoy.start()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from _lab(tmp_path_factory.mktemp("plain"), normalize=False)


@pytest.fixture(scope="module")
def normalizing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from _lab(tmp_path_factory.mktemp("normalizing"), normalize=True)


def test_a_query_does_not_get_around_a_denied_path(lab: Lab) -> None:
    lab.enforce(ANYTHING, deny(paths("/admin", "/admin/{*}")))
    assert lab.ask("/public?/admin").allowed
    tried = ["/admin", "/admin?x", "/admin?", "/admin?/public", "/admin/x?y"]
    assert {lab.ask(path).details for path in tried} == {"rbac_access_denied_matched_policy[a/d#0]"}


def test_a_query_does_not_make_a_path_an_allowed_one(lab: Lab) -> None:
    lab.enforce(policy(paths("*.txt", "/a/{*}")))
    assert lab.ask("/x.txt?y").allowed
    assert not lab.ask("/secret?x.txt").allowed
    assert not lab.ask("/secret?/a/b").allowed


def test_a_condition_on_the_header_of_the_path_sees_the_query(lab: Lab) -> None:
    on_header = Rule(conditions=(clause(Attribute.HEADER, "/a?debug*", "*secret", key=(":path",)),))
    lab.enforce(ANYTHING, deny(on_header))
    assert lab.ask("/a").allowed
    assert lab.ask("/a?x").allowed
    assert {lab.ask(path).details for path in ("/a?debug", "/a?debug=1", "/b?secret")} == {
        "rbac_access_denied_matched_policy[a/d#0]"
    }
    assert lab.ask("//a?debug").details == f"rbac_access_denied_matched_policy[{envoy.NOT_NORMAL}]"
    assert lab.authz.checks == []


def test_a_caller_with_several_names_is_refused_first(lab: Lab) -> None:
    bad = Rule(sources=((clause(Attribute.SOURCE_PRINCIPAL, "td/ns/a/sa/bad"),),))
    lab.enforce(ANYTHING, deny(bad))
    for uris in (
        ("spiffe://td/ns/a/sa/bad", "spiffe://td/x"),
        ("spiffe://td/x", "spiffe://td/ns/a/sa/bad"),
        ("https://x", *WEB),
    ):
        answer = lab.ask(uris=uris)
        assert answer.details == f"rbac_access_denied_matched_policy[{envoy.SEVERAL_NAMES}]"
    assert lab.ask().allowed
    assert lab.ask(uris=None).allowed  # nobody is not `bad` either


def test_a_name_of_another_scheme_is_no_principal(lab: Lab) -> None:
    anybody = Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=(Match(MatchKind.NON_EMPTY),))
    lab.enforce(policy(Rule(sources=((anybody,),))))
    assert lab.ask().allowed
    assert not lab.ask(uris=("https://td/ns/a/sa/web",)).allowed
    assert not lab.ask(uris=()).allowed


TRICKS = [
    *(
        "/pub/..;/admin",
        "/pub/../admin",
        "/./admin",
        "//admin",
        "/pub//../admin",
        "/%61dmin",
        "/%2e%2e/admin",
        "/pub/..",
    ),
    *("/pub/%2e%2e/admin", "/pub/%2E./admin", "/pub/.%2e;x/admin", "/pub%2fx", "/pub%2Fx", "/pub%5cx", "/pub%5Cx"),
    *("/pub%00", "/pub\\..\\admin", "/pub/.;x", "/pub/.", "/%7euser", "/%5F", "/pub/..?x", "/pub/..;a?b"),
]


def upper_digits(path: str) -> str:
    """With the digits of its escapes in upper case."""
    return re.sub("%..", lambda found: found[0].upper(), path)


UNRESERVED = [c for c in map(chr, range(0x21, 0x7F)) if c.isalnum() or c in "-._~"]
ENCODED = sorted({f(f"/pub/x%{ord(c):02x}y") for c in [*UNRESERVED, "/", "\\", "\0"] for f in (str, upper_digits)})


def test_every_character_that_nobody_had_to_encode_is_refused_in_either_case(lab: Lab) -> None:
    assert len(UNRESERVED) == 66
    assert {"/pub/x%2fy", "/pub/x%2Fy", "/pub/x%5cy", "/pub/x%00y", "/pub/x%7Ey"} <= set(ENCODED)
    lab.enforce(policy(paths("/pub*", "*")))
    calls = [Call(case="c", uris=WEB, path=path) for path in ENCODED]
    refused = f"rbac_access_denied_matched_policy[{envoy.NOT_NORMAL}]"
    assert {path: answer.details for path, answer in zip(ENCODED, lab.envoy.ask(calls), strict=True)} == dict.fromkeys(
        ENCODED, refused
    )


def test_a_raw_nul_is_no_request_at_all(lab: Lab) -> None:
    lab.enforce(policy(paths("/pub*", "*")))
    with pytest.raises(ValueError, match="no request to Envoy"):
        lab.ask("/pub\0/admin")


def test_a_path_that_is_not_normal_is_refused_where_paths_matter(lab: Lab) -> None:
    lab.enforce(policy(paths("/pub*", "*")), deny(paths("/admin*")))
    refused = f"rbac_access_denied_matched_policy[{envoy.NOT_NORMAL}]"
    assert [path for path in TRICKS if lab.ask(path).details != refused] == []


NORMAL = [
    "/pub",
    "/pub/",
    "/pub/a.b",
    "/pub/..a",
    "/pub/a..",
    "/pub/...",
    "/pub;x/y",
    "/pub/%252e",
    "/pub/%20",
    "/pub?//../",
]


def test_normal_paths_are_not_refused_unread(lab: Lab) -> None:
    lab.enforce(policy(paths("/pub*")))
    assert [path for path in NORMAL if not lab.ask(path).allowed] == []


def test_without_rules_on_paths_any_path_will_do(lab: Lab) -> None:
    lab.enforce(ANYTHING)
    assert lab.ask("/a/../b").allowed


def test_a_proxy_that_normalizes_is_left_to_it(normalizing: Lab) -> None:
    normalizing.enforce(ANYTHING, deny(paths("/admin")))
    tried = ["/pub/../admin", "//admin", "/%61dmin", "/pub/%2e%2e/admin", "/pub/..%2fadmin", "/pub\\..\\admin"]
    assert {normalizing.ask(path).details for path in tried} == {"rbac_access_denied_matched_policy[a/d#0]"}
    assert normalizing.ask("/admin/../pub").allowed


def test_shadow_policies_decide_beside_and_refuse_nothing(lab: Lab) -> None:
    lab.enforce(policy(paths("/a*")), deny(paths("/a/b"), shadow=True))
    answer = lab.ask("/a/b")
    assert answer.allowed
    assert answer.marks["burgee_shadow_engine_result"] == "denied"
    assert answer.marks["burgee_shadow_effective_policy_id"] == "a/d#0"
    assert lab.ask("/a/c").marks["burgee_shadow_engine_result"] == "allowed"


WHEN = Rule(operations=((clause(Attribute.PATH, "/when*"),),), condition='request.method == "GET"')
PLAIN = paths("/plain", "/when/plain")


def test_only_what_the_tree_cannot_decide_is_asked(lab: Lab) -> None:
    lab.enforce(policy(PLAIN, WHEN), deny(paths("/when/no")))
    yes, no = {"x-please": "yes"}, {"x-please": "no"}
    assert lab.ask("/plain", headers=no).allowed
    assert lab.ask("/when/plain", headers=no).allowed
    assert not lab.ask("/when/no", headers=yes).allowed
    assert not lab.ask("/other", headers=yes).allowed
    assert not lab.ask("/when/../plain", headers=yes).allowed
    assert lab.authz.checks == []
    assert lab.ask("/when/x", headers=yes).allowed
    refused = lab.ask("/when/x", headers=no)
    assert not refused.allowed
    assert len(lab.authz.checks) == 2
    source = lab.authz.checks[0].attributes.source
    assert source.principal == WEB[0]
    assert "BEGIN%20CERTIFICATE" in source.certificate


def test_a_deny_rule_that_the_tree_cannot_say_is_asked_before_anything_is_allowed(lab: Lab) -> None:
    lab.enforce(ANYTHING, deny(WHEN))
    assert lab.ask("/x").allowed
    assert lab.authz.checks == []
    assert not lab.ask("/when/x").allowed
    assert lab.ask("/when/x", headers={"x-please": "yes"}).allowed


def test_other_peoples_verdicts_are_asked_for(lab: Lab) -> None:
    lab.enforce(ANYTHING, policy(paths("/ask"), action=Action.CUSTOM, name="c", provider="opa"))
    assert lab.ask("/x").allowed
    assert not lab.ask("/ask").allowed
    lab.enforce(ANYTHING, policy(paths("/ask"), action=Action.CUSTOM, name="c", provider="nobody"))
    assert not lab.ask("/ask", headers={"x-please": "yes"}).allowed
    assert lab.authz.checks == []


def test_a_proxy_that_cannot_ask_refuses(lab: Lab) -> None:
    lab.enforce(policy(PLAIN, WHEN), proxy=Proxy(jwt=True))
    assert lab.ask("/plain").allowed
    answer = lab.ask("/when/x", headers={"x-please": "yes"})
    assert answer.details == f"rbac_access_denied_matched_policy[{envoy.CANNOT_ASK}]"


def test_nobody_to_ask_is_a_refusal(tmp_path: Path) -> None:
    alone = PolicyEnvoy(tmp_path, ask=tmp_path / "nobody.sock")
    try:
        alone.start({"c": http_filter(TARGET, [policy(WHEN, PLAIN)], MESH, BOTH)[0]})
        asked, plain = alone.ask([Call(case="c", uris=WEB, path="/when"), Call(case="c", uris=WEB, path="/plain")])
    finally:
        alone.stop()
    assert (asked.status, plain.status) == (403, 200)


def test_without_policies_nothing_is_allowed_unless_the_namespace_is_open(lab: Lab) -> None:
    lab.enforce()
    assert lab.ask().details == f"rbac_access_denied_matched_policy[{envoy.DEFAULT}]"
    lab.enforce(deny(paths("/no")), mesh=Mesh(trust_domains=("td",), open_namespaces=frozenset({"a"})))
    assert lab.ask("/yes").rule == envoy.OPEN
    assert not lab.ask("/no").allowed
    assert lab.ask("/").allowed


def test_the_one_rule_among_many_is_found_in_the_maps(lab: Lab) -> None:
    callers = [f"td/ns/a/sa/c{n}" for n in range(40)]
    rules = [
        Rule(
            sources=((clause(Attribute.SOURCE_PRINCIPAL, caller),),),
            operations=((clause(Attribute.PATH, f"/{n}", f"/t/{n}/*"), clause(Attribute.METHOD, "GET", "PUT")),),
        )
        for n, caller in enumerate(callers)
    ]
    anybody = [paths(f"/any/{n}/*", f"/any/{n}") for n in range(40)]
    lab.enforce(policy(*rules, *anybody, paths("*.txt")), deny(*(paths(f"/any/{n}/no*") for n in range(10))))
    seven = ["spiffe://td/ns/a/sa/c7"]
    assert lab.ask("/7", seven).rule == "a/p#7"
    assert lab.ask("/t/7/x?y", seven, method="PUT").rule == "a/p#7"
    assert lab.ask("/any/9/x", seven).rule == "a/p#49"  # a miss further down falls back
    assert lab.ask("/7.txt", seven).rule == "a/p#80"
    assert not lab.ask("/8", seven).allowed
    assert not lab.ask("/7", seven, method="POST").allowed
    assert not lab.ask("/any/9/nope", seven).allowed
    assert lab.ask("/any/11/nope", seven).allowed


def test_a_rule_with_hundreds_of_alternatives_is_enforced_as_well(lab: Lab) -> None:
    callers = clause(Attribute.SOURCE_PRINCIPAL, *(f"td/ns/a/sa/c{n}" for n in range(300)))
    where = clause(Attribute.PATH, *(f"/p/{n}" for n in range(150)), *(f"/q/{n}/*" for n in range(150)))
    sources = tuple((clause(Attribute.SOURCE_PRINCIPAL, f"td/ns/b/sa/c{n}"),) for n in range(100))
    operations = tuple((clause(Attribute.PATH, f"/r/{n}"), clause(Attribute.METHOD, "GET")) for n in range(100))
    wide, many = Rule(sources=((callers,),), operations=((where,),)), Rule(sources=sources, operations=operations)
    lab.enforce(policy(*[wide] * 6, many))
    allowed = [("a", 0, "/p/149?x"), ("a", 299, "/q/149/x"), ("b", 0, "/r/99"), ("b", 99, "/r/0?x")]
    refused = [("a", 300, "/p/0"), ("a", 0, "/p/150"), ("a", 0, "/r/1"), ("b", 0, "/p/0"), ("b", 5, "/r/100")]
    assert [c for c in allowed if not lab.ask(c[2], [f"spiffe://td/ns/{c[0]}/sa/c{c[1]}"]).allowed] == []
    assert [c for c in refused if lab.ask(c[2], [f"spiffe://td/ns/{c[0]}/sa/c{c[1]}"]).allowed] == []
    assert not lab.ask("/r/1", ["spiffe://td/ns/b/sa/c1"], method="PUT").allowed
