"""Whatever is sent: a refusal with a place, in time and memory that its length explains."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.compile import MAX_ROWS
from policy.documents import MAX_BYTES, plain
from policy.globs import glob, service_account_test
from policy.model import Attribute, Clause, Match, MatchKind, Policy, Request, Rule, Target
from policy.parse import parse, parse_object
from policy.problems import MAX_PROBLEMS, Refused
from policy.snapshot import compile_set
from policy.templates import Template
from tests.policy.strategies import MESH
from tests.policy.test_differential import LONG
from tests.policy.test_validation import HEAD

SECONDS = 5.0
"""Of processor time, for what takes a fraction of one here."""


def cost(text: str | bytes) -> tuple[float, int]:
    """Processor seconds and peak bytes of one reading that must be refused."""
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(Refused):
        parse(text, "f")
    spent, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return spent, peak


BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(BOMB, id="bomb"),
        pytest.param("[" * 200_000, id="deep list"),
        pytest.param('{"a":' * 100_000, id="deep mapping"),
        pytest.param("- " * 50_000, id="deep block"),
        pytest.param(b" " * (MAX_BYTES + 1), id="too long"),
        pytest.param(b"\x00" * 1000, id="NUL"),
        pytest.param(b"\xff\xfe\xfd", id="not UTF-8"),
        pytest.param(b"\xed\xa0\x80", id="surrogate"),
        pytest.param("? " * 10_000, id="complex keys"),
        pytest.param("a: " + "9" * 100_000, id="long number"),
        pytest.param("\n".join(f"k{n}: v" for n in range(10_000)), id="many unknown fields"),
        pytest.param("---\n1\n" * 5_000, id="many documents"),
    ],
)
def test_costs_no_more_than_its_length(text: str | bytes) -> None:
    seconds, peak = cost(text)
    assert seconds < SECONDS
    assert peak < 10_000_000 + 100 * len(text)


def test_a_hundred_megabytes_are_not_looked_at() -> None:
    text = b"x" * (100 << 20)
    seconds, peak = cost(text)
    assert seconds < 0.5
    assert peak < 1 << 20


def test_values_are_counted_before_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.documents.MAX_VALUES", 1000)
    start, end = f"{HEAD}spec: {{rules: [{{to: [{{operation: {{paths: [", "]}}]}]}"
    assert parse(f"{start}{'/a, ' * 900}{end}", "f").policies
    with pytest.raises(Refused, match="more than 1,000 values"):
        parse(f"{start}{'/a, ' * 1000}{end}", "f")


def test_problems_are_bounded() -> None:
    with pytest.raises(Refused) as caught:
        parse("---\n1\n" * 1000, "f")
    assert len(caught.value.problems) == MAX_PROBLEMS


@pytest.mark.parametrize(
    "test",
    [
        pytest.param(glob("*a" * 1000 + "b"), id="glob"),
        pytest.param(service_account_test("a/a"), id="account"),
        pytest.param(Template("/" + "{*}/" * 200 + "{**}/b").matches, id="template"),
        pytest.param(Template("/{**}" + "/a" * 500).matches, id="template tail"),
    ],
)
@pytest.mark.parametrize(
    "text", ["a" * 100_000, "/a" * 50_000, "/ns/a/sa/a" * 10_000 + "b", "x/ns/a/" + "sa/a" * 20_000]
)
def test_matching_is_linear(test: object, text: str) -> None:
    begin = time.process_time()
    test(text)  # type: ignore[operator]
    assert time.process_time() - begin < 1.0


def test_very_many_rules_on_one_target() -> None:
    count = 100_000 if LONG else 20_000
    rules = tuple(
        Rule(operations=((Clause(attribute=Attribute.PATH, matches=(Match(MatchKind.PREFIX, f"/{n}/"),)),),))
        for n in range(count)
    )
    policies = [Policy(namespace="a", name=f"p{n}", rules=rules[n : n + 512]) for n in range(0, count, 512)]
    tracemalloc.start()
    begin = time.process_time()
    snapshot = compile_set(policies, MESH, [Target(spiffe_id="spiffe://td/t", namespace="a")])
    spent, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < count / 2000
    assert peak < count * 5000
    for number in (0, MAX_ROWS - 1, MAX_ROWS, count - 1):
        assert snapshot.decide("spiffe://td/t", Request(path=f"/{number}/x")).allowed
    assert not snapshot.decide("spiffe://td/t", Request(path=f"/{count}/x")).allowed


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
WORDS = [
    "from",
    "to",
    "when",
    "source",
    "operation",
    "principals",
    "paths",
    "key",
    "values",
    "rules",
    "action",
    "burgee",
]
SHAPED = st.recursive(
    st.sampled_from(["ALLOW", "DENY", "*", "/a/{*}", "1.2.3.4", "source.ip", ""]) | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(ANYTHING | SHAPED)
def test_any_object_is_taken_or_refused(spec: object) -> None:
    whole = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "n"},
        "spec": spec,
    }
    results = []
    for read in (lambda: parse_object(whole, "f"), lambda: parse(json.dumps(whole), "f")):
        try:
            results.append([p.rules for p in read().policies])
        except Refused:
            results.append([])
    if "\\" not in json.dumps(spec):
        assert results[0] == results[1]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_taken_or_refused(text: str | bytes) -> None:
    with suppress(Refused):
        parse(text, "f")


def test_plain_scalars() -> None:
    assert [
        plain(t) for t in ("1", "0x1f", "1.5", "1e3", "-2", "null", "~", "", "true", "off", "1.2.3", "08", "a")
    ] == [*(1, 31, 1.5, 1000.0, -2, None, None, None, True, False, "1.2.3", 8, "a")]
    assert HEAD


@pytest.mark.parametrize(
    ("paths", "pointer"),
    [(["/", "/" + "x" * (1 << 16)], "/spec/rules/0/to/0/operation/paths/1"), ([[[]] * 2], "/spec/rules/0")],
)
def test_an_object_is_no_larger_than_a_text_may_be(paths: list[object], pointer: str) -> None:
    for _ in range(30 if pointer.endswith("/0") else 0):
        paths = [paths]
    whole = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {"rules": [{"to": [{"operation": {"paths": paths}}]}]},
    }
    with pytest.raises(Refused) as caught:
        parse_object(whole, "f")
    (problem,) = caught.value.problems
    assert (problem.code, bool(problem.hint)) == ("P002", True)
    assert problem.pointer.startswith(pointer)
