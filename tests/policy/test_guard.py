"""Who refuses a path unread: the function that tells it beforehand, ext_authz, and the tree that is pushed, alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy import envoy
from policy.envoy import Proxy, http_filter
from policy.ext_authz import Bound, Said, decide
from policy.guard import refused_unread
from policy.model import Action, Attribute, Mesh, Policy, Request, Rule, Target
from policy.snapshot import compile_set
from tests.policy.test_envoy import clause, deny, paths, policy
from tests.policy.test_ext_authz import NOW, check

MESH = Mesh(trust_domains=("td",))
TARGET = Target(spiffe_id="spiffe://td/t", namespace="a")
ANYTHING = policy(Rule(), name="all")
ODD = Request(path="/a//b")


@pytest.mark.parametrize(
    ("made", "refused"),
    [
        (deny(paths("/x")), True),
        (policy(Rule(conditions=(clause(Attribute.HEADER, "/x*", key=(":path",)),))), True),
        (policy(Rule(condition='request.path == "/x"')), True),
        (deny(paths("/x"), shadow=True), False),
        (policy(paths("/x"), action=Action.AUDIT), False),
        (policy(Rule(conditions=(clause(Attribute.HEADER, "/x*", key=("x-path",)),))), False),
        (policy(Rule(operations=((clause(Attribute.METHOD, "GET"),),))), False),
    ],
)
def test_where_rules_look_at_paths(made: Policy, refused: bool) -> None:
    known = compile_set([ANYTHING, made], MESH, [TARGET])
    assert refused_unread(known, TARGET.spiffe_id, ODD) is refused
    assert not refused_unread(known, TARGET.spiffe_id, Request(path="/a/b"))
    assert not refused_unread(known, TARGET.spiffe_id, Request(http=False))
    asked = decide(check(path="/a//b"), Bound(revision=1, snapshot=known, target=TARGET), Said(), now=NOW)
    assert (asked.reason == "PATH_NOT_NORMAL") is refused
    tree, _ = http_filter(TARGET, [ANYTHING, made], MESH, Proxy(ext_authz=True))
    assert (envoy.NOT_NORMAL in str(tree.matcher)) is refused


def test_of_workloads_that_share_an_id_all_must_be_declared_to_normalize() -> None:
    declared = replace(TARGET, normalized=True, labels=(("v", "2"),))
    for targets, refused in (([TARGET], True), ([declared], False), ([declared, TARGET], True), ([], False)):
        assert refused_unread(compile_set([deny(paths("/x"))], MESH, targets), TARGET.spiffe_id, ODD) is refused
