"""What a difference says of changes that people make."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from policy.classes.compare import Kind
from policy.diff import Change, difference
from policy.model import Mesh, Target
from policy.parse import parse
from policy.snapshot import Snapshot, compile_set

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{n}, namespace: shop}}\nspec: "
MESH = Mesh(trust_domains=("td", "old"), providers=frozenset({"opa"}))
ORDERS = Target(spiffe_id="spiffe://td/ns/shop/sa/orders", namespace="shop", labels=(("app", "orders"),))
OTHER = replace(ORDERS, labels=(("app", "other"),))


def snapshot(*specs: str, mesh: Mesh = MESH, targets: tuple[Target, ...] = (ORDERS,)) -> Snapshot:
    text = "\n---\n".join(f"{HEAD.format(n=n)}{spec}" for n, spec in enumerate(specs))
    parsed = parse(text, "p.yaml")
    return compile_set(parsed.policies, mesh, targets, peers=parsed.peer_authentications)


def changes(before: Snapshot, after: Snapshot) -> list[tuple[str, bool]]:
    found = difference(before, after)
    assert found.complete
    for change in found.changes:
        if change.certain:
            assert_shown(change, before, after)
    return [(change.kind.value, change.http) for change in found.changes]


def assert_shown(change: Change, before: Snapshot, after: Snapshot) -> None:
    was, will = (each.decide(change.targets[0], change.request) for each in (before, after))
    assert (was.allowed, was.providers) != (will.allowed, will.providers)


WEB = '{from: [{source: {principals: ["td/ns/web/sa/front"]}}], to: [{operation: {methods: ["GET"]}}]}'
ANYBODY = "{from: [{source: {principals: ['*']}}], to: [{operation: {methods: ['GET']}}]}"


def test_a_rule_more() -> None:
    before, after = snapshot(f"{{rules: [{WEB}]}}"), snapshot(f"{{rules: [{WEB}, {ANYBODY}]}}")
    (change,) = difference(before, after).changes
    assert (change.kind, change.policy, change.rule, change.removed) == (Kind.ALLOWED, "shop/p0", 1, False)
    assert change.region == ("principal in [*]", "method in [GET]")
    assert change.origin.line == 4
    assert change.request.method == "GET"
    assert change.request.principal not in (None, "td/ns/web/sa/front")
    text = change.text()
    assert "newly allowed" in text
    assert "to spiffe://td/ns/shop/sa/orders" in text
    document = json.loads(json.dumps(difference(after, before).document()))
    assert document["changes"][0]["change"] == "denied"
    assert document["changes"][0]["removed"] is True
    assert document["changes"][0]["request"]["method"] == "GET"
    assert document["equivalent"] is False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((f"{{rules: [{WEB}, {ANYBODY}]}}",), (f"{{rules: [{ANYBODY}]}}",)),
        ((f"{{rules: [{WEB}]}}", f"{{rules: [{ANYBODY}]}}"), (f"{{rules: [{ANYBODY}, {WEB}]}}",)),
        (
            ("{rules: [{to: [{operation: {paths: ['/a*']}}]}]}",),
            ("{rules: [{to: [{operation: {paths: ['/a', '/a*', '/a/{*}']}}, {operation: {paths: ['/ab/{**}']}}]}]}",),
        ),
        (
            ("{rules: [{when: [{key: 'request.headers[x]', values: ['a*']}]}]}",),
            (
                "{rules: [{when: [{key: 'request.headers[x]', values: ['a*'], notValues: ['ab*']}]},"
                " {when: [{key: 'request.headers[x]', values: ['ab*']}]}]}",
            ),
        ),
        (
            ("{rules: [{from: [{source: {ipBlocks: ['10.0.0.0/8']}}]}]}",),
            ("{rules: [{from: [{source: {ipBlocks: ['10.0.0.0/9']}}, {source: {ipBlocks: ['10.128.0.0/9']}}]}]}",),
        ),
        (
            ("{rules: [{}]}", "{action: DENY, rules: [{to: [{operation: {methods: ['GET']}}]}]}"),
            (
                "{rules: [{to: [{operation: {notMethods: ['GET']}}]}]}",
                "{action: DENY, rules: [{to: [{operation: {methods: ['GET']}}]}]}",
            ),
        ),
        (
            ("{rules: [{from: [{source: {requestPrincipals: ['i/*'], notRequestPrincipals: ['i/a']}}]}]}",),
            (
                "{rules: [{from: [{source: {requestPrincipals: ['i/*']}}], when: "
                "[{key: 'request.auth.claims[sub]', notValues: ['a']}]}]}",
            ),
        ),
    ],
)
def test_equivalent(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    http = [kind for kind, is_http in changes(snapshot(*one), snapshot(*other)) if is_http]
    assert http == []


def test_connections_are_compared_by_themselves() -> None:
    before = snapshot("{rules: [{}]}")
    after = snapshot("{rules: [{to: [{operation: {methods: ['*']}}]}, {to: [{operation: {notMethods: ['*']}}]}]}")
    assert changes(before, after) == [("denied", False)]


def test_a_provider() -> None:
    allow = "{rules: [{}]}"
    asking = "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: ['/admin/*']}}]}]}"
    before, after = snapshot(allow), snapshot(allow, asking)
    (change, *_) = difference(before, after).changes
    assert (change.kind, change.provider) == (Kind.ASKED, "opa")
    assert (change.request.path or "").startswith("/admin/")
    assert {kind for kind, _ in changes(after, before)} == {"unasked"}
    gone = snapshot(allow, asking, mesh=replace(MESH, providers=frozenset()))
    assert ("denied", True) in changes(after, gone)
    assert ("allowed", True) in changes(gone, after)


def test_the_first_allow_in_an_open_namespace() -> None:
    mesh = replace(MESH, open_namespaces=frozenset({"shop"}))
    before, after = snapshot("{action: AUDIT, rules: [{}]}", mesh=mesh), snapshot(f"{{rules: [{WEB}]}}", mesh=mesh)
    (change, *_) = difference(before, after).changes
    assert (change.kind, change.policy) == (Kind.DENIED, None)
    assert "the namespace's default" in change.text()
    assert ("allowed", True) in changes(after, before)


def test_a_namespace_that_is_opened() -> None:
    before, after = (
        snapshot("{action: AUDIT, rules: [{}]}", mesh=replace(MESH, open_namespaces=frozenset(names)))
        for names in ((), ("shop",))
    )
    assert ("allowed", True) in changes(before, after)


def test_a_target_that_comes_and_goes() -> None:
    rule = f"{{rules: [{WEB}]}}"
    assert changes(snapshot(rule, targets=()), snapshot(rule)) == [("allowed", True)]
    assert changes(snapshot(rule), snapshot(rule, targets=())) == [("denied", True)]


def test_workloads_that_share_an_id_must_all_allow() -> None:
    selected = f"{{selector: {{matchLabels: {{app: orders}}}}, rules: [{WEB}]}}"
    both = snapshot(selected, targets=(ORDERS, OTHER))
    assert changes(snapshot(selected), both) == [("denied", True)]
    assert changes(both, snapshot(f"{{rules: [{WEB}]}}", targets=(ORDERS, OTHER))) == [("allowed", True)]


STRICT = "\n---\n".join(
    [
        HEAD.format(n=0) + "{rules: [{}]}",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\n"
        "spec: {mtls: {mode: STRICT}}",
    ]
)


def test_plain_text_that_is_turned_away() -> None:
    parsed = parse(STRICT, "p.yaml")
    strict = compile_set(parsed.policies, MESH, [ORDERS], peers=parsed.peer_authentications)
    found = difference(snapshot("{rules: [{}]}"), strict)
    assert [change.kind for change in found.changes] == [Kind.DENIED, Kind.DENIED][: len(found.changes)]
    assert all(change.request.principal is None for change in found.changes)
    assert "a caller without certificate" in found.text()


def test_a_condition_may_change_something() -> None:
    with_condition = "{rules: [{burgee: {condition: \"request.headers['x'] == 'y'\"}}]}"
    found = difference(snapshot("{action: AUDIT, rules: [{}]}"), snapshot(with_condition))
    (change,) = found.changes
    assert not change.certain
    assert change.conditions == ("request.headers['x'] == 'y'",)
    assert "may be newly allowed" in change.text()
    assert not found.empty


def test_a_condition_that_does_not_matter() -> None:
    condition = "{burgee: {condition: \"request.path == '/a'\"}}"
    before, after = snapshot(f"{{rules: [{{}}, {condition}]}}"), snapshot("{rules: [{}]}")
    assert changes(before, after) == []
    always = "{burgee: {condition: \"request.path == '/'\"}}"
    (change,) = difference(snapshot("{action: AUDIT, rules: [{}]}"), snapshot(f"{{rules: [{always}]}}")).changes
    assert change.certain


def test_shadow_policies_are_compared_beside() -> None:
    shadow = HEAD.format(n=1).replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}")
    text = f"{HEAD.format(n=0)}{{rules: [{WEB}]}}\n---\n{shadow}{{action: DENY, rules: [{{}}]}}"
    after = compile_set(parse(text, "p.yaml").policies, MESH, [ORDERS])
    (change, *_) = difference(snapshot(f"{{rules: [{WEB}]}}"), after).changes
    assert (change.kind, change.shadow) == (Kind.DENIED, True)
    assert "in shadow only" in change.text()


def test_what_is_too_much_work_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.classes.frames.MAX_STEPS", 1)
    found = difference(snapshot(f"{{rules: [{WEB}]}}"), snapshot(f"{{rules: [{ANYBODY}]}}"))
    assert not found.empty
    assert not found.complete
    assert [(one.policy, one.rule) for one in found.undecided] == [("shop/p0", 0)] * len(found.undecided)
    assert "not decided" in found.text()
    assert found.document()["complete"] is False


def test_only_the_targets_that_are_asked_for() -> None:
    before, after = snapshot(f"{{rules: [{WEB}]}}"), snapshot(f"{{rules: [{ANYBODY}]}}")
    assert difference(before, after, [ORDERS]).compared == 1
    assert difference(before, after, ["spiffe://td/other"]).empty
    assert difference(before, before).text() == "every request is decided as before"
