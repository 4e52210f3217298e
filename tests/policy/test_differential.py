"""The index and the evaluator that was written from the specification decide alike, for anything that is generated."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy import reference
from policy.model import Policy, Request
from policy.snapshot import compile_set
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
