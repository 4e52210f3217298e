"""Every code of lint has an example in the page that yields it and a mended one that does not; what it says is so."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.findings import Finding
from policy.lint import CODES, lint
from policy.model import Attribute, Clause, Match, MatchKind, Mesh, Policy, Request, Rule, Target
from policy.parse import PolicySet, parse
from policy.snapshot import compile_set
from tests.policy.strategies import MESH, POLICY_SETS, REQUESTS, TARGETS

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
PAGE = Path(__file__).parents[2] / "docs/policy/lint.md"
SECTIONS = dict(re.findall(r"^## (L\d+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
OURS = Mesh(trust_domains=("example.org",), open_namespaces=frozenset({"legacy"}), providers=frozenset({"opa"}))
WORKLOADS = tuple(
    Target(spiffe_id=f"spiffe://example.org/ns/{name}/sa/orders", namespace=name, labels=(("app", "orders"),))
    for name in ("shop", "legacy")
)


def found(text: str) -> tuple[Finding, ...]:
    return lint(parse(text, "p.yaml"), OURS, WORKLOADS)


def test_the_page_has_every_code() -> None:
    assert set(SECTIONS) == set(CODES)
    rows = re.findall(r"^\| \[(L\d+)\]\(#l\d+\) \| (\w+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(code, severity.value, what) for code, (severity, what) in CODES.items()]


@pytest.mark.parametrize("code", CODES)
def test_examples(code: str) -> None:
    bad, mended = re.findall(r"```yaml\n(.*?)```", SECTIONS[code], re.DOTALL)
    findings = [finding for finding in found(bad) if finding.code == code]
    assert findings
    for finding in findings:
        assert finding.severity is CODES[code][0]
        assert finding.origin.line
        assert finding.hint
        assert finding.document()["code"] == code
    assert [finding for finding in found(mended) if finding.code in (code, "L001", "L002")] == []


def policy(text: str, action: str = "ALLOW") -> PolicySet:
    head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"
    return parse(f"{head}spec: {{action: {action}, rules: [{text}]}}", "p.yaml")


def codes(text: str, action: str = "ALLOW") -> set[str]:
    return {finding.code for finding in lint(policy(text, action), OURS, WORKLOADS)}


@pytest.mark.parametrize(
    ("path", "unreachable"),
    [
        ("/a", False),
        ("/a/*", False),
        ("/a.*", False),
        ("*.html", False),
        ("*", False),
        ("/a/{*}/b", False),
        ("/a/..", True),
        ("/a/../*", True),
        ("/a/..*", False),
        ("//a", True),
        ("*//", True),
        ("a/*", True),
        ("/a?b=*", True),
        ("/%61*", True),
        ("/%2*", False),
        ("/%2F", True),
        ("*%", False),
        ("/a/..;x", True),
        ("/a b", True),
        ("*\\", True),
    ],
)
def test_paths_that_no_request_has(path: str, unreachable: bool) -> None:
    assert ("L008" in codes(f"{{to: [{{operation: {{paths: ['{path}']}}}}]}}", "DENY")) is unreachable


@pytest.mark.parametrize(
    ("source", "wild"),
    [
        ('{principals: ["*"]}', False),
        ('{principals: ["example.org/*"]}', False),
        ('{principals: ["example.org*"]}', True),
        ('{trustDomains: ["example.*"]}', True),
        ('{trustDomains: ["example.org"]}', False),
        ('{notPrincipals: ["*/sa/x"], principals: ["*"]}', False),
    ],
)
def test_trust_domains(source: str, wild: bool) -> None:
    assert ("L007" in codes(f"{{from: [{{source: {source}}}]}}")) is wild


def test_a_rule_that_is_there_twice_is_needless_once() -> None:
    rule = '{to: [{operation: {paths: ["/a"]}}]}'
    findings = lint(policy(f"{rule}, {rule}"), OURS, WORKLOADS)
    assert [(finding.code, finding.rule) for finding in findings] == [("L004", 1)]


def test_only_what_is_asked_for() -> None:
    parsed = policy("{}, {}")
    assert lint(parsed, OURS, WORKLOADS, only=["shop/p"])
    assert lint(parsed, OURS, WORKLOADS, only=["shop/q"]) == ()


def test_who_was_cut_off_before_is_not_cut_off() -> None:
    text = re.findall(r"```yaml\n(.*?)```", SECTIONS["L012"], re.DOTALL)[0]
    parsed = parse(text, "p.yaml")
    before = compile_set(parsed.policies, OURS, WORKLOADS)
    assert "L012" not in {finding.code for finding in lint(parsed, OURS, WORKLOADS, before=before)}
    assert "L012" in {f.code for f in lint(parsed, OURS, WORKLOADS, before=compile_set((), OURS, WORKLOADS))}


def test_thousands_of_rules_on_one_target() -> None:
    def rule(number: int) -> Rule:
        exact = Match(MatchKind.EXACT, f"example.org/ns/a/sa/s{number}")
        return Rule(sources=((Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=(exact,)),),))

    policies = (Policy(namespace="shop", name="p", rules=tuple(map(rule, range(1000)))),)
    assert lint(PolicySet(policies=policies), OURS, WORKLOADS) == ()


@settings(
    max_examples=400 if LONG else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(POLICY_SETS, st.lists(REQUESTS, min_size=4, max_size=8))
def test_a_rule_that_is_called_needless_decides_nothing(drawn: tuple[Policy, ...], requests: list[Request]) -> None:
    policies = tuple(replace(policy, name=f"p{number}") for number, policy in enumerate(drawn))
    made = compile_set(policies, MESH, TARGETS)
    for finding in lint(PolicySet(policies=policies), MESH, TARGETS, snapshot=made):
        if finding.code in ("L001", "L003", "L004", "L005", "L006") and finding.rule is not None:
            other = compile_set([_without(policy, finding) for policy in policies], MESH, TARGETS)
            for target in TARGETS:
                for request in requests:
                    was, will = (s.decide(target.spiffe_id, request) for s in (made, other))
                    assert (was.allowed, was.providers) == (will.allowed, will.providers), (finding, request)


def _without(policy: Policy, finding: Finding) -> Policy:
    if policy.id != finding.key:
        return policy
    rules = tuple(rule for number, rule in enumerate(policy.rules or ()) if number != finding.rule)
    return replace(policy, rules=rules or None)


def test_everybody_is_cut_off_by_nothing_that_allows_everybody() -> None:
    parsed = parse(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: legacy}\n"
        "spec: {rules: [{}]}",
        "p.yaml",
    )
    assert lint(parsed, OURS, WORKLOADS) == ()
