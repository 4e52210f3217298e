"""Invariants: how they are read, and that their verdict agrees with every request that is drawn."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from policy.classes.literals import of_usual_form
from policy.classes.rows import MAX_PLAIN
from policy.invariant_texts import CODES, Invariant, Whom
from policy.invariants import BY_PARTS, check, read
from policy.matching import holds
from policy.model import Clause, Mesh, Policy, Request, Rule, Target
from policy.parse import parse
from policy.problems import Refused
from policy.snapshot import Snapshot, compile_set
from policy.trust_domains import expanded
from tests.policy.strategies import MESH, OPERATIONS, POLICY_SETS, REQUESTS, SOURCES, TARGETS, groups

PAGE = Path(__file__).parents[2] / "docs/policy/analysis.md"
LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
HEAD = "apiVersion: burgee.io/v1\nkind: Invariant\nmetadata: {name: i, namespace: shop}\n"
POLICY = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: payments}\n"
DB = Target(spiffe_id="spiffe://td/ns/payments/sa/db", namespace="payments", labels=(("app", "db"),))
WEB = "td/ns/shop/sa/frontend"


def said(text: str) -> Invariant:
    (found,) = read(f"{HEAD}spec: {text}\n")
    return found


def snapshot(*specs: str, mesh: Mesh = MESH) -> Snapshot:
    text = "\n---\n".join(f"{POLICY.replace('name: p', f'name: p{n}')}spec: {spec}" for n, spec in enumerate(specs))
    return compile_set(parse(text, "p.yaml").policies if specs else (), mesh, [DB])


NEVER = '{never: "shop/frontend -> payments/db"}'


def test_never_names_the_rule_to_blame_and_a_request() -> None:
    policies = snapshot('{rules: [{from: [{source: {namespaces: ["sh*"]}}], to: [{operation: {methods: ["GET"]}}]}]}')
    (violation,) = check([said(NEVER)], policies)
    assert (violation.policy, violation.rule, violation.certain) == ("payments/p0", 0, True)
    assert violation.origin.line == 4
    request = violation.request
    assert request is not None
    assert request.method == "GET"
    assert policies.decide(DB.spiffe_id, request).allowed
    assert "by ALLOW payments/p0#0" in str(violation)
    assert violation.document()["targets"] == [DB.spiffe_id]


@pytest.mark.parametrize(
    "specs",
    [
        (),
        ('{rules: [{from: [{source: {namespaces: ["other"]}}]}]}',),
        ("{rules: [{}]}", '{action: DENY, rules: [{from: [{source: {serviceAccounts: ["shop/frontend"]}}]}]}'),
        ('{rules: [{from: [{source: {notServiceAccounts: ["shop/frontend"]}}]}]}',),
        ("{action: CUSTOM, provider: {name: unknown}, rules: [{}]}", "{rules: [{}]}"),
    ],
)
def test_never_holds(specs: tuple[str, ...]) -> None:
    assert check([said(NEVER)], snapshot(*specs)) == ()


def test_a_connection_has_the_rule_to_blame_as_it_was_written() -> None:
    rules = '{rules: [{to: [{operation: {methods: ["GET"]}}], when: [{key: source.ip, values: ["192.0.2.1"]}]}, {}]}'
    text = '{never: {from: {serviceAccounts: ["shop/frontend"]}, when: {protocol: connection}}}'
    (violation,) = check([said(text)], snapshot(rules))
    assert (violation.policy, violation.rule) == ("payments/p0", 1)


def test_a_deny_that_leaves_something_is_not_enough() -> None:
    deny = (
        '{action: DENY, rules: [{from: [{source: {namespaces: ["shop"]}}], to: [{operation: {notPaths: ["/x/*"]}}]}]}'
    )
    (violation,) = check([said(NEVER)], snapshot("{rules: [{}]}", deny))
    assert violation.request is not None
    assert (violation.request.path or "").startswith("/x/")


def test_an_open_namespace_breaks_it_without_any_rule() -> None:
    mesh = Mesh(trust_domains=("td",), open_namespaces=frozenset({"payments"}))
    (violation,) = check([said(NEVER)], snapshot(mesh=mesh))
    assert violation.policy is None
    assert "NAMESPACE_IS_OPEN" in violation.message


def test_a_condition_that_may_hold_counts_as_broken() -> None:
    condition = "{rules: [{burgee: {condition: \"request.headers['x'] == 'y'\"}}]}"
    (violation,) = check([said(NEVER)], snapshot(condition))
    assert not violation.certain
    assert "may be allowed" in violation.message


ALWAYS = '{always: "shop/frontend -> payments/db: POST /pay/*"}'


def test_always() -> None:
    allow = '{rules: [{from: [{source: {namespaces: ["shop"]}}], to: [{operation: {paths: ["/pay*"]}}]}]}'
    assert check([said(ALWAYS)], snapshot(allow)) == ()
    (violation,) = check([said(ALWAYS)], snapshot())
    assert "NOTHING_ALLOWS" in violation.message
    deny = '{action: DENY, rules: [{to: [{operation: {paths: ["*/refund"]}}]}]}'
    (violation,) = check([said(ALWAYS)], snapshot(allow, deny))
    assert violation.request is not None
    assert violation.policy == "payments/p1"
    assert (violation.request.path or "").endswith("/refund")


def test_only_what_changed_is_looked_at_again() -> None:
    policies = parse(f"{POLICY}spec: {{rules: [{{}}]}}", "p.yaml").policies
    before = compile_set(policies, MESH, [DB])
    same = compile_set(policies, MESH, [DB], previous=before)
    assert check([said(NEVER)], same, previous=before) == ()
    assert check([said(NEVER)], same, previous=compile_set((), MESH, [DB]))
    assert check([said(NEVER)], same, previous=compile_set(policies, MESH, []))


def test_what_is_too_much_work_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.classes.frames.MAX_STEPS", 1)
    (violation,) = check([said(NEVER)], snapshot("{rules: [{}]}"))
    assert not violation.certain
    assert "not decided" in violation.message


def test_long_form() -> None:
    text = """{never: {from: {notNamespaces: [shop], notPrincipals: ["td/ns/ops/sa/root"]},
      to: [{spiffeIds: ["spiffe://td/ns/payments/*"]}, {namespaces: ["pay*"], labels: {app: db}}],
      when: {methods: [POST], ports: ["80"], protocol: http}}}"""
    found = said(text)
    assert [clause.origin for clause in found.rule.sources[0]] == ["notPrincipals", "notNamespaces"]
    assert [clause.origin for clause in found.rule.operations[0]] == ["ports", "methods"]
    assert found.protocols == (True,)
    assert len(found.to) == 2
    assert read({"apiVersion": "burgee.io/v1", "kind": "Invariant", "metadata": {"name": "i"}, "spec": {"never": {}}})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"{HEAD}spec: {{}}", "I001"),
        (HEAD, "I001"),
        (f"{HEAD}spec: {{never: 'a -> b', always: 'a -> b'}}", "I001"),
        (f"{HEAD}spec: {{never: 'a b'}}", "I002"),
        (f"{HEAD}spec: {{never: 'A -> b'}}", "I002"),
        (f"{HEAD}spec: {{never: 'a -> b: get'}}", "I002"),
        (f"{HEAD}spec: {{never: {{when: {{protocol: udp}}}}}}", "I003"),
        (f"{HEAD}spec: {{never: {{whom: x}}}}", "P006"),
        (f"{HEAD}spec: {{never: {{to: {{spiffeIds: [x]}}}}}}", "P131"),
        (f"{HEAD}spec: {{never: {{from: {{ipBlocks: [x]}}}}}}", "P114"),
        (f"{HEAD}spec: {{never: 'a -> b'}}\n---\n{HEAD}spec: {{never: 'a -> b'}}", "P009"),
        (HEAD.replace("Invariant", "Policy"), "P007"),
        (HEAD.replace("name: i", "name: I"), "P008"),
        (
            "\n---\n".join(f"{HEAD.replace('name: i', f'name: i{n}')}spec: {{never: 'a -> b'}}" for n in range(1001)),
            "I004",
        ),
        ("just text", "P005"),
    ],
)
def test_refused(text: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        read(text)
    assert code in [problem.code for problem in caught.value.problems]
    assert caught.value.problems[0].origin.line or code == "I004"


def test_the_page_has_every_code_and_its_examples_are_read() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^\| (I\d+) \| (.*) \|$", page, re.MULTILINE) == list(CODES.items())
    texts = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert [len(read(text)) for text in texts] == [2, 1]


def test_every_code_is_refused_somewhere() -> None:
    mark = next(mark for mark in test_refused.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert set(CODES) <= {code for _, code in mark.args[1]}


RULES = st.builds(
    Rule,
    sources=st.lists(groups(SOURCES), max_size=2).map(tuple),
    operations=st.lists(groups(OPERATIONS), max_size=2).map(tuple),
)
INVARIANTS = st.builds(
    Invariant,
    name=st.just("i"),
    never=st.booleans(),
    rule=RULES,
    to=st.sampled_from([(Whom(),), (Whom(namespaces=("a",)),), (Whom(labels=(("app", "y"),)),)]),
    protocols=st.sampled_from([(True, False), (True,)]),
)


def broken(invariant: Invariant, policies: Snapshot, requests: list[Request]) -> Iterator[tuple[str, Request]]:
    """What of some requests breaks an invariant, decided one by one."""
    as_policy = expanded(Policy(namespace="a", name="i", rules=(invariant.rule,)), MESH)
    for target in TARGETS:
        for request in requests:
            meant = any(
                target.namespace in (whom.namespaces or (target.namespace,)) and set(whom.labels) <= set(target.labels)
                for whom in invariant.to
            )
            if (
                meant
                and request.http in invariant.protocols
                and concerns((as_policy.rules or ())[0], request)
                and policies.decide(target.spiffe_id, request).allowed is invariant.never
            ):
                yield target.spiffe_id, request


def concerns(rule: Rule, request: Request) -> bool:
    http = any(c.attribute.http_only for some in (rule.sources, rule.operations) for group in some for c in group)
    return (request.http or not http) and all(
        not some or any(all(asked(clause, request) for clause in group) for group in some)
        for some in (rule.sources, rule.operations)
    )


def asked(clause: Clause, request: Request) -> bool:
    """Who is named by namespace or account has an ID of the usual form."""
    usual = clause.negated or clause.attribute not in BY_PARTS or of_usual_form(request.principal or "")
    return usual and holds(clause, request)


@settings(
    max_examples=600 if LONG else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(POLICY_SETS, INVARIANTS, st.lists(REQUESTS, min_size=4, max_size=10), st.sampled_from([0, MAX_PLAIN]))
def test_agrees_with_every_request_that_is_drawn(
    policies: tuple[Policy, ...], invariant: Invariant, requests: list[Request], plain: int
) -> None:
    """Few rules are looked at as they are: with `plain` 0 they are asked of the index as many would be."""
    made = compile_set(policies, MESH, TARGETS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("policy.classes.rows.MAX_PLAIN", plain)
        violations = check([invariant], made)
    assume(not any("not decided" in violation.message for violation in violations))
    assert all(violation.certain for violation in violations), list(map(str, violations))
    for violation in violations:
        assert violation.request is not None
        for target in violation.targets:
            assert made.decide(target, violation.request).allowed is invariant.never
            assert (target, violation.request) in list(broken(invariant, made, [violation.request]))
    said_of = {target for violation in violations for target in violation.targets}
    assert {target for target, _ in broken(invariant, made, requests)} <= said_of
