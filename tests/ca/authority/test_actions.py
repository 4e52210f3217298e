"""What can be done to authorities, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca.authority.actions import Action, Activate, Prune, Published, Retire, Revoke, Taint, apply
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find, of_kind, signing_authority
from ca.errors import AlreadyExists, BurgeeError, FailedPrecondition, NotFound
from ca.ports import KeyType

START = datetime(2026, 11, 1, tzinfo=UTC)
PREPARED, ACTIVE, OLD = AuthorityState.PREPARED, AuthorityState.ACTIVE, AuthorityState.OLD


def authority(
    name: str,
    status: AuthorityState = PREPARED,
    *,
    kind: AuthorityKind = AuthorityKind.X509,
    server: str = "s1",
    tainted: bool = False,
) -> Authority:
    return Authority(
        kind=kind,
        authority_id=name,
        key_id=f"key-{name}",
        key_type=KeyType.EC_P256,
        status=status,
        not_before=START,
        not_after=START + timedelta(days=1),
        server=server,
        tainted=tainted,
    )


def statuses(authorities: tuple[Authority, ...]) -> dict[str, str]:
    return {one.authority_id: str(one.status) for one in authorities}


def test_one_life() -> None:
    known = apply((), Published(authority("a")))
    assert statuses(known) == {"a": "prepared"}
    known = apply(known, Activate("a"))
    assert statuses(known) == {"a": "active"}
    known = apply(apply(known, Published(authority("b"))), Activate("b"))
    assert statuses(known) == {"a": "old", "b": "active"}
    known = apply(known, Taint("a"))
    assert [one.tainted for one in known] == [True, False]
    assert statuses(apply(known, Revoke("a"))) == {"b": "active"}
    assert statuses(apply(known, Prune("a"))) == {"b": "active"}


def test_a_second_preparation_leaves_the_first_in_the_bundle() -> None:
    known = apply((authority("a", ACTIVE), authority("b")), Published(authority("c")))
    assert statuses(known) == {"a": "active", "b": "old", "c": "prepared"}


def test_other_kinds_and_other_servers_are_left_alone() -> None:
    others = (
        authority("jwt", ACTIVE, kind=AuthorityKind.JWT),
        authority("jwt-next", kind=AuthorityKind.JWT),
        authority("elsewhere", ACTIVE, server="s2"),
        authority("elsewhere-next", server="s2"),
    )
    known = apply((*others, authority("a", ACTIVE), authority("b")), Activate("b"))
    assert known[:4] == others
    assert apply(known, Published(authority("c")))[:4] == others


def test_a_lost_key_retires_its_authority() -> None:
    known = apply((authority("a", ACTIVE),), Retire("a"))
    assert statuses(known) == {"a": "old"}
    with pytest.raises(FailedPrecondition):
        signing_authority(known, AuthorityKind.X509, now=START)


@pytest.mark.parametrize(
    ("known", "action", "error", "reason"),
    [
        ((), Activate("a"), NotFound, "AUTHORITY_UNKNOWN"),
        ((), Taint("a"), NotFound, "AUTHORITY_UNKNOWN"),
        ((authority("a", ACTIVE),), Activate("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", OLD),), Activate("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", tainted=True),), Activate("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", ACTIVE),), Taint("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a"),), Taint("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", OLD),), Revoke("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", ACTIVE, tainted=True),), Revoke("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", ACTIVE),), Prune("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a"),), Prune("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a"),), Published(authority("a")), AlreadyExists, "AUTHORITY_EXISTS"),
        ((), Published(authority("a", ACTIVE)), FailedPrecondition, "AUTHORITY_STATE"),
    ],
)
def test_what_does_not_fit_the_state_is_refused(
    known: tuple[Authority, ...], action: Action, error: type[BurgeeError], reason: str
) -> None:
    with pytest.raises(error) as caught:
        apply(known, action)
    assert caught.value.reason == reason


def test_who_signs() -> None:
    known = (authority("j", ACTIVE, kind=AuthorityKind.JWT), authority("a", OLD), authority("b", ACTIVE))
    assert signing_authority(known, AuthorityKind.X509, now=START).authority_id == "b"
    assert find(known, PREPARED, AuthorityKind.X509) is None
    assert [one.authority_id for one in of_kind(known, AuthorityKind.X509)] == ["a", "b"]


def test_nobody_signs_past_their_end_or_before_being_published() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        signing_authority((authority("a"),), AuthorityKind.X509, now=START)
    assert caught.value.reason == "NO_AUTHORITY"
    ended = replace(authority("a", ACTIVE), not_after=START)
    with pytest.raises(FailedPrecondition) as caught:
        signing_authority((ended,), AuthorityKind.X509, now=START)
    assert caught.value.reason == "AUTHORITY_EXPIRED"
