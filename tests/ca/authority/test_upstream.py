"""Below an upstream: its roots come, are tainted, go; and what an operator does to them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca.authority.actions import Action, Activate, Published, RevokeUpstream, TaintUpstream, apply
from ca.authority.bundling import bundled
from ca.authority.journal import GONE_PATIENCE, Journal, UpstreamMember, condemned
from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.authority.upstream import polled, unlinked
from ca.errors import AlreadyExists, BurgeeError, FailedPrecondition, NotFound
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.identity.spiffe_id import TrustDomain
from ca.ports import KeyType

START = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PREPARED, ACTIVE, OLD = AuthorityState.PREPARED, AuthorityState.ACTIVE, AuthorityState.OLD
EMPTY = TrustBundle(trust_domain=TrustDomain("example.org"))


def root(name: str, *, server: str = "s1", tainted: bool = False, days: float = 100) -> UpstreamMember:
    return UpstreamMember(
        server=server,
        kind=AuthorityKind.X509,
        authority_id=name,
        material=name.encode(),
        expires_at=START + days * DAY,
        tainted=tainted,
    )


def key(name: str, *, server: str = "s1", tainted: bool = False) -> UpstreamMember:
    return replace(root(name, server=server, tainted=tainted), kind=AuthorityKind.JWT)


def below(name: str, upstream: str, status: AuthorityState = ACTIVE, *, server: str = "s1") -> Authority:
    return Authority(
        kind=AuthorityKind.X509,
        authority_id=name,
        key_id=f"key-{name}",
        key_type=KeyType.EC_P256,
        status=status,
        not_before=START,
        not_after=START + DAY,
        server=server,
        certificate=f"certificate {name}".encode(),
        upstream_authority_id=upstream,
    )


def jwt(name: str, status: AuthorityState = ACTIVE) -> Authority:
    return replace(below(name, "", status), kind=AuthorityKind.JWT, certificate=b"", public_key=name.encode())


def poll(journal: Journal, *answer: UpstreamMember, now: datetime = START) -> Journal:
    return polled(journal, answer, server="s1", now=now)


def do(journal: Journal, *steps: Action, now: datetime = START) -> Journal:
    for step in steps:
        journal = apply(journal, step, server="s1", now=now)
    return journal


def roots_of(journal: Journal, before: Journal | None = None, bundle: TrustBundle = EMPTY) -> dict[str, bool]:
    shown = bundled(bundle, before or Journal(), journal, now=START)
    return {one.certificate.decode(): one.tainted for one in shown.x509_authorities}


def test_the_bundle_holds_the_roots_and_no_intermediate() -> None:
    journal = do(Journal(), Published(below("a", "r1", PREPARED), (root("r1"), root("r2"))), Activate("a"))
    assert roots_of(journal) == {"r1": False, "r2": False}
    again = do(journal, Published(below("b", "r1", PREPARED), (root("r1"), root("r2"))), Activate("b"))
    assert again.upstream == journal.upstream
    assert roots_of(again, journal) == {"r1": False, "r2": False}


def test_roots_come_and_go_and_what_others_put_into_the_bundle_stays() -> None:
    bundle = replace(EMPTY, x509_authorities=(X509Authority(certificate=b"appended"),))
    first = poll(Journal(), root("r1"))
    assert roots_of(first, bundle=bundle) == {"appended": False, "r1": False}
    second = poll(first, root("r1"), root("r2"))
    assert list(roots_of(second, first)) == ["r1", "r2"]
    bundle = bundled(bundle, Journal(), second, now=START)
    missing = poll(second, root("r2"), now=START + timedelta(seconds=5))
    assert roots_of(missing, second, bundle) == {"appended": False, "r1": False, "r2": False}
    gone = poll(missing, root("r2"), now=START + timedelta(seconds=5) + GONE_PATIENCE)
    assert roots_of(gone, missing, bundle) == {"appended": False, "r2": False}


def test_an_answer_that_is_the_same_changes_nothing_whatever_its_order() -> None:
    journal = poll(Journal(), root("r1"), root("r2"), key("k1"))
    assert poll(journal, key("k1"), root("r2"), root("r1"), now=START + DAY) == journal


def test_a_root_that_comes_back_in_time_never_was_gone() -> None:
    journal = poll(Journal(), root("r1"), root("r2"))
    assert poll(poll(journal, root("r1")), root("r2"), root("r1"), now=START + timedelta(seconds=30)) == journal


def test_a_root_stays_while_something_unexpired_hangs_on_it() -> None:
    journal = poll(Journal(authorities=(below("a", "r1", OLD),)), root("r1"), root("r2"))
    late = poll(poll(journal, root("r2")), root("r2"), now=START + timedelta(hours=23))
    assert set(roots_of(late, journal)) == {"r1", "r2"}
    ended = poll(late, root("r2"), now=START + 2 * DAY)
    assert {one.authority_id for one in ended.upstream} == {"r2"}


def test_a_root_that_is_gone_for_a_while_is_built_upon_no_more() -> None:
    journal = poll(Journal(authorities=(below("a", "r1"),)), root("r1"), root("r2"))
    journal = poll(journal, root("r2"))
    assert condemned(journal, "s1", now=START + timedelta(seconds=59)) == frozenset()
    assert condemned(journal, "s1", now=START + GONE_PATIENCE) == {"r1"}
    assert condemned(journal, "s2", now=START + GONE_PATIENCE) == frozenset()


def test_a_root_made_anew_with_the_same_key_takes_the_place_of_the_old_one() -> None:
    journal = poll(Journal(authorities=(below("a", "r1"),)), root("r1"))
    renewed = replace(root("r1"), material=b"r1 again")
    after = poll(journal, renewed)
    assert condemned(after, "s1", now=START + 2 * GONE_PATIENCE) == frozenset()
    tainted = poll(after, replace(renewed, tainted=True))
    assert set(roots_of(tainted, after).values()) == {True}


def test_an_upstreams_taint_marks_the_root_and_all_that_hangs_on_it() -> None:
    known = (below("a", "r1", OLD), below("b", "r2"))
    journal = poll(Journal(authorities=known), root("r1"), root("r2"))
    after = poll(journal, root("r1", tainted=True), root("r2"), now=START + timedelta(hours=1))
    assert roots_of(after, journal) == {"r1": True, "r2": False}
    assert [(one.tainted, one.tainted_at) for one in after.authorities] == [
        (True, START + timedelta(hours=1)),
        (False, None),
    ]
    assert condemned(after, "s2", now=START) == {"r1"}
    untold = poll(after, root("r1"), root("r2"))
    assert untold == after, "a taint is never taken back"


def test_a_tainted_root_goes_at_once_and_takes_with_it_what_hung_on_it() -> None:
    known = (below("a", "r1", OLD), below("b", "r2"))
    journal = poll(Journal(authorities=known), root("r1", tainted=True), root("r2"))
    after = poll(journal, root("r2"))
    assert roots_of(after, journal) == {"r2": False}
    assert [one.status for one in after.authorities] == [AuthorityState.REVOKED, ACTIVE]
    assert [note.key_id for note in after.keys] == ["key-a"]


def test_but_not_while_something_that_signs_hangs_on_it() -> None:
    journal = poll(Journal(authorities=(below("a", "r1"),)), root("r1", tainted=True), root("r2"))
    after = poll(journal, root("r2"))
    assert roots_of(after, journal) == {"r1": True, "r2": False}
    assert after.authorities[0].status == ACTIVE


def test_two_servers_below_one_upstream() -> None:
    journal = poll(Journal(), root("r1"), root("r2"))
    journal = polled(journal, [root("r1", server="s2")], server="s2", now=START)
    later = START + timedelta(hours=1)
    alone = poll(poll(journal, root("r2")), root("r2"), now=later)
    assert set(roots_of(alone, journal)) == {"r1", "r2"}, "the other server's upstream still names it"
    told = polled(alone, [root("r1", server="s2", tainted=True)], server="s2", now=later)
    assert roots_of(told, alone) == {"r1": True, "r2": False}


def test_jwt_authorities_of_the_upstream_come_and_go() -> None:
    journal = poll(Journal(), root("r1"), key("k1"))
    shown = bundled(EMPTY, Journal(), journal, now=START)
    assert shown.jwt_authorities == (JwtAuthority(key_id="k1", public_key=b"k1", expires_at=START + 100 * DAY),)
    tainted = poll(journal, root("r1"), key("k1", tainted=True))
    shown = bundled(shown, journal, tainted, now=START)
    assert shown.jwt_authorities[0].tainted
    gone = poll(tainted, root("r1"))
    assert bundled(shown, tainted, gone, now=START).jwt_authorities == ()


def test_a_jwt_authority_of_ours_that_the_upstream_taints_or_drops_is_tainted() -> None:
    journal = poll(Journal(authorities=(jwt("k1"),)), root("r1"))
    assert not journal.authorities[0].tainted, "the upstream never named it"
    journal = poll(journal, root("r1"), key("k1"))
    assert poll(journal, root("r1"), key("k1", tainted=True)).authorities[0].tainted
    dropped = poll(journal, root("r1"))
    assert not dropped.authorities[0].tainted, "another server of the upstream may be behind"
    assert poll(dropped, root("r1"), now=START + GONE_PATIENCE).authorities[0].tainted


def test_a_key_id_of_another_key_is_refused() -> None:
    bundle = replace(EMPTY, jwt_authorities=(JwtAuthority(key_id="k1", public_key=b"another"),))
    with pytest.raises(AlreadyExists) as caught:
        bundled(bundle, Journal(), Journal(authorities=(jwt("k1"),)), now=START)
    assert caught.value.reason == "KEY_ID_IN_USE"


def test_what_has_ended_is_not_put_back_into_the_bundle() -> None:
    journal = Journal(authorities=(jwt("k1", OLD),), upstream=(root("r1", days=1),))
    shown = bundled(EMPTY, journal, journal, now=START + DAY)
    assert (shown.x509_authorities, shown.jwt_authorities) == ((), ())
    assert bundled(EMPTY, journal, journal, now=START + DAY / 2).jwt_authorities


def test_an_operator_taints_and_revokes_a_root_and_no_answer_brings_it_back() -> None:
    known = (below("a", "r1", OLD), below("p", "r1", PREPARED), below("b", "r2"), below("c", "r1", OLD, server="s2"))
    journal = poll(Journal(authorities=known), root("r1"), root("r2"))
    journal = polled(journal, [root("r1", server="s2")], server="s2", now=START)
    tainted = do(journal, TaintUpstream("r1"))
    assert roots_of(tainted, journal) == {"r1": True, "r2": False}
    assert {one.authority_id: one.tainted for one in tainted.authorities} == {
        "a": True,
        "p": True,
        "b": False,
        "c": True,
    }
    revoked = do(tainted, RevokeUpstream("r1"))
    assert roots_of(revoked, tainted) == {"r2": False}
    assert {one.authority_id for one in revoked.authorities if one.status == AuthorityState.REVOKED} == {"a", "p", "c"}
    again = poll(revoked, root("r1"), root("r2"))
    assert roots_of(again, revoked) == {"r2": False}
    assert condemned(again, "s1", now=START) == {"r1"}
    away = poll(again, root("r2"), now=START + DAY)
    back = poll(away, root("r1"), root("r2"), now=START + 2 * DAY)
    assert roots_of(back, away) == {"r2": False}


@pytest.mark.parametrize("dropped", ["before the taint", "after it"])
def test_a_root_that_an_operator_tainted_is_not_taken_away_by_an_upstream_that_has_another(dropped: str) -> None:
    """It was replaced there before, which is no revocation: SVIDs that hang on it are first issued anew."""
    journal = poll(Journal(authorities=(below("a", "r1", OLD), below("b", "r2"))), root("r1"), root("r2"))
    minute = timedelta(minutes=1)
    if dropped == "before the taint":
        journal = poll(journal, root("r2"))
    tainted = do(journal, TaintUpstream("r1"), now=START + minute)
    for after in (minute, 3 * minute):
        kept = poll(tainted, root("r2"), now=START + after)
        assert roots_of(kept, journal) == {"r1": True, "r2": False}
        assert kept.authorities[0].status == OLD
    assert roots_of(do(kept, RevokeUpstream("r1")), kept) == {"r2": False}
    ended = poll(kept, root("r2"), now=START + DAY)
    assert roots_of(ended, kept) == {"r2": False}


R1 = Journal(authorities=(below("a", "r1"), below("o", "r2", OLD)), upstream=(root("r1"), root("r2")))


@pytest.mark.parametrize(
    ("journal", "step", "error", "words"),
    [
        (R1, TaintUpstream("r1"), FailedPrecondition, "which signs on server `s1`"),
        (R1, RevokeUpstream("r1"), FailedPrecondition, "which signs on server `s1`"),
        (R1, TaintUpstream("nope"), NotFound, "there is no upstream authority `nope`"),
        (R1, RevokeUpstream("r2"), FailedPrecondition, "taint it first"),
        (do(R1, TaintUpstream("r2")), TaintUpstream("r2"), FailedPrecondition, "tainted already"),
        (
            do(R1, TaintUpstream("r2"), RevokeUpstream("r2")),
            RevokeUpstream("r2"),
            FailedPrecondition,
            "revoked already",
        ),
    ],
)
def test_what_is_refused(journal: Journal, step: Action, error: type[BurgeeError], words: str) -> None:
    with pytest.raises(error) as caught:
        do(journal, step)
    assert words in caught.value.detail


def test_without_an_upstream_roots_stay_as_long_as_they_are_needed() -> None:
    journal = poll(Journal(authorities=(below("a", "r1"),)), root("r1"), root("r2"), key("k1"))
    journal = polled(journal, [root("r3", server="s2")], server="s2", now=START)
    left = unlinked(journal, server="s1", now=START)
    assert {one.authority_id for one in left.upstream} == {"r1", "r3"}
    assert condemned(left, "s1", now=START + DAY) == frozenset()
    assert {one.authority_id for one in unlinked(left, server="s1", now=START + DAY).upstream} == {"r3"}
