"""What was issued and is alive, compact: for each holder of an X.509-SVID the last, for each JWT key its last token.

Pure: records in, answers out. Alive is what has not ended and not been superseded. A workload's SVID is superseded by
the next for the same agent and entry; a server's own by its next. An agent's own has several alive until the agent
shows which it uses; what was minted by hand, and certificates of downstream authorities, live until their end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Set
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from ca.identity.exchange import is_requester
from ca.store.values import IssuanceRecord

_NEVER = datetime.max.replace(tzinfo=UTC)


class Holder(StrEnum):
    """Whose it is."""

    WORKLOAD = "workload"
    AGENT = "agent"
    SERVER = "server"
    MINTED = "minted"
    DOWNSTREAM = "downstream"
    EXCHANGED = "exchanged"


class Live(NamedTuple):
    """One X.509-SVID or downstream authority that is alive. `authority_id` is its direct issuer's; `serial` decimal."""

    holder: Holder
    spiffe_id: str
    agent: str
    entry_id: str
    server: str
    serial: str
    authority_id: str
    not_before: datetime
    not_after: datetime


class Tokens(NamedTuple):
    """The JWT-SVIDs of one key, those included that ended since they were counted."""

    number: int
    last_not_after: datetime


class Superseded(NamedTuple):
    """An SVID that has a successor of another authority and has not ended: whoever did not get the successor, or has
    not taken it over, uses it still."""

    live: Live
    by: Live


class _Slot(NamedTuple):
    batch: int
    live: Live
    before: tuple[Live, ...] = ()
    """The last of each other authority."""


class LiveIndex:
    """`add` batches in any order; a greater batch number is the later one."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, str, str], _Slot] = {}
        self._tokens: dict[str, Tokens] = {}
        self._soonest = _NEVER
        """Until then nothing is to be forgotten."""

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, batch: int, records: Iterable[IssuanceRecord]) -> None:
        """Takes in one batch; what has ended already counts only as the successor of what has not."""
        for record in records:
            if record.kind in ("jwt", "wit"):
                self.add_tokens(record.authority_id, 1, record.not_after)
            elif (live := _live(record)) is not None:
                self._put(batch, live)

    def _put(self, batch: int, live: Live) -> None:
        key = _key(live)
        self._soonest = min(self._soonest, live.not_after)
        known = self._slots.get(key)
        if known is None:
            self._slots[key] = _Slot(batch, live)
        elif batch >= known.batch:
            earlier = (*known.before, known.live)
            self._slots[key] = _Slot(batch, live, tuple(e for e in earlier if e.authority_id != live.authority_id))

    def add_tokens(self, authority_id: str, count: int, last_not_after: datetime) -> None:
        known = self._tokens.get(authority_id)
        if known is not None:
            count, last_not_after = known.number + count, max(known.last_not_after, last_not_after)
        self._tokens[sys.intern(authority_id)] = Tokens(count, last_not_after)
        self._soonest = min(self._soonest, last_not_after)

    def expire(self, now: datetime) -> None:
        """Forgets what has ended; looks through it only when something may have."""
        if now < self._soonest:
            return
        for key, slot in list(self._slots.items()):
            before = tuple(live for live in slot.before if live.not_after > now)
            if slot.live.not_after <= now and not before:
                del self._slots[key]
            elif len(before) != len(slot.before):
                self._slots[key] = slot._replace(before=before)
        for kid in [kid for kid, tokens in self._tokens.items() if tokens.last_not_after <= now]:
            del self._tokens[kid]
        self._soonest = min((end for end in self._ends() if end > now), default=_NEVER)

    def _ends(self) -> Iterator[datetime]:
        """Of all that is kept, the successor included that ended before what it superseded."""
        for slot in self._slots.values():
            yield from (live.not_after for live in (slot.live, *slot.before))
        yield from (tokens.last_not_after for tokens in self._tokens.values())

    def all(self, now: datetime) -> Iterator[Live]:
        """Everything but tokens."""
        return (slot.live for slot in self._slots.values() if slot.live.not_after > now)

    def on(self, authorities: Set[str], now: datetime) -> list[Live]:
        """What one of these signed itself."""
        return [live for live in self.all(now) if live.authority_id in authorities]

    def superseded(self, authorities: Set[str], now: datetime) -> list[Superseded]:
        """What one of these signed itself, and has a successor of an authority that is not one of these."""
        return [
            Superseded(before, slot.live)
            for slot in self._slots.values()
            if slot.live.authority_id not in authorities
            for before in slot.before
            if before.authority_id in authorities and before.not_after > now
        ]

    def tokens(self, key_id: str) -> Tokens | None:
        """None when none can be alive."""
        return self._tokens.get(key_id)


def _live(record: IssuanceRecord) -> Live | None:
    """None for a server's own root."""
    holder = _holder(record)
    if holder is None:
        return None
    return Live(
        holder=holder,
        spiffe_id=sys.intern(record.spiffe_id),
        agent=sys.intern(record.agent),
        entry_id=record.entry_id,
        server=sys.intern(record.server),
        serial=record.serial_or_kid,
        authority_id=sys.intern(record.authority_id),
        not_before=record.not_before,
        not_after=record.not_after,
    )


def _holder(record: IssuanceRecord) -> Holder | None:
    if record.kind == "ca":
        return Holder.DOWNSTREAM if record.entry_id else None
    if is_requester(record.agent):
        return Holder.EXCHANGED
    if record.entry_id:
        return Holder.WORKLOAD
    if record.agent:
        return Holder.AGENT
    return Holder.SERVER if record.spiffe_id.endswith("/spire/server") else Holder.MINTED


def _key(live: Live) -> tuple[str, str, str]:
    """What the next of its kind takes the place of."""
    if live.holder is Holder.WORKLOAD:
        return (live.holder, live.agent, live.entry_id)
    if live.holder is Holder.SERVER:
        return (live.holder, live.server, "")
    return (live.holder, live.agent, live.serial)
