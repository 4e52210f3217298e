"""How long a credential lives: what was asked for, what is granted, and what cut it short."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from ca.errors import FailedPrecondition, InvalidArgument

BACKDATE_SECONDS = 10
"""How far notBefore lies in the past, for callers whose clock is behind; SPIRE's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """An upper bound of a lifetime: a stable reason code, a sentence for people, the time itself."""

    reason: str
    detail: str
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """Whole seconds, UTC. `issued_at` is the moment of issue; `not_before` lies `backdate_seconds` before it.

    `granted_seconds` counts from `issued_at` to `not_after`. `caps` names each bound that lies before the end that
    was asked for, the tightest first; it is empty when all of `requested_seconds` was granted.
    """

    issued_at: datetime
    not_before: datetime
    not_after: datetime
    requested_seconds: int
    granted_seconds: int
    caps: tuple[Cap, ...] = ()


@lru_cache(maxsize=256)
def plan_lifetime(
    now: datetime,
    requested_seconds: int,
    default_seconds: int,
    issuer_not_after: datetime | None,
    backdate_seconds: int = BACKDATE_SECONDS,
    limits: tuple[Cap, ...] = (),
) -> Lifetime:
    """Plans a lifetime of `requested_seconds` (0: `default_seconds`) from `now`, cut to its issuer's and to `limits`.

    Remembered, since a batch shares its times: pass the batch's one `now`.
    `issuer_not_after` is None for a root alone. Raises InvalidArgument (reason TTL_NEGATIVE) for a negative request
    and FailedPrecondition with the cap's reason when nothing would be left, e.g. AUTHORITY_EXPIRES.
    """
    if requested_seconds < 0:
        raise InvalidArgument(f"ttl of {requested_seconds} seconds is negative", reason="TTL_NEGATIVE")
    wanted_seconds = requested_seconds or default_seconds
    issued_at = now.replace(microsecond=0)
    not_after = issued_at + timedelta(seconds=wanted_seconds)
    caps: tuple[Cap, ...] = ()
    if limits or (issuer_not_after is not None and issuer_not_after < not_after):
        caps = _binding(not_after, issuer_not_after, limits)
    if caps:
        not_after = max(caps[0].not_after.replace(microsecond=0), issued_at)
    if not_after <= issued_at:
        raise _nothing_left(caps)
    return Lifetime(
        issued_at=issued_at,
        not_before=issued_at - timedelta(seconds=backdate_seconds),
        not_after=not_after,
        requested_seconds=wanted_seconds,
        granted_seconds=int((not_after - issued_at).total_seconds()) if caps else wanted_seconds,
        caps=caps,
    )


def _binding(wanted_end: datetime, issuer_not_after: datetime | None, limits: tuple[Cap, ...]) -> tuple[Cap, ...]:
    """The bounds before the end that was asked for, the tightest first."""
    bounds = list(limits)
    if issuer_not_after is not None:
        bounds.append(Cap(reason="AUTHORITY_EXPIRES", detail="the signing authority ends", not_after=issuer_not_after))
    return tuple(sorted((cap for cap in bounds if cap.not_after < wanted_end), key=lambda cap: cap.not_after))


def _nothing_left(caps: tuple[Cap, ...]) -> FailedPrecondition:
    if not caps:
        return FailedPrecondition("nothing left to live: 0 seconds were asked for", reason="TTL_ZERO")
    return FailedPrecondition(f"nothing left to live: {caps[0].detail}", reason=caps[0].reason)
