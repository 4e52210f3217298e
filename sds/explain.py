"""Why a caller has no identity: which entry came nearest, and what it still lacks."""

from __future__ import annotations

from collections.abc import Iterable

from ca.errors import Denied
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector

SHOWN = 5


def no_identity() -> Denied:
    """The caller was attested and no registration entry is for it (Workload API §5.2.1, §6.2.1: F21, F32).

    The caller learns no more than that; what came nearest is in the log.
    """
    return Denied("no identity issued", reason="NO_IDENTITY")


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
