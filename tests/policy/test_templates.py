"""Path templates: each operator in each position, as our engine reads them and as Envoy's own matcher does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.envoy_rules import rules_filters
from policy.model import Attribute, Clause, Match, MatchKind, Mesh, Policy, Request, Rule, Target
from policy.reference import clause_holds
from policy.templates import Template
from tests.support.policy_envoy import Call, PolicyEnvoy

CASES: list[tuple[str, list[str], list[str]]] = [
    ("/{*}", ["/a", "/a.b", "/%20", "/a=b", "/a*", "/*"], ["/", "", "/a/", "/a/b", "a", "/a^b", "//"]),
    ("/a/{*}", ["/a/b", "/a/~", "/a/x=1"], ["/a", "/a/", "/a/b/", "/a/b/c", "/b/c", "/a//"]),
    ("/{*}/b", ["/a/b", "/b/b"], ["/b", "//b", "/a/a/b", "/a/b/", "/a/c"]),
    ("/a/{*}/c", ["/a/b/c"], ["/a/c", "/a//c", "/a/b/b/c"]),
    ("/{*}/{*}", ["/a/b"], ["/a", "/a/", "/a/b/c"]),
    ("/a/{*}/", ["/a/b/"], ["/a/b", "/a//", "/a/b/c"]),
    ("/{**}", ["/", "/a", "/a/", "/a/b", "//", "/a=b*"], ["", "a", "/a|b", "/a b"]),
    ("/a/{**}", ["/a/", "/a/b", "/a/b/c"], ["/a", "/ab", "/b/a/"]),
    ("/{**}/", ["//", "/a/", "/a/b/"], ["/", "/a"]),
    ("/{**}/z", ["//z", "/a/z", "/a/b/z", "/z/z"], ["/z", "/a/z/", "/a/zz"]),
    ("/a/{**}/y/z", ["/a/b/y/z", "/a//y/z", "/a/b/c/y/z"], ["/a/y/z", "/a/z", "/a/b/y/x"]),
    ("/{*}/{**}", ["/a/", "/a/b", "/a/b/c"], ["/a", "/", "//b"]),
    ("/{*}/b/{**}", ["/a/b/", "/a/b/c"], ["/a/b", "/a/c/d", "/b/"]),
    ("/a=b/{*}", ["/a=b/c"], ["/a/c"]),
]


def clause(text: str) -> Clause:
    return Clause(attribute=Attribute.PATH, matches=(Match(MatchKind.TEMPLATE, text),))


@pytest.mark.parametrize(("template", "fits", "others"), CASES)
def test_each_operator_in_each_position(template: str, fits: list[str], others: list[str]) -> None:
    """By the engine and by the evaluator that was written from the specification."""
    for paths, fit in ((fits, True), (others, False)):
        for path in paths:
            assert Template(template).matches(path) is fit, (template, path)
            assert clause_holds(clause(template), Request(path=path)) is fit, (template, path)


PIECES = ["a", "b", "{*}", "{**}", "a=", ""]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
PATHS = st.lists(st.sampled_from(["a", "b", "a=", "a*", "", "^", "c"]), max_size=5).map(lambda p: "/" + "/".join(p))


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.lists(PATHS | st.sampled_from(["", "a"]), min_size=4, max_size=10))
def test_any_template_is_read_as_the_specification_says(text: str, paths: list[str]) -> None:
    try:
        template = Template(text)
    except ValueError:
        return
    for path in paths:
        assert template.matches(path) is clause_holds(clause(text), Request(path=path)), (text, path)


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyEnvoy]:
    found = PolicyEnvoy(tmp_path_factory.mktemp("templates"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.mark.xdist_group("policy-envoy")
@pytest.mark.real("envoy")
def test_envoys_own_templates_are_read_so_as_well(envoy: PolicyEnvoy) -> None:
    """`uri_template`, which is what Istio makes of them."""
    target, mesh = Target(spiffe_id="spiffe://td/t", namespace="a"), Mesh(trust_domains=("td",))
    filters, calls, wanted = {}, [], []
    paths = sorted({path for _, fits, others in CASES for path in (*fits, *others) if re.fullmatch("/[!-~]*", path)})
    for number, (template, _, _) in enumerate(CASES):
        rule = Rule(operations=((clause(template),),))
        made = rules_filters(target, [Policy(namespace="a", name="p", rules=(rule,))], mesh)[1]
        assert made is not None
        filters[f"c{number}"] = made
    envoy.load(filters)
    for (number, (template, _, _)), path in product(enumerate(CASES), paths):
        calls.append(Call(case=f"c{number}", path=path))
        wanted.append((template, path, Template(template).matches(path)))
    found = [(t, p, answer.allowed) for (t, p, _), answer in zip(wanted, envoy.ask(calls), strict=True)]
    assert [one for one in found if one not in wanted] == []
    assert len(wanted) > 500
