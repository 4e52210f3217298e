"""Items of a batch that were refused: counted and logged, since the call as a whole is none that was refused."""

from __future__ import annotations

from collections.abc import Iterable

from ca.errors import BurgeeError
from ca.identity.spiffe_id import SpiffeId
from ca.identity.text import quote
from ca.runtime import log

logger = log.get("svid")


def log_refused(agent_id: SpiffeId, refused: Iterable[tuple[str, BurgeeError]]) -> None:
    """One line for each reason, however many items had it; `refused` are pairs of entry id (as the caller sent it) and
    why."""
    by_reason: dict[str, list[tuple[str, BurgeeError]]] = {}
    for entry_id, error in refused:
        by_reason.setdefault(error.reason, []).append((entry_id, error))
    for reason, items in by_reason.items():
        entry_id, first = items[0]
        logger.info(
            "X.509-SVIDs refused",
            reason=reason,
            detail=first.detail,
            count=len(items),
            agent=str(agent_id),
            first_entry=quote(entry_id),
        )
