"""From what the authorities are to the next step, for whoever asks, however often."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.errors import FailedPrecondition, NotFound
from ca.ports import KeyType
from ca.service.rotation_walk import WalkStep, to_be_replaced, walk

X509, JWT = AuthorityKind.X509, AuthorityKind.JWT
PREPARED, ACTIVE, OLD, REVOKED = (
    AuthorityState.PREPARED,
    AuthorityState.ACTIVE,
    AuthorityState.OLD,
    AuthorityState.REVOKED,
)
START = datetime(2026, 1, 1, tzinfo=UTC)


def one(name: str, status: AuthorityState, **changes: Any) -> Authority:
    values: dict[str, Any] = {
        "kind": X509,
        "authority_id": name,
        "key_id": name,
        "key_type": KeyType.EC_P256,
        "status": status,
        "not_before": START,
        "not_after": START + timedelta(days=1),
        "server": "s",
    }
    return Authority(**values | changes)


def step(
    *own: Authority, replacing: str = "a", taint: bool = False, keep: bool = False, roots: Collection[str] = ()
) -> tuple[WalkStep, str, bool]:
    """(step, whom it is about, whether about the root above)."""
    found = walk(own, kind=X509, replacing=replacing, taint=taint, keep=keep, roots=roots)
    return found.step, found.target.authority_id if found.target else "", found.root


def test_it_begins_with_what_signs() -> None:
    assert to_be_replaced([one("z", ACTIVE, kind=JWT), one("a", ACTIVE)], X509) == "a"
    with pytest.raises(FailedPrecondition) as refused:
        to_be_replaced([one("a", OLD)], X509)
    assert refused.value.reason == "NO_AUTHORITY"


def test_a_stolen_key_that_is_not_revoked_yet_is_gone_on_with() -> None:
    own = [one("a", OLD, tainted=True), one("b", ACTIVE)]
    with pytest.raises(FailedPrecondition) as refused:
        to_be_replaced(own, X509, taint=True)
    assert refused.value.reason == "ROTATION_UNFINISHED"
    assert "--replacing a" in refused.value.hint
    assert to_be_replaced(own, X509) == "b"
    assert to_be_replaced([one("a", REVOKED, tainted=True), one("b", ACTIVE)], X509, taint=True) == "b"
    assert to_be_replaced([*own, one("c", ACTIVE, kind=JWT)], JWT, taint=True) == "c"


def test_a_whole_rotation() -> None:
    assert step(one("a", ACTIVE)) == (WalkStep.PREPARE, "", False)
    assert step(one("a", ACTIVE), one("b", PREPARED)) == (WalkStep.ACTIVATE, "b", False)
    assert step(one("a", OLD), one("b", ACTIVE)) == (WalkStep.PRUNE, "a", False)
    with pytest.raises(NotFound) as gone:
        step(one("b", ACTIVE))
    assert "it was replaced, or there never was one" in gone.value.detail
    assert [one for one in WalkStep if one.is_last] == [WalkStep.REVOKE, WalkStep.PRUNE]


def test_with_a_taint_the_old_one_is_tainted_and_then_revoked() -> None:
    assert step(one("a", OLD), one("b", ACTIVE), taint=True) == (WalkStep.TAINT, "a", False)
    assert step(one("a", OLD, tainted=True), one("b", ACTIVE), taint=True) == (WalkStep.REVOKE, "a", False)
    assert step(one("a", REVOKED, tainted=True), one("b", ACTIVE), taint=True) == (WalkStep.FINISHED, "", False)


def test_what_was_tainted_by_another_is_revoked_and_not_pruned() -> None:
    assert step(one("a", OLD, tainted=True), one("b", ACTIVE)) == (WalkStep.REVOKE, "a", False)


def test_it_can_be_kept_in_the_bundle() -> None:
    assert step(one("a", OLD), one("b", ACTIVE), keep=True) == (WalkStep.FINISHED, "", False)
    assert step(one("a", OLD), one("b", ACTIVE), keep=True, taint=True) == (WalkStep.TAINT, "a", False)
    assert step(one("a", OLD, tainted=True), one("b", ACTIVE), keep=True) == (WalkStep.FINISHED, "", False)


def test_a_second_operator_goes_on_and_does_not_rotate_once_more() -> None:
    """Both named what signed when they began."""
    after = (one("a", OLD), one("b", ACTIVE))
    assert step(*after, replacing="a") == step(*after, replacing="a") == (WalkStep.PRUNE, "a", False)


def test_a_tainted_successor_is_made_anew() -> None:
    assert step(one("a", ACTIVE), one("b", PREPARED, tainted=True)) == (WalkStep.PREPARE, "", False)


def test_other_kinds_are_left_alone() -> None:
    assert step(one("a", ACTIVE), one("k", PREPARED, kind=JWT)) == (WalkStep.PREPARE, "", False)


@pytest.mark.parametrize(
    ("own", "error", "reason"),
    [
        ((one("b", PREPARED),), NotFound, "AUTHORITY_UNKNOWN"),
        ((one("b", ACTIVE),), NotFound, "AUTHORITY_UNKNOWN"),
        ((one("a", PREPARED), one("b", ACTIVE)), FailedPrecondition, "AUTHORITY_STATE"),
    ],
)
def test_what_cannot_be_replaced(own: tuple[Authority, ...], error: type[Exception], reason: str) -> None:
    with pytest.raises(error) as refused:
        step(*own)
    assert getattr(refused.value, "reason", "") == reason


class TestBelowAnUpstream:
    def test_an_intermediate_goes_without_its_root(self) -> None:
        old = one("a", OLD, upstream_authority_id="r")
        assert step(old, one("b", ACTIVE, upstream_authority_id="r")) == (WalkStep.PRUNE, "a", False)

    def test_a_taint_is_one_of_the_root(self) -> None:
        old, active = one("a", OLD, upstream_authority_id="r"), one("b", ACTIVE, upstream_authority_id="s")
        assert step(old, active, taint=True) == (WalkStep.TAINT, "a", True)
        tainted = one("a", OLD, upstream_authority_id="r", tainted=True)
        assert step(tainted, active, taint=True) == (WalkStep.REVOKE, "a", True)

    def test_a_root_that_the_successor_needs_is_not_tainted(self) -> None:
        old, active = one("a", OLD, upstream_authority_id="r"), one("b", ACTIVE, upstream_authority_id="r")
        with pytest.raises(FailedPrecondition) as refused:
            step(old, active, taint=True)
        assert refused.value.reason == "ROOT_IS_SHARED"

    @pytest.mark.parametrize("prepared", ["r", None])
    def test_which_is_foreseen(self, prepared: str | None) -> None:
        """Nothing is prepared or activated for a rotation that cannot end."""
        own = [one("a", ACTIVE, upstream_authority_id="r")]
        own += [one("b", PREPARED, upstream_authority_id=prepared)] if prepared else []
        with pytest.raises(FailedPrecondition) as refused:
            step(*own, taint=True, roots={"r"})
        assert refused.value.reason == "ROOT_IS_SHARED"
        assert "caadmin ca prepare x509" in refused.value.hint
        assert step(*own)[0] in (WalkStep.PREPARE, WalkStep.ACTIVATE)  # without a taint the root stays

    def test_another_root_is_a_way(self) -> None:
        active = one("a", ACTIVE, upstream_authority_id="r")
        assert step(active, taint=True, roots={"r", "s"}) == (WalkStep.PREPARE, "", False)
        prepared = one("b", PREPARED, upstream_authority_id="s")
        assert step(active, prepared, taint=True, roots={"r"}) == (WalkStep.ACTIVATE, "b", False)
