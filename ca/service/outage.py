"""If the server stopped now, or got no further authority: who would fail first, and when. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority.state import Authority, AuthorityKind, AuthorityState
from ca.service.live_index import Holder, Live


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Something that fails at a time; of `count` alike half have failed by `half_at`, and all by `last_at`."""

    what: str
    at: datetime
    who: str = ""
    count: int = 0
    half_at: datetime | None = None
    last_at: datetime | None = None


_WORDS = {
    Holder.WORKLOAD: "X.509-SVIDs of workloads",
    Holder.DOWNSTREAM: "authorities of servers below this one",
    Holder.MINTED: "SVIDs minted by an administrator",
}


def without_server(
    *, alive: Sequence[Live], agents: Sequence[tuple[str, datetime]], tokens_end: datetime | None, now: datetime
) -> list[Loss]:
    """The first to fail first. `agents` are (ID, end of its SVID), `tokens_end` is when the last JWT-SVID ends."""
    losses = [
        Loss(what="new nodes, new entries, new JWT-SVIDs", at=now),
        *([Loss(what="JWT-SVIDs that agents have in store", at=tokens_end)] if tokens_end else []),
        *_losses("agents' own SVIDs", agents),
    ]
    for holder, words in _WORDS.items():
        losses += _losses(words, [(_who(live), live.not_after) for live in alive if live.holder is holder])
    return sorted(losses, key=lambda loss: loss.at)


def without_authority(own: Sequence[Authority], longest: dict[AuthorityKind, timedelta]) -> list[Loss]:
    """The last useful second of what signs, or can without any further authority, and when lives begin to be cut
    short before it."""
    slots = (AuthorityState.ACTIVE, AuthorityState.PREPARED)
    losses: list[Loss] = []
    for kind in AuthorityKind:
        able = [one for one in own if one.kind == kind and one.status in slots and not one.tainted]
        if not able:
            continue
        last = max(able, key=lambda one: one.not_after)
        name = "X.509-SVIDs" if kind == AuthorityKind.X509 else "JWT-SVIDs"
        cut = last.not_after - longest[kind]
        losses.append(Loss(what=f"new {name} begin to be cut short", at=cut, who=last.authority_id))
        losses.append(Loss(what=f"no more {name}", at=last.not_after, who=last.authority_id))
    return sorted(losses, key=lambda loss: loss.at)


def _losses(what: str, ends: Sequence[tuple[str, datetime]]) -> list[Loss]:
    """One line for all that are alike."""
    if not ends:
        return []
    ordered = sorted(ends, key=lambda end: end[1])
    who, first = ordered[0]
    half, last = ordered[(len(ordered) - 1) // 2][1], ordered[-1][1]
    return [Loss(what=what, at=first, who=who, count=len(ordered), half_at=half, last_at=last)]


def _who(live: Live) -> str:
    return f"{live.spiffe_id} on {live.agent}" if live.agent else live.spiffe_id
