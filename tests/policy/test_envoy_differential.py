"""One policy, four judges: the index, the evaluator from the specification, a real Envoy with the filter that we emit,
and Cedar where it can say the same. They agree on whatever is generated.

Generation and Envoy are apart: cases are drawn first, then judged in batches over loopback.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cedarpy
import pytest
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from hypothesis import HealthCheck, Phase, given, settings

from policy import cedar, envoy_tree, reference
from policy.cedar import cedar_context, cedar_text
from policy.envoy import http_filter
from policy.envoy_rules import rules_filters
from policy.envoy_text import Inexpressible
from policy.snapshot import Snapshot, compile_set
from tests.policy.wire import Case, cases, listening_on, refused_unread, request_of, telling
from tests.support.policy_authz import Authz
from tests.support.policy_envoy import Answer, Call, PolicyEnvoy

LONG = bool(os.environ.get("BURGEE_TEST_LONG"))
CASES, CALLS = (900, 25) if LONG else (100, 25)
MOST_OF_ISTIO = 200
BATCH = 20
LIMITS: list[dict[str, int]] = [
    {},
    {"LIST": 1},
    {"LIST": 1, "GROWTH": 1, "ROOM": 0},
    {"LIST": 1, "DEPTH": 2},
]
"""Few alternatives are compared one by one, and what would grow too much is not looked up: all of it is tried small."""

pytestmark = [pytest.mark.xdist_group("policy-envoy"), pytest.mark.real("envoy")]


class Enough(Exception):
    """So many were drawn as are wanted. Of how many hangs on what hypothesis learned of the modules that are loaded."""


def drawn(count: int) -> list[Case]:
    """Cases as hypothesis makes them, of which four in five decide some calls otherwise than others."""
    found: list[Case] = []
    checks = list(HealthCheck)

    @settings(
        max_examples=10 * count,
        deadline=None,
        report_multiple_bugs=False,
        derandomize=not LONG,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=checks,
    )
    @given(cases(CALLS))
    def collect(case: Case) -> None:
        if len(found) == count:
            raise Enough
        if telling(case) or len(found) % 5 == 0:
            found.append(case)

    with suppress(Enough):
        collect()
    return found


class Bench:
    """An Envoy, and the ext_authz server behind it that judges by the specification."""

    def __init__(self, directory: Path) -> None:
        socket = directory / "authz.sock"
        self.envoy = PolicyEnvoy(directory, ask=socket)
        self.expected: dict[str, bool] = {}
        self.authz = Authz(socket, lambda check: self.expected[check.attributes.request.http.headers["x-pair"]])

    def judge_all(self, batch: dict[str, Case]) -> dict[str, list[tuple[Call, bool, Answer, bool]]]:
        """For each call of each case: whether it must be allowed, what Envoy said, and whether it asked."""
        filters = {n: http_filter(c.target, c.policies, c.mesh, c.proxy)[0] for n, c in batch.items()}
        self.envoy.load(filters)
        calls, expected = [], []
        for name, case in batch.items():
            index = compile_set(case.policies, case.mesh, [case.target])
            for number, call in enumerate(case.calls):
                calls.append(replace(call, case=name, headers={**call.headers, "x-pair": f"{name}-{number}"}))
                expected.append(expected_of(case, call, index, self.envoy.port))
        self.expected.update(zip((c.headers["x-pair"] for c in calls), expected, strict=True))
        self.authz.checks.clear()
        answers = self.envoy.ask(calls)
        asked = {check.attributes.request.http.headers["x-pair"] for check in self.authz.checks}
        found: dict[str, list[tuple[Call, bool, Answer, bool]]] = {name: [] for name in batch}
        for call, must, answer in zip(calls, expected, answers, strict=True):
            found[call.case].append((call, must, answer, call.headers["x-pair"] in asked))
        return found


def expected_of(case: Case, call: Call, index: Snapshot, port: int) -> bool:
    """What the specification says, once it is agreed with the index."""
    request = request_of(call, port)
    decision = reference.decide(case.policies, case.mesh, case.target, request)
    assert index.decide(case.target.spiffe_id, request) == decision
    return decision.allowed and not refused_unread(case, call)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    found = Bench(tmp_path_factory.mktemp("policy"))
    try:
        found.envoy.start()
        yield found
    finally:
        found.envoy.stop()
        found.authz.stop()


@pytest.fixture(scope="module")
def made(bench: Bench) -> list[Case]:
    return [listening_on(case, bench.envoy.port) for case in drawn(CASES)]


def cedar_verdicts(case: Case, calls: Sequence[Call], port: int) -> list[bool] | None:
    """What Cedar says; None where it cannot say the policies."""
    try:
        text = cedar_text(case.target, case.policies, case.mesh)
    except cedar.Inexpressible:
        return None
    query = {"principal": 'Caller::"x"', "action": 'Action::"call"', "resource": 'Workload::"t"'}
    asked = [{**query, "context": cedar_context(case.policies, request_of(call, port))} for call in calls]
    answers = cedarpy.is_authorized_batch(asked, cedarpy.PolicySet.from_str(text) if text.strip() else "", [])
    assert not [a.diagnostics.errors for a in answers if a.diagnostics.errors]
    return [answer.allowed for answer in answers]


@pytest.mark.timeout(1800 if LONG else 120)
def test_index_specification_envoy_and_cedar_agree(
    bench: Bench,
    made: list[Case],
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = time.monotonic()
    pairs = asked_pairs = cedar_pairs = allowed = 0
    disagree: list[object] = []
    for at in range(0, len(made), BATCH):
        batch = {str(n): case for n, case in enumerate(made[at : at + BATCH], at)}
        with monkeypatch.context() as patched:
            for limit, value in LIMITS[at // BATCH % len(LIMITS)].items():
                patched.setattr(envoy_tree, limit, value)
            judged = bench.judge_all(batch)
        for name, found in judged.items():
            case = batch[name]
            unsaid = http_filter(case.target, case.policies, case.mesh, case.proxy)[1]
            cedar = cedar_verdicts(case, [f[0] for f in found], bench.envoy.port)
            for number, (call, must, answer, asked) in enumerate(found):
                pairs, asked_pairs, allowed = pairs + 1, asked_pairs + asked, allowed + must
                if answer.allowed != must or (asked and not unsaid):
                    disagree.append((case, call, must, answer, asked))
                if cedar is not None:
                    cedar_pairs += 1
                    if (cedar[number] and not refused_unread(case, call)) != must:
                        disagree.append((case, call, must, cedar[number], "cedar"))
    counted = (
        f"policies and requests: {pairs:,} pairs by index, specification and Envoy alike, {cedar_pairs:,} of them "
        f"({cedar_pairs / pairs:.0%}) by Cedar; {allowed / pairs:.0%} allowed, {asked_pairs / pairs:.1%} asked about; "
        f"{len(disagree)} disagree; in {time.monotonic() - started:.0f} s"
    )
    record_property("counted", counted)
    assert not disagree, "\n\n".join(map(repr, disagree[:3]))
    assert pairs >= (20_000 if LONG else 2_000)
    assert cedar_pairs / pairs >= 0.6
    assert 0.1 < allowed / pairs < 0.9
    assert asked_pairs


def istios(case: Case) -> list[RBAC]:
    """The filters of DENY and ALLOW as Istio writes them; none where they cannot say the policies."""
    policies = [replace(policy, name=f"p{number}") for number, policy in enumerate(case.policies)]
    try:
        return [found for found in rules_filters(case.target, policies, case.mesh) if found is not None]
    except Inexpressible:
        return []


@pytest.mark.timeout(1800 if LONG else 120)
def test_istios_own_encoding_decides_the_same(
    bench: Bench, made: list[Case], record_property: Callable[[str, object], None]
) -> None:
    """What we know of Istio's semantics is in one of the judges at least as Istio itself writes it for Envoy."""
    pairs = allowed = 0
    disagree: list[object] = []
    for at in range(0, min(len(made), MOST_OF_ISTIO), BATCH):
        batch = [(case, istios(case)) for case in made[at : at + BATCH]]
        bench.envoy.load({f"{n}-{k}": f for n, (_, filters) in enumerate(batch) for k, f in enumerate(filters)})
        asked = [
            (case, [replace(call, case=f"{n}-{k}") for k in range(len(filters))])
            for n, (case, filters) in enumerate(batch)
            for call in case.calls
            if filters and not (call.uris and len(call.uris) > 1)  # which Istio does not refuse
        ]
        answers = iter(bench.envoy.ask([call for _, calls in asked for call in calls]))
        for case, calls in asked:
            each = [next(answers).allowed for _ in calls]
            got = all(each)
            request = request_of(calls[0], bench.envoy.port)
            must = reference.decide(case.policies, case.mesh, case.target, request).allowed
            pairs, allowed = pairs + 1, allowed + must
            if got != must:
                disagree.append((case, calls[0], must, got))
    record_property("counted", f"policies and requests: {pairs:,} pairs by Istio's encoding; {len(disagree)} disagree")
    assert not disagree, "\n\n".join(map(repr, disagree[:3]))
    assert pairs >= 2_000
    assert 0.1 < allowed / pairs < 0.9
