"""The index and the evaluator that was written from the specification decide alike, for anything that is generated."""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy import reference
from policy.model import Policy, Request
from policy.snapshot import compile_set
from tests.bench.policy_shapes import MESH as SHAPE_MESH
from tests.bench.policy_shapes import policies as shaped
from tests.bench.policy_shapes import requests as shape_requests
from tests.bench.policy_shapes import shape
from tests.bench.policy_shapes import targets as shape_targets
from tests.policy.strategies import MESH, POLICY_SETS, REQUESTS, TARGETS

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))


@settings(
    max_examples=2000 if LONG else 80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(POLICY_SETS, st.lists(REQUESTS, min_size=4, max_size=8))
def test_index_and_reference_agree(policies: tuple[Policy, ...], requests: list[Request]) -> None:
    snapshot = compile_set(policies, MESH, TARGETS)
    for target in TARGETS:
        for request in requests:
            got = snapshot.decide(target.spiffe_id, request)
            assert got == reference.decide(policies, MESH, target, request)


@settings(max_examples=300 if LONG else 40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(POLICY_SETS, REQUESTS, st.randoms())
def test_order_never_matters(policies: tuple[Policy, ...], request: Request, random: object) -> None:
    shuffled = list(policies)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = compile_set(policies, MESH, TARGETS), compile_set(shuffled, MESH, TARGETS)
    for target in TARGETS:
        a, b = one.decide(target.spiffe_id, request), other.decide(target.spiffe_id, request)
        assert (a.allowed, a.reason, a.providers) == (b.allowed, b.reason, b.providers)


@settings(max_examples=400 if LONG else 40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(POLICY_SETS, min_size=3, max_size=5), st.lists(POLICY_SETS, min_size=2, max_size=3), st.data())
def test_what_is_changed_step_by_step_decides_as_what_is_made_anew(
    begin: list[tuple[Policy, ...]], others: list[tuple[Policy, ...]], data: st.DataObject
) -> None:
    policies = [policy for some in begin for policy in some]
    requests = data.draw(st.lists(REQUESTS, min_size=4, max_size=6))
    snapshot = compile_set(policies, MESH, TARGETS)
    for new in [policy for some in others for policy in some]:
        at = data.draw(st.integers(0, len(policies)))
        policies[at : at + data.draw(st.sampled_from([0, 1, 1, 1, 2]))] = [new]
        snapshot = compile_set(policies, MESH, TARGETS, previous=snapshot)
        anew = compile_set(policies, MESH, TARGETS)
        for target in TARGETS:
            for request in requests:
                assert snapshot.decide(target.spiffe_id, request) == anew.decide(target.spiffe_id, request)


def test_a_policy_that_grows_and_shrinks_in_its_room_moves_no_other() -> None:
    """A hundred policies for one target: all but the one that changes keep their bits, and stay what they were."""
    made = shape("gateway", 1000)
    policies, workloads, asked = shaped(made), shape_targets(made), shape_requests(made)[:200]
    snapshot = compile_set(policies, SHAPE_MESH, workloads)
    for count in (101, 112, 99, 1, 60, 0, 3, 100, 300):
        rules = policies[-1].rules or ()
        changed = replace(policies[-1], rules=(rules * 4)[:count])
        policies = [*policies[:-1], changed]
        snapshot = compile_set(policies, SHAPE_MESH, workloads, previous=snapshot)
        anew = compile_set(policies, SHAPE_MESH, workloads)
        assert [snapshot.decide(*each) for each in asked] == [anew.decide(*each) for each in asked]
