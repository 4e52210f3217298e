"""What a grant gives and takes, in words, beside what its callers have anyhow."""

from __future__ import annotations

import pytest

from ca.service.policy.grant_effect import effect
from policy.book_values import Grant, Role
from tests.ca.policy.lab import ROOT, spiffe_id

ID = "spiffe://example.org"


def grant(role: Role, *namespaces: str, of: str = "team") -> Grant:
    return Grant(name="g", spiffe_id=f"{ID}/{of}", role=role, namespaces=namespaces)


READ, WRITE, ADMIN = grant(Role.READER, "a"), grant(Role.AUTHOR, "a"), grant(Role.ADMIN)
ALL = grant(Role.READER, "*")
NOTHING = "gain and lose nothing: it has as much without"
BOTH = "to read policies of `a` and to write policies of `a`"
CASES: list[tuple[Grant | None, Grant | None, tuple[Grant, ...], list[str]]] = [
    (None, READ, (), ["gain the right to read policies of `a`"]),
    (READ, None, (), ["lose the right to read policies of `a`"]),
    (READ, READ, (), [NOTHING]),
    (None, WRITE, (), ["gain the right to read policies of `a`", "gain the right to write policies of `a`"]),
    (None, WRITE, (ALL,), ["gain the right to write policies of `a`"]),
    (WRITE, READ, (), ["lose the right to write policies of `a`"]),
    (None, READ, (WRITE,), [NOTHING]),
    (READ, None, (grant(Role.READER, "a", of="te*"),), [NOTHING]),
    (READ, None, (grant(Role.READER, "a", of="team/*"),), ["lose the right to read policies of `a`"]),
    (READ, ALL, (), ["gain the right to read policies of every namespace"]),
    (ALL, READ, (), ["lose the right to read policies of every namespace but `a`"]),
    (None, ADMIN, (WRITE,), [f"gain everything, as an admin; before: {BOTH}"]),
    (ADMIN, None, (), ["lose everything that an admin may; left: nothing"]),
    (ADMIN, READ, (), ["lose everything that an admin may; left: to read policies of `a`"]),
    (None, READ, (ADMIN,), [NOTHING]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)))
def test_words(number: int) -> None:
    before, after, others, expected = CASES[number]
    told = effect(before, after, others, caller="", admins=frozenset(), root_namespace=ROOT)
    assert list(told) == [f"`{ID}/team` would {one}" for one in expected]


def test_an_admin_by_configuration_gains_nothing() -> None:
    told = effect(None, ADMIN, (), caller="", admins=frozenset({spiffe_id("/team")}), root_namespace=ROOT)
    assert told == (f"`{ID}/team` would {NOTHING}",)


def test_a_grant_that_becomes_another_callers_is_told_of_both_and_of_who_asks() -> None:
    after = grant(Role.ADMIN, of="other/*")
    told = effect(ADMIN, after, (), caller=f"{ID}/team", admins=frozenset(), root_namespace=ROOT)
    assert told == (
        f"you (`{ID}/team`) would lose everything that an admin may; left: nothing",
        f"whoever's ID begins with `{ID}/other/` would gain everything, as an admin; before: nothing",
    )
    mine = effect(after, None, (), caller=f"{ID}/other/me", admins=frozenset(), root_namespace=ROOT)
    assert mine[1] == f"you (`{ID}/other/me`) would lose everything that an admin may; left: nothing"


def test_many_namespaces_are_counted() -> None:
    many = grant(Role.READER, *(f"n{number:04}" for number in range(1000)))
    (told,) = effect(None, many, (), caller="", admins=frozenset(), root_namespace=ROOT)
    assert told.endswith("`n0009` and 990 more")
