"""Explanations say what was decided, name the rule, and rank what came near as a slow count ranks it."""

from __future__ import annotations

import json
import os

from hypothesis import given, settings

from policy import cel
from policy.explain import DESCRIBED_BY, MAX_NEAREST, MAX_POLICIES, explain
from policy.guard import refused_unread
from policy.matching import holds
from policy.model import Action, Attribute, Clause, Group, Match, MatchKind, Mesh, Policy, Request, Rule, Target
from policy.parse import parse
from policy.snapshot import Snapshot, compile_set
from tests.policy.strategies import MESH as DRAWN_MESH
from tests.policy.strategies import POLICY_SETS, REQUESTS, TARGETS

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
MESH = Mesh(trust_domains=("example.org",), open_namespaces=frozenset({"open"}), providers=frozenset({"ext"}))
ORDERS = "spiffe://example.org/ns/shop/sa/orders"
WEB = "example.org/ns/shop/sa/web"
READ = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: orders-read, namespace: shop}}
spec:
  rules:
  - from:
    - source: {{principals: ["{WEB}"]}}
    to:
    - operation: {{methods: ["GET"], paths: ["/orders/*"]}}
  - from:
    - source: {{namespaces: ["admin"]}}
"""
STOP = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: stop, namespace: shop}
spec:
  action: DENY
  rules:
  - to:
    - operation: {methods: ["DELETE"]}
  - when:
    - {key: "request.headers[x-debug]", values: ["*"]}
"""


def snapshot(*texts: str, targets: tuple[Target, ...] = (Target(spiffe_id=ORDERS, namespace="shop"),)) -> Snapshot:
    found = parse("\n---\n".join(texts), "shop.yaml")
    return compile_set(found.policies, MESH, targets, peers=found.peer_authentications)


def request(method: str = "GET", path: str = "/orders/7", principal: str | None = WEB, **more: object) -> Request:
    return Request(principal=principal, method=method, path=path, **more)  # type: ignore[arg-type]


def test_a_default_deny_names_the_nearest_rule_in_words() -> None:
    found = explain(snapshot(READ, STOP), ORDERS, request("POST"), revision=12)
    assert not found.decision.allowed
    first, second = found.nearest
    assert (first.name, [str(one) for one in first.failed]) == ("shop/orders-read#0", ["method POST not in [GET]"])
    assert [str(one) for one in second.failed] == ["caller's namespace shop not in [admin]"]
    text = found.text()
    assert "denied: no rule allows it" in text
    assert "ALLOW shop/orders-read#0 (shop.yaml:7): 1 failed\n    method POST not in [GET]" in text
    assert "DENY shop/stop#0 (shop.yaml:" in text
    assert "method POST not in [DELETE]" in text
    assert text.endswith("revision 12")


def test_an_allowed_request_names_its_rule_and_what_it_had() -> None:
    found = explain(snapshot(READ, STOP), ORDERS, request())
    assert found.decision.allowed
    assert found.decisive is not None
    assert found.decisive.name == "shop/orders-read#0"
    assert [str(one) for one in found.decisive.held] == [
        f"principal {WEB} in [{WEB}]",
        "method GET in [GET]",
        "path /orders/7 in [/orders/*]",
    ]
    assert found.nearest == ()
    assert [one.name for one in found.policies] == ["shop/stop#0"]


def test_a_denied_request_tells_what_would_allow_it() -> None:
    found = explain(snapshot(READ, STOP), ORDERS, request(headers={"x-debug": ""}))
    assert not found.decision.allowed
    assert found.decisive is not None
    assert found.decisive.name == "shop/stop#1"
    assert found.without is not None
    assert found.without.name == "shop/orders-read#0"
    assert "without that rule it would be allowed by ALLOW shop/orders-read#0 (shop.yaml:7)" in found.text()


def test_two_rules_that_deny_leave_nothing_to_hope_for() -> None:
    both = STOP.replace("DELETE", "GET")
    assert explain(snapshot(READ, both), ORDERS, request(headers={"x-debug": "1"})).without is None


def test_an_unknown_target_is_told_what_describes_one() -> None:
    found = explain(snapshot(READ), ORDERS[:-1], request())
    assert found.document()["reason"] == "UNKNOWN_TARGET"
    assert DESCRIBED_BY in found.notes
    assert ORDERS in found.text()


def test_absent_negated_and_conditions_are_said() -> None:
    text = READ.replace('principals: ["', 'notPrincipals: ["').replace(
        'paths: ["/orders/*"]}}', 'paths: ["/orders/*"]}}\n    burgee: {condition: "request.host == \'a\'"}'
    )
    text = text.replace(
        'paths: ["/orders/*"]}', 'paths: ["/orders/*"]}\n    burgee: {condition: "request.host == \'a\'"}'
    )
    found = explain(snapshot(text), ORDERS, Request(principal=WEB, path="/orders/1"))
    assert [str(one) for one in found.nearest[-1].failed] == [
        f"principal {WEB} in notPrincipals [{WEB}]",
        "method is absent, not in [GET]",
        "condition does not hold: request.host == 'a'",
    ]


def test_a_connection_is_told_which_rules_look_at_http() -> None:
    found = explain(snapshot(READ), ORDERS, Request(http=False, principal="example.org/ns/x/sa/y"))
    assert [one.name for one in found.nearest] == ["shop/orders-read#1", "shop/orders-read#0"]
    assert "looks at the method [GET], which a connection that is not HTTP has not" in found.text()
    admin = explain(snapshot(READ), ORDERS, Request(http=False, principal="example.org/ns/admin/sa/y"))
    assert admin.decisive is not None
    assert admin.decisive.name == "shop/orders-read#1", "as it was written, not as it stands among what is left"


def test_rules_that_look_at_http_are_ranked_among_the_others() -> None:
    text = READ.replace('namespaces: ["admin"]', 'namespaces: ["admin"], principals: ["example.org/ns/admin/sa/x"]')
    text = text.replace('methods: ["GET"], paths: ["/orders/*"]', 'methods: ["GET"]')
    found = explain(snapshot(text), ORDERS, Request(http=False, principal=WEB))
    assert [(one.name, len(one.failed)) for one in found.nearest] == [
        ("shop/orders-read#0", 1),
        ("shop/orders-read#1", 2),
    ]


def test_shadow_providers_policies_without_rules_and_paths_are_told() -> None:
    shadow = READ.replace("{name: orders-read", "{annotations: {istio.io/dry-run: 'true'}, name: next").replace(
        "GET", "POST"
    )
    ask = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec: {action: CUSTOM, provider: {name: ext}, rules: [{}]}
"""
    nothing = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: shop}
spec: {}
"""
    known = snapshot(READ, shadow, ask, nothing)
    found = explain(known, ORDERS, request("POST", "/orders//1"))
    assert not found.decision.allowed
    assert found.shadow_decisive is not None
    assert found.shadow_decisive.name == "shop/next#0"
    assert found.document()["shadow"]["allowed"] is True
    assert "ALLOW shop/nothing (shop.yaml:" in found.text()
    assert "it has no rules" in found.text()
    assert found.unread
    assert (found.document()["allowed"], found.document()["reason"]) == (False, "PATH_NOT_NORMAL")
    allowed = explain(known, ORDERS, request())
    assert allowed.document()["providers"] == ["ext"]
    assert "if ext agree" in allowed.text()


def test_a_request_that_is_refused_unread_is_denied_whatever_rules_would_say() -> None:
    found = explain(snapshot(READ), ORDERS, request(path="/orders//7"))
    assert found.decision.allowed
    assert not found.allowed
    first, second, *_ = found.text().splitlines()
    assert first.startswith("denied: the path is not normal, and a proxy refuses it before any rule")
    assert second.startswith("rules alone: allowed: no rule denies")
    declared = (Target(spiffe_id=ORDERS, namespace="shop", normalized=True),)
    assert explain(snapshot(READ, targets=declared), ORDERS, request(path="/orders//7")).allowed
    anywhere = READ.replace(', paths: ["/orders/*"]', "")
    assert explain(snapshot(anywhere), ORDERS, request(path="/orders//7")).allowed


def test_where_workloads_share_an_id_the_one_that_denies_is_explained() -> None:
    targets = (
        Target(spiffe_id=ORDERS, namespace="shop"),
        Target(spiffe_id=ORDERS, namespace="shop", labels=(("v", "2"),)),
    )
    labelled = STOP.replace("spec:", "spec:\n  selector: {matchLabels: {v: '2'}}").replace("DELETE", "GET")
    found = explain(snapshot(READ, labelled, targets=targets), ORDERS, request())
    assert found.decisive is not None
    assert found.decisive.name == "shop/stop#0"
    assert "each of them must allow" in found.text()


def test_what_somebody_sent_is_shown_tame_and_short() -> None:
    found = explain(snapshot(READ), ORDERS, request(path="/\x1b[2J" + "x" * 5000))
    assert "\x1b" not in found.text()
    assert max(map(len, found.text().splitlines())) < 400


def test_a_policy_that_would_allow_and_is_for_others_is_told() -> None:
    labelled = READ.replace("spec:", "spec:\n  selector: {matchLabels: {app: web, tier: a}}").replace(
        "orders-read", "other"
    )
    target = Target(spiffe_id=ORDERS, namespace="shop", labels=(("app", "orders"), ("tier", "a")))
    found = explain(snapshot(labelled, targets=(target,)), ORDERS, request())
    assert (
        "would allow it, and are not for this target:\n  ALLOW shop/other#0 (shop.yaml:8): "
        "it is for labels app=web; the target has app=orders, tier=a" in found.text()
    )
    assert explain(snapshot(labelled, targets=(target,)), ORDERS, request("POST")).elsewhere == ()
    by_id = READ.replace("spec:", "spec:\n  burgee: {spiffeIds: ['spiffe://example.org/x/*']}")
    assert "it is for spiffeIds spiffe://example.org/x/*" in explain(snapshot(by_id), ORDERS, request()).text()
    assert found.document()["for_others"][0]["failed"][0]["want"] == ["app=web"]
    abroad = labelled.replace("namespace: shop", "namespace: ops")
    assert explain(snapshot(abroad, targets=(target,)), ORDERS, request()).elsewhere == ()


def test_of_many_policies_the_nearest_are_told_and_the_others_counted() -> None:
    def one(number: int) -> Policy:
        principal = Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=(Match(MatchKind.EXACT, f"td/{number}"),))
        method = Clause(attribute=Attribute.METHOD, matches=(Match(MatchKind.EXACT, "GET" if number == 70 else "PUT"),))
        return Policy(
            namespace="shop", name=f"p{number}", rules=(Rule(sources=((principal,),), operations=((method,),)),)
        )

    known = compile_set(map(one, range(100)), MESH, [Target(spiffe_id=ORDERS, namespace="shop")])
    found = explain(known, ORDERS, request())
    assert found.nearest[0].name == "shop/p70#0"
    assert (len(found.nearest), len(found.policies), found.policies_left_out) == (MAX_NEAREST, MAX_POLICIES, 70)


def count(rule: Rule, action: Action, asked: Request) -> int:
    def failing(group: Group) -> int:
        return sum(not holds(clause, asked) for clause in group)

    return (
        min(map(failing, rule.sources), default=0)
        + min(map(failing, rule.operations), default=0)
        + failing(rule.conditions)
        + (bool(rule.condition) and not cel.holds(rule.condition, action, asked))
    )


@settings(max_examples=300 if LONG else 50, deadline=None)
@given(policies=POLICY_SETS, asked=REQUESTS)
def test_the_ranking_is_that_of_a_slow_count(policies: tuple[Policy, ...], asked: Request) -> None:
    """Identities of generated policies may repeat, as those of `PeerAuthentication` and of policies do."""
    known = compile_set(policies, DRAWN_MESH, TARGETS)
    for target in TARGETS:
        found = explain(known, target.spiffe_id, asked)
        assert found.decision == known.decide(target.spiffe_id, asked)
        unread = refused_unread(known, target.spiffe_id, asked)
        assert json.loads(json.dumps(found.document()))["allowed"] is (found.decision.allowed and not unread)
        assert found.text()
        if found.decision.policy is not None:
            assert found.decisive is not None
            assert (found.decisive.policy, found.decisive.failed) == (found.decision.policy, ())
        if found.decision.reason != "NOTHING_ALLOWS" or not asked.http:
            continue
        (judge,) = known.judges(target.spiffe_id)
        slow = sorted(
            count(rule, policy.action, asked)
            for policy in judge.policies
            if policy.action is Action.ALLOW and not policy.shadow
            for rule in policy.rules or ()
        )
        assert [len(miss.failed) for miss in found.nearest] == slow[:MAX_NEAREST]
