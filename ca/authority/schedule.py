"""When authorities are prepared, activated and pruned: SPIRE's thresholds, as functions of values and `now`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from ca.authority.actions import Activate, Due, Prepare, Prune
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find, of_kind

PREPARE_LIMIT = timedelta(days=30)
ACTIVATE_LIMIT = timedelta(days=7)

PRUNE_GRACE = timedelta(seconds=60)
"""How long an authority stays in the bundle past its end: validators of JWTs allow clocks to be a minute off."""

MARGIN_LIMIT = timedelta(seconds=60)
CONDEMNED_PATIENCE = timedelta(seconds=10)
"""For so long after its publication the successor of what is tainted waits for those who have not got it."""

_NOTHING = timedelta()
_MOMENT = timedelta(seconds=1)


def prepare_at(authority: Authority) -> datetime:
    """When its successor is to be published: half of its life, at most 30 days, before its end."""
    return authority.not_after - min(_life(authority) / 2, PREPARE_LIMIT)


def activate_at(authority: Authority) -> datetime:
    """When its successor is to sign: a sixth of its life, at most 7 days, before its end."""
    return authority.not_after - min(_life(authority) / 6, ACTIVATE_LIMIT)


def activation(active: Authority, prepared: Authority, refresh_hint: timedelta = _NOTHING) -> datetime:
    """When `prepared` takes over from `active`.

    Normally at `activate_at(active)`, by which time it was public for a third of that life: SPIFFE Federation §4.1
    (H1). A successor that was published late (the server was down) is held back until it was public for a
    twenty-fourth of that life and for the bundle's refresh hint, but never into the last twenty-fourth.
    """
    notice = min(_life(active) / 24, ACTIVATE_LIMIT / 4)
    known = prepared.published_at + max(notice, refresh_hint)
    return max(activate_at(active), min(known, active.not_after - notice))


def last_safe_second(active: Authority, longest_ttl: timedelta) -> datetime:
    """Until when a successor may be held back for those who have not got it: later, the longest SVID would be cut
    short, and refusing any longer would in the end cut off everybody."""
    return active.not_after - longest_ttl - min(_life(active) / 24, MARGIN_LIMIT)


def patience(
    active: Authority | None, prepared: Authority, *, longest_ttl: timedelta, condemned: frozenset[str]
) -> datetime:
    """Until when the activation of `prepared` waits for consumers. With nothing that signs it waits for nobody."""
    if active is None or active.tainted:
        return prepared.published_at
    if active.upstream_authority_id in condemned:
        return prepared.published_at + CONDEMNED_PATIENCE
    return last_safe_second(active, longest_ttl)


def due(
    authorities: Sequence[Authority],
    *,
    kind: AuthorityKind,
    now: datetime,
    condemned: frozenset[str] = frozenset(),
    refresh_hint: timedelta = _NOTHING,
) -> tuple[Due, ...]:
    """What one server has to do now about its authorities of one kind; empty when all is well.

    Apply the actions in order and ask again: after a first `Prepare`, with nothing active, the answer is `Activate`.
    At most one `Prepare` or `Activate` is asked for at a time. `condemned` are roots on which nothing new is built.
    """
    mine = of_kind(authorities, kind)
    pruned = tuple(
        Prune(one.authority_id)
        for one in mine
        if one.status in (AuthorityState.OLD, AuthorityState.REVOKED) and now >= one.not_after + PRUNE_GRACE
    )
    step = _step(mine, kind, now, condemned, refresh_hint)
    return (step, *pruned) if step else pruned


def _step(
    mine: Sequence[Authority],
    kind: AuthorityKind,
    now: datetime,
    condemned: frozenset[str],
    refresh_hint: timedelta,
) -> Due | None:
    active = find(mine, AuthorityState.ACTIVE, kind)
    prepared = find(mine, AuthorityState.PREPARED, kind)
    bad = active is not None and (active.tainted or active.upstream_authority_id in condemned)
    if prepared is not None and usable(prepared, now=now, condemned=condemned):
        if active is None or bad or now >= min(active.not_after, activation(active, prepared, refresh_hint)):
            return Activate(prepared.authority_id)
        return None
    if active is None or bad or now >= prepare_at(active):
        # Nothing is prepared, or only what slept past half of its own life: a fresh one takes its place.
        return Prepare(kind)
    return None


def usable(prepared: Authority, *, now: datetime, condemned: frozenset[str]) -> bool:
    """Whether it is worth to be activated by the schedule."""
    return not prepared.tainted and prepared.upstream_authority_id not in condemned and now < prepare_at(prepared)


def next_due(
    authorities: Sequence[Authority],
    *,
    kind: AuthorityKind,
    now: datetime,
    condemned: frozenset[str] = frozenset(),
    refresh_hint: timedelta = _NOTHING,
) -> datetime:
    """The next moment at which `due` has an answer: `now` if it has one already. For a timer instead of a tick."""
    if due(authorities, kind=kind, now=now, condemned=condemned, refresh_hint=refresh_hint):
        return now
    mine = of_kind(authorities, kind)
    over = (AuthorityState.OLD, AuthorityState.REVOKED)
    moments = [one.not_after + PRUNE_GRACE for one in mine if one.status in over]
    active = find(mine, AuthorityState.ACTIVE, kind)
    prepared = find(mine, AuthorityState.PREPARED, kind)
    if active is not None:
        moments.append(prepare_at(active))
    if prepared is not None:
        moments.append(prepare_at(prepared))
        if active is not None:
            moments.append(min(active.not_after, activation(active, prepared, refresh_hint)))
    return min((moment for moment in moments if moment > now), default=now + _MOMENT)


def _life(authority: Authority) -> timedelta:
    return authority.not_after - authority.not_before
