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

_MOMENT = timedelta(seconds=1)


def prepare_at(authority: Authority) -> datetime:
    """When its successor is to be published: half of its life, at most 30 days, before its end."""
    return authority.not_after - min(_life(authority) / 2, PREPARE_LIMIT)


def activate_at(authority: Authority) -> datetime:
    """When its successor is to sign: a sixth of its life, at most 7 days, before its end."""
    return authority.not_after - min(_life(authority) / 6, ACTIVATE_LIMIT)


def activation(active: Authority, prepared: Authority) -> datetime:
    """When `prepared` takes over from `active`.

    Normally at `activate_at(active)`, by which time it was public for a third of that life, which is many refresh
    hints: SPIFFE Federation §4.1 (H1). A successor that was published late (the server was down) is held back until
    it was public for a twenty-fourth of that life, but never into the last twenty-fourth.
    """
    notice = min(_life(active) / 24, ACTIVATE_LIMIT / 4)
    return max(activate_at(active), min(prepared.not_before + notice, active.not_after - notice))


def due(authorities: Sequence[Authority], *, kind: AuthorityKind, now: datetime) -> tuple[Due, ...]:
    """What one server has to do now about its authorities of one kind; empty when all is well.

    Apply the actions in order and ask again: after a first `Prepare`, with nothing active, the answer is `Activate`.
    At most one `Prepare` or `Activate` is asked for at a time.
    """
    mine = of_kind(authorities, kind)
    pruned = tuple(
        Prune(one.authority_id)
        for one in mine
        if one.status == AuthorityState.OLD and now >= one.not_after + PRUNE_GRACE
    )
    step = _step(mine, kind, now)
    return (step, *pruned) if step else pruned


def _step(mine: Sequence[Authority], kind: AuthorityKind, now: datetime) -> Due | None:
    active = find(mine, AuthorityState.ACTIVE, kind)
    prepared = find(mine, AuthorityState.PREPARED, kind)
    usable = prepared is not None and not prepared.tainted and now < prepare_at(prepared)
    if prepared is not None and usable:
        if active is None or now >= min(active.not_after, activation(active, prepared)):
            return Activate(prepared.authority_id)
        return None
    if active is None or now >= prepare_at(active):
        # Nothing is prepared, or only what slept past half of its own life: a fresh one takes its place.
        return Prepare(kind)
    return None


def next_due(authorities: Sequence[Authority], *, kind: AuthorityKind, now: datetime) -> datetime:
    """The next moment at which `due` has an answer: `now` if it has one already. For a timer instead of a tick."""
    if due(authorities, kind=kind, now=now):
        return now
    mine = of_kind(authorities, kind)
    moments = [one.not_after + PRUNE_GRACE for one in mine if one.status == AuthorityState.OLD]
    active = find(mine, AuthorityState.ACTIVE, kind)
    prepared = find(mine, AuthorityState.PREPARED, kind)
    if active is not None:
        moments.append(prepare_at(active))
    if prepared is not None:
        moments.append(prepare_at(prepared))
        if active is not None:
            moments.append(min(active.not_after, activation(active, prepared)))
    return min((moment for moment in moments if moment > now), default=now + _MOMENT)


def _life(authority: Authority) -> timedelta:
    return authority.not_after - authority.not_before
