"""The graph never says less than the evaluator: whoever is let through is in it, whoever it denies is denied."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from policy.graph import Effect, Graph, Verdict, graph_of
from policy.graph_dot import dot
from policy.model import Mesh, Policy, Request, Target
from policy.parse import parse
from policy.snapshot import compile_set
from tests.policy.strategies import MESH as DRAWN_MESH
from tests.policy.strategies import POLICY_SETS, REQUESTS, TARGETS

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
MESH = Mesh(trust_domains=("example.org",), open_namespaces=frozenset({"open"}), providers=frozenset({"ext"}))
NAMES = ("web", "orders", "payments")
TARGET_LIST = [
    Target(spiffe_id=f"spiffe://example.org/ns/shop/sa/{n}", namespace="shop", labels=(("app", n),)) for n in NAMES
]
WEB, ORDERS, PAYMENTS = (target.spiffe_id for target in TARGET_LIST)
HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: NAME, namespace: shop}\nspec:\n"


def graph(*specs: str, targets: list[Target] | None = None, more: str = "") -> Graph:
    text = "---\n".join([*(HEAD.replace("NAME", f"p{n}") + f"  {spec}\n" for n, spec in enumerate(specs)), more])
    found = parse(text, "shop.yaml")
    return graph_of(
        compile_set(found.policies, MESH, targets or TARGET_LIST, peers=found.peer_authentications), revision=3
    )


def verdicts(found: Graph) -> dict[tuple[str, str], str]:
    return {(p.caller.rpartition("/")[2], p.service.rpartition("/")[2]): p.verdict.value for p in found.pairs()}


ON_ORDERS = "selector: {matchLabels: {app: orders}}\n  "


def test_a_rule_is_an_edge_with_its_methods_paths_and_conditions() -> None:
    found = graph(
        ON_ORDERS
        + 'rules: [{from: [{source: {principals: ["example.org/ns/shop/sa/web"], ipBlocks: ["10.0.0.0/8"]}}], '
        + 'to: [{operation: {methods: ["GET"], paths: ["/orders/*"], notPorts: ["9000"]}}], '
        + 'when: [{key: "request.headers[x-team]", values: ["a"]}]}]'
    )
    (edge,) = found.edges
    assert (edge.caller, edge.service, edge.effect) == (WEB, ORDERS, Effect.ALLOW)
    grant = edge.grants[0].document()
    assert grant["operations"] == [{"methods": ["GET"], "paths": ["/orders/*"], "not_ports": ["9000"]}]
    assert grant["conditions"] == ["source address in [10.0.0.0/8]", "header x-team in [a]"]
    assert (grant["policy"], grant["rule"], grant["origin"].partition(":")[0]) == ("shop/p0", 0, "shop.yaml")
    assert verdicts(found) == {("web", "orders"): "limited"}


def test_callers_are_told_apart() -> None:
    found = graph(
        'rules: [{from: [{source: {namespaces: ["shop"]}}, {source: {serviceAccounts: ["web"]}}, '
        '{source: {trustDomains: ["partner.example"]}}, {source: {ipBlocks: ["10.0.0.0/8"]}}, '
        '{source: {remoteIpBlocks: ["10.0.0.0/8"]}}, {source: {requestPrincipals: ["https://i/*"]}}, '
        '{source: {principals: ["*", "partner.example/ns/x/*", "partner.example/y"]}}, '
        '{source: {notNamespaces: ["x"]}}, '
        '{source: {notPrincipals: ["*"]}}]}]',
        targets=[TARGET_LIST[0]],
    )
    kinds = {caller.id: caller.kind.value for caller in found.callers.values()}
    assert kinds == {
        "namespace shop": "namespace",
        "service account shop/web": "service account",
        "trust domain partner.example": "trust domain",
        "network 10.0.0.0/8": "network",
        "network 10.0.0.0/8 as proxies say it": "network",
        "token https://i/*": "token",
        "any identity": "any identity",
        "pattern partner.example/ns/x/*": "pattern",
        "spiffe://partner.example/y": "identity",
        "anyone": "anyone",
        "no identity": "no identity",
    }
    members = {caller["id"]: caller["members"] for caller in found.document()["callers"]}
    assert members["namespace shop"] == [WEB]
    assert members["service account shop/web"] == [WEB]
    assert members["trust domain partner.example"] == ["spiffe://partner.example/y"]
    assert members["any identity"] == []


def test_denies_limits_and_defaults() -> None:
    everybody = "rules: [{}]"
    assert set(verdicts(graph(everybody)).values()) == {"allowed"}
    stop_web = 'action: DENY\n  rules: [{from: [{source: {principals: ["example.org/ns/shop/sa/web"]}}]}]'
    assert verdicts(graph(everybody, ON_ORDERS + stop_web))["web", "orders"] == "denied"
    of_network = 'action: DENY\n  rules: [{from: [{source: {ipBlocks: ["10.0.0.0/8"]}}]}]'
    assert verdicts(graph(everybody, ON_ORDERS + of_network))["web", "orders"] == "limited"
    ask = "action: CUSTOM\n  provider: {name: ext}\n  rules: [{}]"
    assert verdicts(graph(everybody, ON_ORDERS + ask))["web", "orders"] == "limited"
    assert verdicts(graph(everybody, ON_ORDERS + ask.replace("ext", "nobody")))["web", "orders"] == "denied"
    assert verdicts(graph("{}")) == {}
    opened = graph("{}", targets=[replace(TARGET_LIST[0], namespace="open")])
    assert (opened.services[WEB].open, [p.verdict for p in opened.pairs()]) == (True, [Verdict.ALLOWED])


def test_a_shadow_policy_is_drawn_and_decides_nothing() -> None:
    text = HEAD.replace("{name: NAME", "{annotations: {istio.io/dry-run: 'true'}, name: next") + "  rules: [{}]\n"
    found = graph("{}", more=text)
    assert [grant.shadow for edge in found.edges for grant in edge.grants] == [True] * 3
    assert verdicts(found) == {}


def test_strict_mutual_tls_denies_who_shows_no_certificate() -> None:
    head = HEAD.replace("AuthorizationPolicy", "PeerAuthentication").replace("NAME", "d")
    strict = head + "  mtls: {mode: STRICT}\n"
    found = graph("rules: [{}]", more=strict)
    assert {edge.caller for edge in found.edges if edge.effect is Effect.DENY} == {"no identity"}
    assert set(verdicts(found).values()) == {"allowed"}


def test_dot_quotes_whatever_a_name_is() -> None:
    found = graph(
        r"""rules: [{from: [{source: {principals: ["x\"];\nevil [label=\"\\"]}}]}]""", targets=[TARGET_LIST[0]]
    )
    text = dot(found)
    assert text.startswith("digraph policies {")
    assert text.count("\n") == text.rstrip("\n").count("\n") + 1
    inside = [line for line in text.splitlines() if "evil" in line]
    assert inside
    for line in inside:
        bare = line.replace("\\\\", "").replace('\\"', "")
        assert bare.count('"') % 2 == 0
        outside = "".join(part for at, part in enumerate(bare.split('"')) if at % 2 == 0)
        assert "evil" not in outside


def test_the_document_is_json() -> None:
    found = json.loads(json.dumps(graph("rules: [{}]").document()))
    assert found["revision"] == 3
    assert {service["default"] for service in found["services"]} == {"deny"}


@settings(max_examples=300 if LONG else 80, deadline=None)
@given(policies=POLICY_SETS, asked=REQUESTS, data=st.data())
def test_what_the_graph_says_holds(policies: tuple[Policy, ...], asked: Request, data: st.DataObject) -> None:
    snapshot = compile_set(policies, DRAWN_MESH, TARGETS)
    found = graph_of(snapshot)
    who = data.draw(st.sampled_from(sorted(found.principals())))
    request = replace(asked, principal=who.removeprefix("spiffe://"))
    assume("\n" not in who)
    pairs = {pair.service: pair.verdict for pair in found.pairs() if pair.caller == who}
    for target in TARGETS:
        decision = snapshot.decide(target.spiffe_id, request)
        verdict = pairs.get(target.spiffe_id)
        if verdict is None or verdict is Verdict.DENIED:
            assert not decision.allowed
        elif verdict is Verdict.ALLOWED:
            assert decision.allowed
            assert not decision.providers
