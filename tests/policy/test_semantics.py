"""What Istio's description says, case by case: a policy, a request, and whether it is allowed.

Each case is decided by the index and by the evaluator from the specification.
"""

from __future__ import annotations

from typing import Any

import pytest

from policy import reference
from policy.decision import Decision, Reason
from policy.envoy import Proxy, network_filter
from policy.model import Attribute, Clause, Match, MatchKind, Mesh, Policy, Request, Rule, Target
from policy.parse import parse
from policy.snapshot import compile_set
from policy.trust_domains import expanded

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: NAME, namespace: NS}\n"
MESH = Mesh(trust_domains=("td1", "td2"), open_namespaces=frozenset({"open"}), providers=frozenset({"ext"}))
ID = "spiffe://td1/ns/shop/sa/web"
TARGET = Target(spiffe_id=ID, namespace="shop", labels=(("app", "web"), ("v", "1")))
OPEN = Target(spiffe_id=ID, namespace="open")
WEB = "td1/ns/shop/sa/web"


def policy(spec: str, *, name: str = "p", namespace: str = "shop", dry_run: bool = False) -> tuple[Policy, ...]:
    head = HEAD.replace("NAME", name).replace("NS", namespace)
    if dry_run:
        head = head.replace("{name", "{annotations: {istio.io/dry-run: 'true'}, name")
    return parse(f"{head}spec: {spec}\n", "f").policies


def decide(policies: tuple[Policy, ...], request: Request, target: Target = TARGET) -> Decision:
    decision = compile_set(policies, MESH, [target]).decide(target.spiffe_id, request)
    assert decision == reference.decide(policies, MESH, target, request)
    return decision


def source(fields: str) -> str:
    return f"{{rules: [{{from: [{{source: {fields}}}]}}]}}"


def operation(fields: str) -> str:
    return f"{{rules: [{{to: [{{operation: {fields}}}]}}]}}"


def when(key: str, values: str, field: str = "values") -> str:
    return f"{{rules: [{{when: [{{key: '{key}', {field}: {values}}}]}}]}}"


def who(principal: str | None, **more: Any) -> Request:
    return Request(principal=principal, method="GET", path="/", **more)


def jwt(**claims: Any) -> Request:
    return Request(claims=claims, method="GET", path="/")


def path(value: str) -> Request:
    return Request(path=value, method="GET")


CASES: list[tuple[str, Request, bool]] = [
    # rules: unset, empty, one that says nothing
    ("{}", path("/"), False),
    ("{rules: []}", path("/"), False),
    ("{rules: [{}]}", path("/"), True),
    # texts: exact, prefix, suffix, anything; asterisks elsewhere mean themselves, and one in front is looked at first
    (operation("{paths: [/a]}"), path("/a"), True),
    (operation("{paths: [/a]}"), path("/A"), False),
    (operation("{paths: [/a]}"), path("/a/"), False),
    (operation("{paths: ['/a*']}"), path("/ab/c"), True),
    (operation("{paths: ['*.html']}"), path("/x/y.html"), True),
    (operation("{paths: ['*a*']}"), path("/xa*"), True),
    (operation("{paths: ['*a*']}"), path("/xab"), False),
    (operation("{paths: ['/a*b']}"), path("/a*b"), True),
    (operation("{paths: ['/a*b']}"), path("/axb"), False),
    (operation("{paths: ['*']}"), path("/"), True),
    (operation("{paths: ['*']}"), path(""), False),
    (operation("{paths: ['*']}"), Request(method="GET"), False),
    (operation("{notPaths: ['/a*']}"), path("/a"), False),
    (operation("{notPaths: ['/a*']}"), Request(method="GET"), True),
    (operation("{paths: ['/a*'], notPaths: [/ab]}"), path("/ab"), False),
    (operation("{paths: ['/a*'], notPaths: [/ab]}"), path("/ac"), True),
    # templates
    (operation("{paths: ['/a/{*}/c']}"), path("/a/b/c"), True),
    (operation("{paths: ['/a/{*}/c']}"), path("/a/b/b/c"), False),
    (operation("{paths: ['/a/{*}/c']}"), path("/a//c"), False),
    (operation("{paths: ['/a/{*}/c']}"), path("/a/b=*/c"), True),
    (operation("{paths: ['/a/{*}/c']}"), path("/a/b^/c"), False),
    (operation("{paths: ['/a=b/{**}']}"), path("/a=b/c"), True),
    (operation("{paths: ['/a/{**}']}"), path("/a/"), True),
    (operation("{paths: ['/a/{**}']}"), path("/a"), False),
    (operation("{paths: ['/a/{**}/z']}"), path("/a/b/c/z"), True),
    # methods and hosts: case counts for one and not for the other; ports of hosts only where they are written
    (operation("{methods: [GET]}"), Request(method="get", path="/"), False),
    (operation("{hosts: [A.example]}"), Request(host="a.EXAMPLE"), True),
    (operation("{hosts: [a.example]}"), Request(host="a.example:8080"), False),
    (operation("{hosts: ['a.example:*']}"), Request(host="a.example:8080"), True),
    (operation("{hosts: ['*.example']}"), Request(host="x.Example"), True),
    (operation("{hosts: ['*']}"), Request(host=""), True),
    (operation("{hosts: ['*']}"), Request(), False),
    (operation("{hosts: [k.example]}"), Request(host="\u212a.example"), False),
    (operation("{ports: ['080']}"), Request(destination_port=80), True),
    (operation("{notPorts: ['80']}"), Request(destination_port=80), False),
    # callers
    (source("{principals: ['*']}"), who(WEB), True),
    (source("{principals: ['*']}"), who(None), False),
    (source("{notPrincipals: ['*']}"), who(None), True),
    (source("{principals: [td1/ns/shop/sa/web]}"), who("td1/ns/shop/sa/web2"), False),
    (source("{principals: ['*/sa/web']}"), who("other/ns/x/sa/web"), True),
    (source("{principals: ['td1/ns/shop/*']}"), who(WEB), True),
    (source("{namespaces: [shop]}"), who("any/ns/shop/sa/x"), True),
    (source("{namespaces: [shop]}"), who("any/ns/shop"), False),
    (source("{namespaces: [sho]}"), who(WEB), False),
    (source("{namespaces: ['s*p']}"), who(WEB), True),
    (source("{notNamespaces: [shop]}"), who(None), True),
    (source("{serviceAccounts: [web]}"), who("other/ns/shop/sa/web"), True),
    (source("{serviceAccounts: [web]}"), who("td1/ns/other/sa/web"), False),
    (source("{serviceAccounts: [other/web]}"), who("td1/x/ns/other/y/sa/web/z"), True),
    (source("{serviceAccounts: [web]}"), who("td1/ns/shop/sa/web2"), False),
    (source("{trustDomains: [td1]}"), who(WEB), True),
    (source("{trustDomains: [td]}"), who(WEB), False),
    (source("{trustDomains: ['*1']}"), who(WEB), True),
    (source("{trustDomains: ['*web']}"), who(WEB), False),
    # the packet's address is not the one that a proxy in front said
    (source("{ipBlocks: [10.0.0.0/8]}"), who(None, source_ip="10.1.2.3", remote_ip="1.1.1.1"), True),
    (source("{remoteIpBlocks: [10.0.0.0/8]}"), who(None, source_ip="10.1.2.3", remote_ip="1.1.1.1"), False),
    (source("{ipBlocks: [10.9.9.9/8]}"), who(None, source_ip="10.1.2.3"), True),
    (source("{notIpBlocks: ['::/0']}"), who(None, source_ip="10.1.2.3"), True),
    (source("{ipBlocks: ['::1']}"), who(None, source_ip="0:0::1"), True),
    # tokens: cut at the last slash; lists; words; what is no text is absent
    (source("{requestPrincipals: ['*']}"), jwt(iss="i", sub="s"), True),
    (source("{requestPrincipals: ['*']}"), jwt(iss="i"), False),
    (source("{requestPrincipals: ['https://i/x/s']}"), jwt(iss="https://i/x", sub="s"), True),
    (source("{requestPrincipals: ['https://i/x/s']}"), jwt(iss="https://i", sub="x/s"), False),
    (source("{requestPrincipals: ['https://i/*']}"), jwt(iss="https://i", sub="x/y"), True),
    (source("{requestPrincipals: ['https://i/*']}"), jwt(iss="https://i/x", sub="y"), False),
    (source("{requestPrincipals: ['*/s']}"), jwt(iss="anybody", sub="s"), True),
    (source("{requestPrincipals: ['i*']}"), jwt(iss="issuer", sub="s"), True),
    (source("{notRequestPrincipals: ['*']}"), who(WEB), True),
    (when("request.auth.audiences", "[a]"), jwt(aud=["b", "a"]), True),
    (when("request.auth.audiences", "[a]"), jwt(aud="a"), True),
    (when("request.auth.presenter", "[a]"), jwt(azp="a"), True),
    (when("request.auth.claims[groups]", "['adm*']"), jwt(groups=["x", "admin"]), True),
    (when("request.auth.claims[groups]", "[admin]", "notValues"), jwt(groups=["x", "admin"]), False),
    (when("request.auth.claims[groups]", "[admin]", "notValues"), jwt(), True),
    (when("request.auth.claims[scope]", "[write]"), jwt(scope="read write"), True),
    (when("request.auth.claims[permission]", "['read write']"), jwt(permission="read write"), False),
    (when("request.auth.claims[a][scope]", "['x y']"), jwt(a={"scope": "x y"}), True),
    (when("request.auth.claims[n]", "['1']"), jwt(n=1), False),
    # headers
    (when("request.headers[X-A]", "[v]"), Request(headers={"x-a": "v"}), True),
    (when("request.headers[x-a]", "['*']"), Request(headers={"x-a": ""}), True),
    (when("request.headers[x-a]", "['*']"), Request(), False),
    (when("request.headers[x-a]", "[v]", "notValues"), Request(), True),
    (when("request.headers[host]", "[h]"), Request(host="h"), True),
    (when("request.headers[:authority]", "[h]"), Request(host="h"), True),
    (when("request.headers[:method]", "[GET]"), Request(method="GET"), True),
    (when("request.headers[:path]", "['/a?x=*']"), Request(path="/a", headers={":path": "/a?x=1"}), True),
    (when("request.headers[:path]", "[/a]"), Request(path="/a", headers={":path": "/a?x=1"}), False),
    (when("request.headers[:scheme]", "[https]"), Request(headers={":scheme": "https"}), True),
    (when("connection.sni", "['*.x']"), Request(sni="a.x"), True),
    (when("experimental.envoy.filters.a[k]", "['[v]']"), Request(metadata={"envoy.filters.a": {"k": ["v"]}}), True),
    (when("experimental.envoy.filters.a[k]", "['[v]']"), Request(metadata={"envoy.filters.a": {"k": "v"}}), False),
    # CEL
    ("{rules: [{burgee: {condition: \"request.headers['x'] == 'y'\"}}]}", Request(headers={"x": "y"}), True),
    ("{rules: [{burgee: {condition: \"request.headers['x'] == 'y'\"}}]}", Request(), False),
    ("{action: DENY, rules: [{burgee: {condition: \"request.headers['x'] == 'y'\"}}]}", Request(), False),
    ("{rules: [{burgee: {condition: \"'a' in request.auth.claims.groups\"}}]}", jwt(groups=["a"]), True),
    (
        "{rules: [{burgee: {condition: \"source.namespace == 'shop' && destination.port == 80\"}}]}",
        who(WEB, destination_port=80),
        True,
    ),
]


@pytest.mark.parametrize(("spec", "request_", "allowed"), CASES)
def test_case(spec: str, request_: Request, allowed: bool) -> None:
    assert decide(policy(spec), request_).allowed is allowed


def test_deny_is_above_allow_and_names_its_rule() -> None:
    allow = policy("{rules: [{}]}", name="all")
    deny = policy("{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}, {to: [{operation: {paths: [/a]}}]}]}")
    for both in (allow + deny, deny + allow):
        denied = decide(both, path("/a"))
        assert (denied.allowed, denied.reason, denied.policy, denied.rule) == (
            False,
            Reason.DENIED_BY_RULE,
            "shop/p",
            1,
        )
        assert decide(both, path("/b")).policy == "shop/all"


def test_custom_is_first_and_needs_its_provider() -> None:
    everything = policy("{rules: [{}]}", name="all")
    asks = policy("{action: CUSTOM, provider: {name: ext}, rules: [{to: [{operation: {paths: [/a]}}]}]}")
    lost = policy("{action: CUSTOM, provider: {name: gone}, rules: [{}]}", name="lost")
    assert decide(everything + asks, path("/a")).providers == ("ext",)
    assert decide(everything + asks, path("/b")).providers == ()
    decision = decide(everything + lost, path("/b"))
    assert (decision.allowed, decision.reason, decision.policy) == (False, Reason.NO_PROVIDER, "shop/lost")
    assert not decide(asks, path("/a")).allowed


def test_defaults() -> None:
    assert decide((), path("/")).reason is Reason.NOTHING_ALLOWS
    assert decide((), path("/"), OPEN).reason is Reason.NAMESPACE_IS_OPEN
    assert not decide(policy("{}", namespace="open"), path("/"), OPEN).allowed
    assert decide(policy("{action: AUDIT, rules: [{}]}", namespace="open"), path("/"), OPEN).allowed
    unknown = compile_set((), MESH, []).decide(ID, path("/"))
    assert (unknown.allowed, unknown.reason) == (False, Reason.UNKNOWN_TARGET)


def test_connections() -> None:
    connection = Request(principal=WEB, destination_port=80, http=False)
    allow = "{rules: [{from: [{source: {principals: ['*']}}], to: [{operation: {ports: ['80'], methods: [GET]}}]}]}"
    assert not decide(policy(allow), connection).allowed
    assert decide(policy(allow.replace(", methods: [GET]", "")), connection).allowed
    everything = policy("{rules: [{}]}", name="all")
    deny = policy("{action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}")
    assert not decide(everything + deny, connection).allowed
    on_port = policy("{action: DENY, rules: [{to: [{operation: {ports: ['90'], paths: [/a]}}]}]}")
    assert decide(everything + on_port, connection).allowed
    assert not decide(policy("{rules: [{}]}", namespace="open") + deny, connection, TARGET).allowed
    condition = "rules: [{burgee: {condition: \"source.namespace == 'nobody'\"}}]"
    assert not decide(everything + policy(f"{{action: DENY, {condition}}}"), connection).allowed
    assert decide(everything + policy(f"{{action: DENY, {condition}}}"), who(WEB)).allowed
    always = condition.replace("==", "!=")
    assert not decide(policy(f"{{{always}}}"), connection).allowed
    assert decide(policy(f"{{{always}}}"), who(WEB)).allowed


def test_scopes() -> None:
    def is_for(spec: str, target: Target = TARGET, namespace: str = "shop") -> bool:
        rules = spec.replace("}END", ", rules: [{}]}") if spec != "{}END" else "{rules: [{}]}"
        return decide(policy(rules, namespace=namespace), path("/"), target).allowed

    assert is_for("{}END")
    assert is_for("{}END", namespace="istio-system")
    assert not is_for("{}END", namespace="other")
    assert is_for("{selector: {matchLabels: {app: web}}}END")
    assert is_for("{selector: {matchLabels: {app: web, v: '1'}}}END", namespace="istio-system")
    assert not is_for("{selector: {matchLabels: {app: web, v: '2'}}}END")
    assert is_for(f"{{burgee: {{spiffeIds: ['{ID}']}}}}END")
    assert is_for("{burgee: {spiffeIds: ['spiffe://td1/*']}}END")
    assert not is_for(f"{{burgee: {{spiffeIds: ['{ID}']}}}}END", namespace="other")
    gateway = "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: g}}END"
    assert not is_for(gateway)
    at_gateway = Target(spiffe_id=ID, namespace="shop", labels=(("app", "web"),), references=(("Gateway", "g"),))
    assert is_for(gateway, at_gateway)
    assert not is_for(gateway, at_gateway, namespace="istio-system")
    waypoint = Target(
        spiffe_id=ID, namespace="shop", labels=(("app", "web"),), references=(("GatewayClass", "c"),), waypoint=True
    )
    assert not is_for("{selector: {matchLabels: {app: web}}}END", waypoint)
    of_class = "{targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: c}]}END"
    assert is_for(of_class, waypoint, namespace="istio-system")


def test_workloads_that_share_an_id_must_all_allow() -> None:
    twin = Target(spiffe_id=ID, namespace="shop", labels=(("app", "db"),))
    only_web = policy("{selector: {matchLabels: {app: web}}, rules: [{}]}")
    assert compile_set(only_web, MESH, [TARGET]).decide(ID, path("/")).allowed
    assert not compile_set(only_web, MESH, [TARGET, twin]).decide(ID, path("/")).allowed


def test_shadow_policies_decide_beside() -> None:
    allow = policy("{rules: [{}]}", name="all")
    deny = policy("{action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}", dry_run=True)
    decision = decide(allow + deny, path("/a"))
    assert decision.allowed
    assert decision.shadow is not None
    assert (decision.shadow.allowed, decision.shadow.policy) == (False, "shop/p")
    assert decide(allow, path("/a")).shadow is None
    only = decide(policy("{rules: [{}]}", dry_run=True), path("/"))
    assert (only.allowed, only.shadow is not None and only.shadow.allowed) == (False, True)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("*", ["*"]),
        ("td1/ns/foo/sa/bar", ["td1/ns/foo/sa/bar", "td2/ns/foo/sa/bar"]),
        ("td2/ns/foo/sa/bar", ["td1/ns/foo/sa/bar", "td2/ns/foo/sa/bar"]),
        ("cluster.local/ns/foo/sa/bar", ["td1/ns/foo/sa/bar", "td2/ns/foo/sa/bar"]),
        ("some-td/ns/foo/sa/bar", ["some-td/ns/foo/sa/bar"]),
        ("*/ns/foo/sa/bar", ["*/ns/foo/sa/bar"]),
        ("*/sa/bar", ["*/sa/bar"]),
        ("*1/ns/foo/sa/bar", ["*1/ns/foo/sa/bar", "td2/ns/foo/sa/bar"]),
        ("*x/ns/foo/sa/bar", ["*x/ns/foo/sa/bar"]),
        ("td1/ns/foo/sa/*", ["td1/ns/foo/sa/*", "td2/ns/foo/sa/*"]),
        ("td1/ns/foo/*", ["td1/ns/foo/*"]),
        ("td1/*", ["td1/*"]),
        ("td*/ns/foo/sa/bar", ["td1/ns/foo/sa/bar", "td2/ns/foo/sa/bar"]),
    ],
)
def test_aliases_of_the_trust_domain(written: str, meant: list[str]) -> None:
    for field in ("principals", "notPrincipals"):
        made = expanded(policy(source(f"{{{field}: ['{written}']}}"))[0], MESH)
        assert made.rules is not None
        assert [str(match) for match in made.rules[0].sources[0][0].matches] == meant
    for field in ("values", "notValues"):
        made = expanded(policy(when("source.principal", f"['{written}']", field))[0], MESH)
        assert made.rules is not None
        assert [str(match) for match in made.rules[0].conditions[0].matches] == meant


@pytest.mark.parametrize("spec", [source("{principals: [NAME]}"), when("source.principal", "[NAME]")])
@pytest.mark.parametrize("name", ["cluster.local/ns/foo/sa/bar", "td1/ns/foo/sa/bar"])
def test_a_trust_domain_without_aliases_is_meant_by_its_pointer_as_well(spec: str, name: str) -> None:
    alone = Mesh(trust_domains=("td1",))
    made = compile_set(policy(spec.replace("NAME", name)), alone, [TARGET])
    assert made.decide(ID, who("td1/ns/foo/sa/bar")).allowed
    assert not made.decide(ID, who("cluster.local/ns/foo/sa/bar")).allowed


def test_no_other_field_has_aliases() -> None:
    for fields in ("{trustDomains: [td2]}", "{namespaces: ['td2']}", "{principals: ['*td2']}"):
        assert expanded(policy(source(fields))[0], MESH) is not None
        assert not decide(policy(source(fields)), who(WEB)).allowed


def test_more_combinations_than_rows() -> None:
    sources = tuple(
        (Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=(Match(MatchKind.EXACT, f"p{n}"),), negated=True),)
        for n in range(20)
    )
    operations = tuple(
        (
            Clause(attribute=Attribute.PATH, matches=(Match(MatchKind.EXACT, f"/{n}"),), negated=False),
            Clause(attribute=Attribute.METHOD, matches=(Match(MatchKind.EXACT, "GET"),)),
        )
        for n in range(20)
    )
    many = (Policy(namespace="shop", name="p", rules=(Rule(sources=sources, operations=operations),)),)
    assert decide(many, path("/19")).allowed
    assert not decide(many, path("/20")).allowed


def test_what_did_not_change_is_used_again() -> None:
    one, two = policy("{rules: [{}]}"), policy("{rules: [{}]}", namespace="open")
    other = Target(spiffe_id="spiffe://td1/other", namespace="open")
    before = compile_set(one + two, MESH, [TARGET, other])
    changed = policy("{action: DENY, rules: [{}]}")
    after = compile_set(changed + two, MESH, [TARGET, other], previous=before)
    assert after.judges(other.spiffe_id)[0] is before.judges(other.spiffe_id)[0]
    assert (before.decide(ID, path("/")).allowed, after.decide(ID, path("/")).allowed) == (True, False)


PEER = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: NAME, namespace: NS}\nspec: "


@pytest.mark.parametrize(
    ("objects", "port", "allowed"),
    [
        ([], 80, True),
        ([("istio-system", "{mtls: {mode: STRICT}}")], 80, False),
        ([("istio-system", "{mtls: {mode: STRICT}}"), ("shop", "{mtls: {mode: PERMISSIVE}}")], 80, True),
        ([("istio-system", "{mtls: {mode: STRICT}}"), ("shop", "{mtls: {mode: UNSET}}")], 80, False),
        (
            [
                ("shop", "{mtls: {mode: STRICT}}"),
                ("shop", "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}}"),
            ],
            80,
            True,
        ),
        ([("istio-system", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}")], 80, True),
        ([("shop", "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: STRICT}}}")], 80, False),
        ([("shop", "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: STRICT}}}")], 81, True),
        (
            [
                ("shop", "{mtls: {mode: STRICT}}"),
                ("shop", "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: PERMISSIVE}}}"),
            ],
            80,
            True,
        ),
        # of two in one scope the first by name holds
        ([("shop", "{mtls: {mode: STRICT}}"), ("shop", "{mtls: {mode: PERMISSIVE}}")], 80, False),
        ([("shop", "{mtls: {mode: PERMISSIVE}}"), ("shop", "{mtls: {mode: STRICT}}")], 80, True),
    ],
)
def test_strict_refuses_who_shows_no_certificate(objects: list[tuple[str, str]], port: int, allowed: bool) -> None:
    text = "---\n".join(
        f"{PEER.replace('NAME', f'n{n}').replace('NS', namespace)}{spec}\n"
        for n, (namespace, spec) in enumerate(objects)
    )
    peers = parse(text, "f").peer_authentications
    snapshot = compile_set(policy("{rules: [{}]}"), MESH, [TARGET], peers=peers)
    for http in (True, False):
        assert snapshot.decide(ID, Request(destination_port=port, http=http)).allowed is allowed
        assert snapshot.decide(ID, Request(principal=WEB, destination_port=port, http=http)).allowed


def test_a_rule_keeps_its_number_where_those_before_it_mean_nothing_for_connections() -> None:
    """What decides is named by the number that it has where it was written, in Envoy's logs, too."""
    rules = (
        f"{{rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}, {{from: [{{source: {{principals: ['{WEB}']}}}}]}}]}}"
    )
    policies = policy(rules)
    decision = decide(policies, Request(principal=WEB, http=False, destination_port=1))
    assert (decision.allowed, decision.rule) == (True, 1)
    made, _ = network_filter(TARGET, policies, MESH, Proxy())
    assert "shop/p#1" in str(made)
    assert "shop/p#0" not in str(made)


def test_workloads_that_share_an_id_must_all_allow_and_all_their_providers_agree() -> None:
    """Whichever of them was described first."""
    other = Target(spiffe_id=ID, namespace="shop", labels=(("app", "other"),))
    asks = policy("{selector: {matchLabels: {app: web}}, action: CUSTOM, provider: {name: ext}, rules: [{}]}", name="a")
    allows = policy("{rules: [{}]}", name="b")
    stricter = policy("{selector: {matchLabels: {app: other}}, action: DENY, rules: [{}]}", name="c", dry_run=True)
    for targets in ([TARGET, other], [other, TARGET]):
        decision = compile_set((*asks, *allows, *stricter), MESH, targets).decide(ID, who(WEB))
        assert (decision.allowed, decision.providers) == (True, ("ext",))
        assert decision.shadow is not None
        assert not decision.shadow.allowed
