"""What follows from an upstream's word about its roots and JWT authorities: they come, are tainted, and go. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from ca.authority.actions import revoke_dependents, taint_root
from ca.authority.journal import Journal, UpstreamMember, depends_on
from ca.authority.state import Authority, AuthorityKind, AuthorityState


def polled(journal: Journal, answer: Sequence[UpstreamMember], *, server: str, now: datetime) -> Journal:
    """The journal after the upstream of `server` named these, and no others.

    What it names no more goes after `GONE_PATIENCE`; at once if it was tainted before. But a root stays while something
    unexpired hangs on it, for chains that lead there are in use; a tainted one, while something that signs hangs on it:
    its successor comes first. One that an operator tainted and the upstream names no more is an operator's to revoke.
    What was tainted or revoked here stays so.
    """
    named = [_remembered(journal, member) for member in answer if not member.has_ended(now)]
    known = {member.place for member in named}
    absent = [member for member in journal.upstream if member.server == server and member.place not in known]
    kept = [after for member in absent if (after := _absent(journal, member, now)) is not None]
    others = tuple(member for member in journal.upstream if member.server != server)
    journal = replace(journal, upstream=(*others, *_in_order(journal, [*kept, *named])))
    for member in named:
        if member.tainted:
            journal = _tainted(journal, member, now)
    for member in absent:
        journal = _after_withdrawal(journal, member, now)
    return journal


def unlinked(journal: Journal, *, server: str, now: datetime) -> Journal:
    """The journal of a server that has no upstream any more: roots stay while something unexpired hangs on them."""
    kept = tuple(
        member
        for member in journal.upstream
        if member.server != server
        or (member.kind == AuthorityKind.X509 and not member.has_ended(now) and _dependents(journal, member, now))
    )
    return replace(journal, upstream=kept)


def _in_order(journal: Journal, members: Sequence[UpstreamMember]) -> list[UpstreamMember]:
    """Those that were there already first, so that an answer in another order is no change."""
    places = {member.place: at for at, member in enumerate(journal.upstream)}
    return sorted(members, key=lambda member: places.get(member.place, len(places)))


def _remembered(journal: Journal, member: UpstreamMember) -> UpstreamMember:
    """A taint or a revocation that is known here, by whichever server, is not forgotten."""
    for known in journal.upstream:
        if (known.kind, known.authority_id) == (member.kind, member.authority_id):
            member = replace(
                member, tainted=member.tainted or known.tainted, revoked_at=member.revoked_at or known.revoked_at
            )
    return member


def _absent(journal: Journal, member: UpstreamMember, now: datetime) -> UpstreamMember | None:
    """What is kept of a member that the upstream names no more."""
    if member.has_ended(now):
        return None
    if member.revoked_at is not None:
        return member
    dependents = _dependents(journal, member, now)
    states = {one.status for one in dependents}
    by_hand = any(_tainted_by_hand(one, member.gone_at) for one in dependents)
    member = replace(member, gone_at=member.gone_at or now)
    if member.tainted and not by_hand:
        return member if AuthorityState.ACTIVE in states else None
    return member if states or not member.is_gone(now) else None


def _tainted_by_hand(authority: Authority, gone_at: datetime | None) -> bool:
    """Whether the taint is no word of the upstream's, which had said nothing when it dropped the root."""
    return gone_at is not None and authority.tainted_at is not None and authority.tainted_at >= gone_at


def _dependents(journal: Journal, member: UpstreamMember, now: datetime) -> list[Authority]:
    if member.kind == AuthorityKind.JWT:
        return []
    return [one for one in journal.authorities if depends_on(one, member.authority_id) and one.not_after > now]


def _after_withdrawal(journal: Journal, member: UpstreamMember, now: datetime) -> Journal:
    """What hung on it goes with it. A JWT authority of our own that the upstream knew and dropped is as good as
    tainted: nobody outside believes it."""
    if any((m.kind, m.authority_id) == (member.kind, member.authority_id) for m in journal.upstream):
        return journal
    if member.kind == AuthorityKind.JWT:
        return journal if member.has_ended(now) else _taint_key(journal, member.authority_id, now)
    return revoke_dependents(journal, member.authority_id, now)


def _tainted(journal: Journal, member: UpstreamMember, now: datetime) -> Journal:
    if member.kind == AuthorityKind.X509:
        return taint_root(journal, member.authority_id, now)
    return _taint_key(journal, member.authority_id, now)


def _taint_key(journal: Journal, key_id: str, now: datetime) -> Journal:
    return replace(
        journal,
        authorities=tuple(
            replace(one, tainted=True, tainted_at=now) if _believed(one, key_id) else one for one in journal.authorities
        ),
    )


def _believed(authority: Authority, key_id: str) -> bool:
    """Whether it is that JWT authority, in the bundle and without a taint."""
    return (
        (authority.kind, authority.authority_id) == (AuthorityKind.JWT, key_id)
        and authority.status != AuthorityState.REVOKED
        and not authority.tainted
    )
