"""A table finds, for any value, the rows whose match holds when it is tried by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import cel
from policy.attributes import SEPARATOR
from policy.decision import Reason
from policy.matching import test_of as match_test
from policy.model import Action, Attribute, Clause, Match, MatchKind, Policy, Request, Rule
from policy.pieces import Matches
from policy.snapshot import compile_set
from policy.tables import Table
from tests.policy.strategies import ADDRESSES, ISSUERS, MATCHES, MESH, PATHS, PRINCIPALS, TARGETS, WORDS

VALUES = {
    Attribute.SOURCE_PRINCIPAL: PRINCIPALS,
    Attribute.SOURCE_NAMESPACE: PRINCIPALS,
    Attribute.SOURCE_SERVICE_ACCOUNT: PRINCIPALS,
    Attribute.SOURCE_TRUST_DOMAIN: PRINCIPALS,
    Attribute.SOURCE_IP: ADDRESSES,
    Attribute.PATH: PATHS,
    Attribute.REQUEST_PRINCIPAL: st.builds(f"{{}}{SEPARATOR}{{}}".format, ISSUERS, WORDS),
    Attribute.CLAIM: WORDS,
}


def table_of(matches: list[Match]) -> Table:
    """Each match in a row of its own."""
    found = Matches()
    for number, match in enumerate(matches):
        found.add(match, 1 << number)
    return Table(found)


@pytest.mark.parametrize("attribute", VALUES)
def test_finds_what_each_match_finds_alone(attribute: Attribute) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(MATCHES[attribute], max_size=12), st.lists(VALUES[attribute], min_size=1, max_size=6))
    def check(matches: list[Match], values: list[str]) -> None:
        table = table_of(matches)
        for value in values:
            alone = sum(1 << n for n, match in enumerate(matches) if match_test(attribute, match)(value))
            assert table.of(value) == alone

    check()


WORD = st.text(alphabet="ab", max_size=6)


@pytest.mark.parametrize("kind", [MatchKind.PREFIX, MatchKind.SUFFIX, MatchKind.EXACT])
def test_prefixes_of_prefixes(kind: MatchKind) -> None:
    @settings(max_examples=120, deadline=None)
    @given(st.lists(WORD.filter(bool), max_size=12), WORD)
    def check(texts: list[str], value: str) -> None:
        matches = [Match(kind, text) for text in texts]
        found = table_of(matches).of(value)
        assert found == sum(1 << n for n, m in enumerate(matches) if match_test(Attribute.PATH, m)(value))

    check()


def test_a_shorter_prefix_is_found_past_a_longer_neighbour() -> None:
    table = table_of([Match(MatchKind.PREFIX, text) for text in ("/a", "/a/b", "/a/b/c", "/b")])
    assert [table.of(path) for path in ("/a/c", "/a/b/d", "/a/b/c/d", "/", "/ax")] == [0b1, 0b11, 0b111, 0, 0b1]


def test_a_deny_rule_with_a_condition_is_looked_at_before_an_allow_rule() -> None:
    condition = "request.headers['x'] == 'y'"
    assert cel.compiled(condition)
    deny = Policy(namespace="a", name="deny", action=Action.DENY, rules=(Rule(condition=condition),))
    path = Clause(attribute=Attribute.PATH, matches=(Match(MatchKind.EXACT, "/a"),))
    allow = Policy(namespace="a", name="allow", rules=(Rule(operations=((path,),)),))
    snapshot = compile_set((deny, allow), MESH, TARGETS[:1])
    asked = [Request(path="/a", headers={"x": value}) for value in ("y", "z")]
    reasons = [snapshot.decide(TARGETS[0].spiffe_id, request).reason for request in asked]
    assert reasons == [Reason.DENIED_BY_RULE, Reason.ALLOWED_BY_RULE]
    assert snapshot.decide(TARGETS[0].spiffe_id, Request(path="/a")).reason is Reason.DENIED_BY_RULE


def test_two_clauses_about_one_attribute_must_both_hold() -> None:
    one = Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=(Match(MatchKind.PREFIX, "td/ns/a/"),))
    two = Clause(attribute=Attribute.SOURCE_PRINCIPAL, matches=(Match(MatchKind.SUFFIX, "/sa/web"),))
    allow = Policy(namespace="a", name="allow", rules=(Rule(sources=((one,),), conditions=(two,)),))
    snapshot = compile_set((allow,), MESH, TARGETS[:1])
    callers = ("td/ns/a/sa/web", "td/ns/a/sa/api", "td/ns/b/sa/web")
    allowed = [snapshot.decide(TARGETS[0].spiffe_id, Request(principal=caller)).allowed for caller in callers]
    assert allowed == [True, False, False]
