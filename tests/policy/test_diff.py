"""A difference says exactly which verdicts change: of what is drawn nothing contradicts it, and what it shows is so."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from policy import reference
from policy.classes.compare import Kind
from policy.classes.rows import MAX_PLAIN
from policy.decision import Decision
from policy.diff import Change, Difference, difference
from policy.matching import holds
from policy.model import Action, Policy, Request
from policy.snapshot import Snapshot, compile_set
from tests.bench.policy_shapes import MESH as SHAPE_MESH
from tests.bench.policy_shapes import ours, policies, shape, targets
from tests.policy.strategies import MESH, POLICY_SETS, REQUESTS, TARGETS

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
HURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large]


def kinds(before: Decision, after: Decision) -> set[tuple[Kind, str]]:
    """What changes from one verdict to another."""
    if after.allowed and not before.allowed:
        return {(Kind.ALLOWED, "")}
    if before.allowed and not after.allowed:
        return {(Kind.DENIED, "")}
    more = {(Kind.ASKED, name) for name in set(after.providers) - set(before.providers)}
    return more | {(Kind.UNASKED, name) for name in set(before.providers) - set(after.providers)}


def within(change: Change, request: Request) -> bool:
    """Whether a request is in a change's class."""
    return all(
        holds(literal.clause, request)
        for literal in change.row.literals
        if literal.clause is not None and (request.http or not literal.clause.attribute.http_only)
    )


def contradicted(
    found: Difference, before: Snapshot, after: Snapshot, target: str, requests: Iterable[Request]
) -> None:
    for request in requests:
        was, will = before.decide(target, request), after.decide(target, request)
        for shadow in (False, True):
            if shadow:
                was, will = was.shadow or was, will.shadow or will
            for kind, provider in kinds(was, will):
                assert any(
                    change.kind is kind
                    and change.provider == provider
                    and target in change.targets
                    and (shadow or not change.shadow)
                    and within(change, request)
                    for change in found.changes
                ), (kind, provider, target, request)


def assert_flips(change: Change, before: tuple[Policy, ...], after: tuple[Policy, ...]) -> None:
    """The request that is shown is decided otherwise, each time it is asked: by the evaluator from the specification,
    which shares nothing with the index, and for every target that is named."""
    for target in (each for each in TARGETS if each.spiffe_id in change.targets):
        was, will = (reference.decide(policies, MESH, target, change.request) for policies in (before, after))
        if change.shadow:
            was, will = was.shadow or was, will.shadow or will
        assert (change.kind, change.provider) in kinds(was, will), (change.text(), target)
        assert (change.before.allowed, change.after.allowed) == (was.allowed, will.allowed)


@settings(max_examples=800 if LONG else 40, deadline=None, suppress_health_check=HURRIED)
@given(POLICY_SETS, POLICY_SETS, st.sampled_from([0, MAX_PLAIN]), st.data())
def test_agrees_with_every_request_that_is_drawn(
    before: tuple[Policy, ...], others: tuple[Policy, ...], plain: int, data: st.DataObject
) -> None:
    """Few rules are looked at as they are: with `plain` 0 they are asked of the index as many would be."""
    keep = data.draw(st.lists(st.sampled_from(before), unique_by=id)) if before else []
    one, other = compile_set(before, MESH, TARGETS), compile_set([*keep, *others[:2]], MESH, TARGETS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("policy.classes.rows.MAX_PLAIN", plain)
        found = difference(one, other)
    assume(found.complete)  # what is hard is drawn once in thousands
    requests = data.draw(st.lists(REQUESTS, min_size=4, max_size=8))
    for target in TARGETS:
        contradicted(found, one, other, target.spiffe_id, [*requests, *(c.request for c in found.changes)])
    for change in found.changes:
        assert change.certain, change.text()
        assert within(change, change.request)
        assert_flips(change, one.policies, other.policies)


@settings(max_examples=100 if LONG else 10, deadline=None, suppress_health_check=HURRIED)
@given(POLICY_SETS, st.randoms())
def test_the_same_in_another_order_is_equivalent(policies: tuple[Policy, ...], random: object) -> None:
    shuffled = list(policies)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = difference(compile_set(policies, MESH, TARGETS), compile_set(shuffled, MESH, TARGETS))
    assert found.empty, found.text()


@pytest.mark.parametrize("number", range(0, 200 if LONG else 40, 4))
def test_of_many_rules_the_index_leaves_out_none_that_matters(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same classes are found where every rule that allows is looked at."""
    made = shape("gateway", 400, seed=number)
    rules = policies(made)
    denying = next(n for n, policy in enumerate(rules) if policy.action is Action.DENY)
    changed = replace(rules[denying], rules=(*(rules[denying].rules or ())[1:], ours(made.rules[number])))
    before = compile_set(rules, SHAPE_MESH, targets(made))
    after = compile_set([*rules[:denying], changed, *rules[denying + 1 :]], SHAPE_MESH, targets(made), previous=before)

    def classes() -> set[tuple[object, ...]]:
        found = difference(before, after)
        assert found.complete
        return {(change.kind, change.policy, change.rule, change.removed, change.http) for change in found.changes}

    by_index = classes()
    monkeypatch.setattr("policy.classes.narrowing.Narrowing.rows", lambda self, block, box: iter(block.rows))
    monkeypatch.setattr("policy.classes.search.TRIES", 0)
    assert classes() == by_index
