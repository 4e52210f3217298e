"""The shape of what is emitted: never empty, never both forms, bounded in size and depth whatever is written."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.network.rbac.v3.rbac_pb2 import RBAC as NetworkRbac
from hypothesis import HealthCheck, given, settings

from policy import envoy
from policy.cedar import cedar_text
from policy.envoy import Proxy, http_filter, network_filter
from policy.envoy_text import PATH_ASCII, PATH_NOT_NORMAL, PATH_PLAIN
from policy.model import Attribute, Clause, Match, MatchKind, Policy, Rule
from policy.paths import is_normal
from policy.workload import Scopes
from tests.policy.strategies import MESH as GENERATED_MESH
from tests.policy.strategies import POLICY_SETS, TARGETS
from tests.policy.test_envoy import MESH, TARGET, clause, deny, paths, policy

ASKING = Proxy(ext_authz=True, jwt=True)


def well_formed(kind: Any, made: Any) -> None:
    """Whole again when it was read, which messages that are nested too deeply are not."""
    assert kind.FromString(made.SerializeToString()) == made
    assert made.HasField("matcher")
    assert made.matcher.HasField("on_no_match")
    assert not made.HasField("rules")
    assert not made.HasField("shadow_rules")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(POLICY_SETS)
def test_every_filter_is_one_tree_that_ends_in_a_verdict(policies: tuple[Policy, ...]) -> None:
    scopes = Scopes(policies, root_namespace=GENERATED_MESH.root_namespace)
    for target in TARGETS:
        mine = scopes.of(target)
        for proxy in (Proxy(), ASKING):
            well_formed(RBAC, http_filter(target, mine, GENERATED_MESH, proxy)[0])
            well_formed(NetworkRbac, network_filter(target, mine, GENERATED_MESH, proxy)[0])


def test_what_holds_before_the_first_delivery_denies_all() -> None:
    well_formed(RBAC, envoy.deny_all())
    well_formed(NetworkRbac, envoy.deny_all_connections())


def test_a_rule_with_many_alternatives_does_not_stand_everywhere() -> None:
    callers = clause(Attribute.SOURCE_PRINCIPAL, *(f"td/ns/a/sa/c{n}" for n in range(300)))
    where = clause(Attribute.PATH, *(f"/p/{n}" for n in range(300)))
    wide = Rule(sources=((callers,),) * 12, operations=((where,),) * 12)  # alike, which is as good as one
    made, _ = http_filter(TARGET, [policy(*[wide] * 5), deny(*[wide] * 5)], MESH, ASKING)
    assert len(made.SerializeToString()) < 3_000_000


def test_every_attribute_at_once_is_not_nested_too_deeply() -> None:
    rules = []
    for n in range(200):
        when = [clause(Attribute.HEADER, str(n % 40 + h), key=(f"x-{h}",)) for h in range(12)]
        rules.append(
            Rule(
                sources=((clause(Attribute.SOURCE_PRINCIPAL, f"td/ns/a/sa/c{n % 9}", f"td/{n % 7}*"),),),
                operations=((clause(Attribute.PATH, f"/{n % 11}", f"/x/{n % 13}*"),),),
                conditions=tuple(when),
            )
        )
    for kept in range(1, 12):  # of which each misses some
        rules += [Rule(conditions=rule.conditions[kept:]) for rule in rules[:40]]
    for proxy in (Proxy(), ASKING):
        well_formed(RBAC, http_filter(TARGET, [policy(*rules), deny(*rules)], MESH, proxy)[0])


def test_what_is_too_long_for_an_expression_is_asked() -> None:
    made, unsaid = http_filter(TARGET, [policy(paths("*" + "/long" * 100))], MESH, ASKING)
    assert [u.reason for u in unsaid] == ["the expression for it would be too long for a proxy"]
    assert envoy.ASK.encode() in made.SerializeToString()


def test_an_asterisk_that_was_meant_is_none_of_cedars() -> None:
    """Found by the differential run: a suffix that is an asterisk was any text."""
    literal = Clause(attribute=Attribute.PATH, matches=(Match(MatchKind.SUFFIX, "*"),))
    text = cedar_text(TARGET, [policy(Rule(operations=((literal,),)))], MESH)
    assert r'"*\*"' in text


PATHS = [
    *(
        "/",
        "/a",
        "/a/",
        "/a.b/c",
        "/..a",
        "/a..",
        "/...",
        "/a;x/b",
        "/%20",
        "/%252e",
        "/a?//",
        "/a?x/../y",
        "*",
        "/.well-known/x",
    ),
    *(
        "//",
        "/a//",
        "/.",
        "/..",
        "/./",
        "/../",
        "/a/..",
        "/a/..;x",
        "/a/.;/b",
        "/%2e",
        "/%41",
        "/%7E",
        "/%2F",
        "/%5c",
        "/%00",
    ),
    *(
        "/a\\b",
        "/a\x00",
        "/\xe9",
        "/a b",
        "/a/..?x",
        "/..?",
        "/.?/",
        "/%2d",
        "/%5f",
        "/%30",
        "/%3a",
        "/%5B",
        "/%60",
        "/%7b",
    ),
]


@pytest.mark.parametrize("path", PATHS)
def test_the_guard_reads_paths_as_we_do(path: str) -> None:
    """Python's expressions have no `\\C`; the rest of what is written is the same."""
    import re

    def fits(expression: str) -> bool:
        return re.fullmatch(expression.replace(r"\C", "[\\s\\S]"), path) is not None

    refused = not fits(PATH_PLAIN) and (fits(PATH_NOT_NORMAL) or not fits(PATH_ASCII))
    assert refused != is_normal(path)
