"""Tests of policies: what passes, what fails and how it is told, and what cannot be read."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from policy.model import Mesh, Target
from policy.parse import parse
from policy.problems import Refused
from policy.scenarios import Report, read_cases, run
from policy.snapshot import Snapshot, compile_set
from tests.policy.test_explain import MESH, ORDERS, READ, STOP, WEB, snapshot

CASES = f"""
tests:
- name: web may read
  target: {ORDERS}
  request: {{principal: spiffe://{WEB}, method: GET, path: "/orders/7?page=2"}}
  expect: allow
  rule: shop/orders-read#0
- name: web may pay
  target: {ORDERS}
  request: {{principal: {WEB}, method: POST, path: /orders/7}}
  expect: allow
- name: nobody deletes
  target: {ORDERS}
  request: {{principal: {WEB}, method: DELETE, path: /orders/7, headers: {{X-Debug: "1"}}}}
  expect: deny
  rule: shop/stop
"""


def report(text: str = CASES, known: Snapshot | None = None) -> Report:
    return run(read_cases([("tests/shop.yaml", text)]), known or snapshot(READ, STOP))


def test_what_is_as_wanted_passes_and_what_is_not_says_why() -> None:
    found = report()
    assert [result.passed for result in found.results] == [True, False, True]
    assert found.text().splitlines() == [
        "FAILED  tests/shop.yaml:8  web may pay",
        "    want allow, got deny: nothing allows it, nearest is ALLOW shop/orders-read#0 (shop.yaml:7): "
        "method POST not in [GET]",
        "2 passed, 1 failed",
        "2 rules decided no test: shop/orders-read#1, shop/stop#1",
    ]
    document = json.loads(json.dumps(found.document()))
    assert (document["passed"], document["failed"]) == (2, 1)
    assert document["results"][1]["got"] == "deny"


def test_what_a_proxy_refuses_unread_is_no_passed_test() -> None:
    odd = CASES.replace("/orders/7?page=2", "/orders//7").replace("path: /orders/7,", "path: /orders/%2f,")
    found = report(odd)
    assert [result.allowed for result in found.results] == [False, False, False]
    unread = "the path is not normal, and a proxy refuses it before any rule, since policies look at paths"
    assert found.results[0].wrong == (f"want allow, got deny: {unread}",)
    assert found.results[2].wrong == (f"want it by shop/stop, it is by none: {unread}",)
    assert {one["reason"] for one in found.document()["results"]} == {"PATH_NOT_NORMAL", "NOTHING_ALLOWS"}
    normalizing = (Target(spiffe_id=ORDERS, namespace="shop", normalized=True),)
    assert report(odd, snapshot(READ, STOP, targets=normalizing)).results[0].passed


def test_junit_is_xml_whatever_a_name_is() -> None:
    text = CASES.replace("web may pay", '"<&>\\x07]]> \\u2028"')
    suite = ElementTree.fromstring(report(text).junit()).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    cases = suite.findall("testcase")
    assert [case.get("line") for case in cases] == ["3", "8", "12"]
    failure = cases[1].find("failure")
    assert failure is not None
    assert "method POST not in [GET]" in (failure.get("message") or "")


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (("rule: shop/orders-read#0", "rule: shop/orders-read#1"), "want it by shop/orders-read#1"),
        (("rule: shop/orders-read#0", "rule: shop/orders"), "it is by shop/orders-read#0"),
        (("rule: shop/orders-read#0", "shadow: deny"), "want deny with shadow policies"),
        (("rule: shop/orders-read#0", "providers: [ext]"), "besides, nobody must agree"),
        ((f"target: {ORDERS}", f"target: {ORDERS}x"), "nobody described the target"),
    ],
)
def test_what_else_can_be_wanted(change: tuple[str, str], wrong: str) -> None:
    assert wrong in report(CASES.replace(*change, 1)).results[0].wrong[0]


def test_a_provider_that_must_agree_has_to_be_named() -> None:
    ask = READ.replace("orders-read", "ask").replace("rules:", "action: CUSTOM\n  provider: {name: ext}\n  rules:")
    ask = ask[: ask.index("  rules:")] + "  rules: [{}]\n"
    known = snapshot(READ, STOP, ask)
    first = report(known=known).results[0]
    assert first.wrong == ("besides, ext must agree, which `providers` of the test does not say",)
    named = CASES.replace("expect: allow\n  rule: shop/orders-read#0", "expect: allow\n  providers: [ext]")
    assert report(named, known).results[0].passed


def test_every_attribute_of_a_request_can_be_written() -> None:
    policy = parse(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n"
        '  rules: [{from: [{source: {ipBlocks: ["10.0.0.0/8"], remoteIpBlocks: ["1.1.1.1"], '
        'requestPrincipals: ["i/s"]}}], to: [{operation: {ports: ["80"], hosts: ["h"]}}], when: ['
        '{key: "request.auth.claims[g]", values: ["a"]}, {key: destination.ip, values: ["10.0.0.2"]}, '
        '{key: connection.sni, values: ["s"]}, {key: "experimental.envoy.filters.x[k]", values: ["v"]}]}]\n',
        "p",
    ).policies
    known = compile_set(policy, Mesh(trust_domains=("td",)), [Target(spiffe_id=ORDERS, namespace="shop")])
    case = (
        f"- target: {ORDERS}\n  expect: allow\n  request: {{source_ip: 10.1.1.1, remote_ip: 1.1.1.1, port: 80, "
        "host: h, claims: {iss: i, sub: s, g: [a, 1]}, destination_ip: 10.0.0.2, sni: s, "
        "metadata: {envoy.filters.x: {k: v}}}\n"
    )
    assert report(case, known).failed == ()
    assert report(case.replace("host: h", "host: other"), known).failed
    assert report(case.replace("{source_ip", "{http: false, source_ip"), known).failed


@pytest.mark.parametrize(
    ("change", "code", "line"),
    [
        (("expect: allow", "expect: maybe"), "P005", 6),
        (("method: GET", "methods: GET"), "P006", 5),
        (("  expect: allow\n", ""), "P006", 3),
        ((f"target: {ORDERS}", "target: orders"), "P131", 4),
        (("method: GET", "port: 99999"), "P115", 5),
        (("method: GET", "claims: x"), "P005", 5),
        (("method: GET", "metadata: {a: b}"), "P005", 5),
        (("tests:", "testz:"), "P006", 3),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(change: tuple[str, str], code: str, line: int) -> None:
    with pytest.raises(Refused) as refused:
        read_cases([("t.yaml", CASES.replace(*change, 1))])
    problem = refused.value.problems[0]
    assert (problem.code, problem.origin.line) == (code, line)


def test_cases_of_several_files_are_run_together() -> None:
    one = CASES.replace("tests:\n", "")
    assert len(read_cases([("a", one), ("b", CASES)])) == 6
    assert MESH.providers == {"ext"}
