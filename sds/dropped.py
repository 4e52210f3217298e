"""Authorities that left the trust bundle, or were tainted, before their end: an old copy must not bring them back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from ca.errors import BurgeeError
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.certificate import load_authority

MAX_DROPPED = 256
"""Remembered at most; beyond it those that end first go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """One X.509 authority: SHA-256 of its certificate (DER), and when that ends by itself."""

    fingerprint: bytes
    not_after: datetime


def remember(
    known: Iterable[Dropped], *, before: TrustBundle | None, after: TrustBundle, now: datetime
) -> tuple[Dropped, ...]:
    """What is known once a verified server has replaced the bundle `before` by `after`.

    That server's word is the last one: what it lists, untainted, counts no more as dropped.
    """
    listed = {authority.certificate for authority in after.x509_authorities}
    gone = [a for a in (before.x509_authorities if before else ()) if a.certificate not in listed]
    found = {dropped.fingerprint: dropped for dropped in known}
    for authority in (*gone, *(a for a in after.x509_authorities if a.tainted)):
        dropped = _dropped(authority)
        if dropped is not None:
            found[dropped.fingerprint] = dropped
    for authority in after.x509_authorities:
        if not authority.tainted:
            found.pop(_fingerprint(authority), None)
    return tuple(sorted((d for d in found.values() if d.not_after > now), key=_end)[-MAX_DROPPED:])


def without(bundle: TrustBundle, known: Iterable[Dropped]) -> TrustBundle:
    """The bundle less what was dropped; perhaps nothing is left."""
    refused = {dropped.fingerprint for dropped in known}
    kept = tuple(a for a in bundle.x509_authorities if _fingerprint(a) not in refused)
    return bundle if len(kept) == len(bundle.x509_authorities) else replace(bundle, x509_authorities=kept)


def _dropped(authority: X509Authority) -> Dropped | None:
    """None for what cannot be parsed: nothing verifies against that either."""
    try:
        end = load_authority(authority.certificate).not_valid_after_utc
    except BurgeeError:
        return None
    return Dropped(fingerprint=_fingerprint(authority), not_after=end)


def _fingerprint(authority: X509Authority) -> bytes:
    return hashlib.sha256(authority.certificate).digest()


def _end(dropped: Dropped) -> datetime:
    return dropped.not_after
