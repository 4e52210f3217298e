"""What can be done to authorities, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca.authority import actions
from ca.authority.actions import Action, Activate, Prune, Published, Retire, Revoke, Taint
from ca.authority.journal import Journal, KeyNote, UpstreamMember
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find, of_kind, signing_authority
from ca.errors import AlreadyExists, BurgeeError, FailedPrecondition, NotFound
from ca.ports import KeyType

START = datetime(2026, 11, 1, tzinfo=UTC)
PREPARED, ACTIVE, OLD = AuthorityState.PREPARED, AuthorityState.ACTIVE, AuthorityState.OLD
REVOKED = AuthorityState.REVOKED


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


def journal_after(journal: Journal, *steps: Action, now: datetime = START) -> Journal:
    for step in steps:
        journal = actions.apply(journal, step, server="s1", now=now)
    return journal


def apply(known: tuple[Authority, ...], action: Action) -> tuple[Authority, ...]:
    return journal_after(Journal(authorities=known), action).authorities


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
    assert statuses(apply(known, Revoke("a"))) == {"a": "revoked", "b": "active"}
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
        ((authority("a", OLD, tainted=True),), Taint("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", REVOKED, tainted=True),), Revoke("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", REVOKED),), Prune("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", server="s2"),), Activate("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", ACTIVE, server="s2"),), Retire("a"), FailedPrecondition, "AUTHORITY_STATE"),
        ((authority("a", ACTIVE, server="s2"),), Taint("a"), FailedPrecondition, "AUTHORITY_STATE"),
    ],
)
def test_what_does_not_fit_the_state_is_refused(
    known: tuple[Authority, ...], action: Action, error: type[BurgeeError], reason: str
) -> None:
    with pytest.raises(error) as caught:
        apply(known, action)
    assert caught.value.reason == reason


def test_an_authority_begins_as_a_prepared_one() -> None:
    with pytest.raises(ValueError, match="prepared"):
        apply((), Published(authority("a", ACTIVE)))


def test_each_step_leaves_its_time() -> None:
    hours = [START + timedelta(hours=n) for n in range(6)]
    journal = Journal()
    for now, step in zip(
        hours,
        [
            Published(authority("a")),
            Activate("a"),
            Published(authority("b")),
            Activate("b"),
            Taint("a"),
            Revoke("a"),
        ],
        strict=True,
    ):
        journal = journal_after(journal, step, now=now)
    a, b = journal.authorities
    assert (a.prepared_at, a.activated_at, a.tainted_at, a.revoked_at) == (hours[0], hours[1], hours[4], hours[5])
    assert (b.prepared_at, b.activated_at, b.tainted_at, b.revoked_at) == (hours[2], hours[3], None, None)


def test_the_key_of_what_left_the_bundle_is_noted_to_be_deleted_once() -> None:
    known = Journal(authorities=(authority("a", OLD, tainted=True), authority("b", OLD), authority("c", ACTIVE)))
    revoked = journal_after(known, Revoke("a"))
    note = KeyNote(server="s1", key_id="key-a", kind=AuthorityKind.X509, since=START)
    assert revoked.keys == (note,)
    assert journal_after(known, Prune("b")).keys == (replace(note, key_id="key-b"),)
    forgotten = journal_after(revoked, Prune("a"), now=START + timedelta(days=1))
    assert (statuses(forgotten.authorities), forgotten.keys) == ({"b": "old", "c": "active"}, (note,))


def test_a_key_belongs_to_its_authority_once_that_is_published() -> None:
    notes = tuple(
        KeyNote(server="s1", key_id=key_id, kind=AuthorityKind.X509, since=START) for key_id in ("key-a", "key-x")
    )
    assert journal_after(Journal(keys=notes), Published(authority("a"))).keys == notes[1:]


def test_old_authorities_of_a_server_that_is_gone_can_be_tainted_revoked_and_pruned_from_another() -> None:
    dead = authority("dead", OLD, server="s2")
    journal = journal_after(Journal(authorities=(dead,)), Taint("dead"), Revoke("dead"))
    assert statuses(journal.authorities) == {"dead": "revoked"}
    assert [(note.server, note.key_id) for note in journal.keys] == [("s2", "key-dead")]
    assert journal_after(Journal(authorities=(dead,)), Prune("dead")).authorities == ()


def test_what_a_server_left_that_never_came_back_is_forgotten_a_day_after_its_end() -> None:
    dead = (authority("a", ACTIVE, server="s2"), authority("b", REVOKED, server="s2"))
    own = authority("c", OLD)
    named = UpstreamMember(server="s2", kind=AuthorityKind.X509, authority_id="r", material=b"r")
    journal = Journal(authorities=(*dead, own), upstream=(named, replace(named, server="s1")))
    end = START + timedelta(days=2)
    assert actions.forget_others(journal, server="s1", now=end - timedelta(seconds=1)) == journal
    left = actions.forget_others(journal, server="s1", now=end)
    assert (left.authorities, [member.server for member in left.upstream]) == ((own,), ["s1"])
    assert [(note.server, note.key_id) for note in left.keys] == [("s2", "key-a")]


@pytest.mark.parametrize(
    ("known", "action", "words"),
    [
        ((authority("a", ACTIVE),), Activate("a"), "`a` is active since 2026-11-01T01:00:00Z"),
        ((authority("a", OLD, tainted=True),), Taint("a"), "`a` is old and tainted since 2026-11-01T02:00:00Z"),
        ((authority("a", REVOKED),), Revoke("a"), "`a` is revoked since 2026-11-01T03:00:00Z"),
        ((authority("a"),), Taint("a"), "`a` is prepared since 2026-11-01T00:00:00Z"),
    ],
)
def test_a_refusal_says_what_the_authority_is_and_since_when(
    known: tuple[Authority, ...], action: Action, words: str
) -> None:
    hours = [START + timedelta(hours=n) for n in range(4)]
    timed = replace(known[0], activated_at=hours[1], tainted_at=hours[2], revoked_at=hours[3])
    with pytest.raises(FailedPrecondition) as caught:
        apply((timed,), action)
    assert words in caught.value.detail


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


KNOWN = (authority("p"), authority("a", ACTIVE), authority("o", OLD), authority("r", REVOKED))


@pytest.mark.parametrize(
    ("action", "way"),
    [
        (Activate("a"), "nothing is left to do"),
        (Taint("a"), "`caadmin ca rotate x509 --taint`"),
        (Revoke("a"), "`caadmin ca rotate x509 --taint`"),
        (Prune("a"), "`caadmin ca rotate x509`"),
        (Taint("p"), "`caadmin ca prepare x509`"),
        (Revoke("p"), "`caadmin ca prepare x509`"),
        (Prune("p"), "`caadmin ca prepare x509`"),
        (Activate("o"), "`caadmin ca prepare x509`"),
        (Revoke("o"), "`caadmin ca taint x509 o`"),
        (Revoke("r"), "nothing is left to do"),
    ],
)
def test_a_refusal_says_what_to_do_instead(action: Action, way: str) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        apply(KNOWN, action)
    assert way in refused.value.hint
    assert "see `caadmin ca status`" in refused.value.hint
