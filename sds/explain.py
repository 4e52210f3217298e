"""Why a caller has no identity: which entries came nearest, and what they still lack. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from datetime import datetime

from ca.errors import Denied
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from sds.gone import Gone

SHOWN = 5
NEAREST = 3
"""How many entries are shown to whoever does not say."""

EXPIRED_REASON = "ENTRY_EXPIRED"
REMOVED_REASON = "ENTRY_REMOVED"
STORED_REASON = "ENTRY_STORED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """An entry that a caller has not earned: of its selectors those that he has, and those that he lacks. `reason`: why
    it is out of use all the same, since `since`."""

    entry: RegistrationEntry
    matches: tuple[Selector, ...]
    misses: tuple[Selector, ...]
    reason: str = ""
    since: datetime | None = None


def no_identity() -> Denied:
    """The caller was attested and no registration entry is for it (Workload API §5.2.1, §6.2.1: F21, F32).

    The caller learns no more than that; what came nearest is in the log.
    """
    return Denied("no identity issued", reason="NO_IDENTITY")


def nearest(
    entries: Iterable[RegistrationEntry],
    selectors: frozenset[Selector],
    *,
    gone: Iterable[Gone] = (),
    silent: Set[str] = frozenset(),
    now: datetime | None = None,
    limit: int = NEAREST,
) -> list[Near]:
    """Entries that do not give this caller an identity, those first that lack the fewest of his selectors.

    `silent` are the types of selectors that nobody could look for: lacking one of them says nothing about the caller.
    An entry that shares nothing with him is none of them; of those that are `gone`, newest first, there is the first
    alone that lacks nothing.
    """
    every = [_near(entry, selectors, *_out_of_use(entry, now)) for entry in entries]
    present = {near.entry.id for near in every}
    fitting = (lost for lost in gone if lost.entry.id not in present and _fits(lost.entry, selectors))
    if (lost := next(fitting, None)) is not None:
        since = lost.entry.expires_at if lost.expired else lost.since
        every.append(_near(lost.entry, selectors, EXPIRED_REASON if lost.expired else REMOVED_REASON, since))
    found = [near for near in every if (near.misses or near.reason) and (near.matches or _unseen(near, silent))]
    return sorted(found, key=lambda near: _distance(near, silent))[:limit]


def nearest_miss(
    entries: Iterable[RegistrationEntry], selectors: frozenset[Selector]
) -> tuple[RegistrationEntry, frozenset[Selector]] | None:
    """The entry that lacks the fewest selectors of this caller, and those it lacks; None when none has any."""
    best: tuple[RegistrationEntry, frozenset[Selector]] | None = None
    for entry in entries:
        lacking = entry.selectors - selectors
        if len(lacking) == len(entry.selectors):
            continue
        if best is None or (len(lacking), entry.id) < (len(best[1]), best[0].id):
            best = (entry, lacking)
    return best


def explain_no_identity(entries: Iterable[RegistrationEntry], selectors: frozenset[Selector]) -> str:
    """One line for the log."""
    seen = ", ".join(str(selector) for selector in sorted(selectors)) or "none"
    miss = nearest_miss(entries, selectors)
    if miss is None:
        return f"the caller's selectors ({seen}) are in no entry of this agent"
    entry, lacking = miss
    wanted = ", ".join(str(selector) for selector in sorted(lacking)[:SHOWN])
    why = f"it lacks {wanted}" if lacking else "that entry has expired or belongs to a secret store"
    return f"the caller's selectors are {seen}; entry {entry.id} ({entry.spiffe_id}) came nearest: {why}"


def _fits(entry: RegistrationEntry, selectors: frozenset[Selector]) -> bool:
    return bool(entry.selectors) and entry.selectors <= selectors


def _near(entry: RegistrationEntry, selectors: frozenset[Selector], reason: str, since: datetime | None) -> Near:
    return Near(
        entry=entry,
        matches=tuple(sorted(entry.selectors & selectors)),
        misses=tuple(sorted(entry.selectors - selectors)),
        reason=reason,
        since=since,
    )


def _out_of_use(entry: RegistrationEntry, now: datetime | None) -> tuple[str, datetime | None]:
    if entry.store_svid:
        return STORED_REASON, None
    if now is not None and entry.expires_at is not None and entry.expires_at <= now:
        return EXPIRED_REASON, entry.expires_at
    return "", None


def _unseen(near: Near, silent: Set[str]) -> list[Selector]:
    return [selector for selector in near.misses if selector.type in silent]


def _distance(near: Near, silent: Set[str]) -> tuple[int, int, int, float, str]:
    """What the caller is known to lack counts most; of those that are out of use the latest comes first."""
    lacking: Iterator[Selector] = (selector for selector in near.misses if selector.type not in silent)
    since = near.since.timestamp() if near.since is not None else 0.0
    return sum(1 for _ in lacking), len(near.misses), -len(near.matches), -since, near.entry.id
