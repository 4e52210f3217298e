"""How nodes attested lately: what each verifier compared, and what came of it. For administrators alone, in memory.

Whoever proved which agent he is has a share of his own; all others share by the address that they come from, and in a
ring apart, so that no stranger pushes out what is known of agents.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from ca.errors import BurgeeError, Unavailable, remembered
from ca.identity.spiffe_id import SpiffeId
from ca.identity.text import printable
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.gate import current_peer
from ca.runtime.notes import Note, collecting
from ca.runtime.ring import Bounds, FairRing

AGENTS = Bounds(items=4096, bytes=4 << 20)
EACH_AGENT = Bounds(items=32, bytes=64 << 10)
STRANGERS = Bounds(items=1024, bytes=1 << 20)
EACH_ADDRESS = Bounds(items=64, bytes=128 << 10)

RECORD_BYTES = 600
NOTE_BYTES = 150
CAUSE_CHARACTERS = 512


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attestation. `agent_id` is None where the evidence proved nobody; `again` counts those that ended the same
    way since, the last of them at `last_at`."""

    id: str
    at: datetime
    attestor: str
    peer: str
    seconds: float = 0.0
    agent_id: SpiffeId | None = None
    error: BurgeeError | None = None
    cause: str = ""
    """What stood behind the error, for those who may know."""
    notes: tuple[Note, ...] = ()
    again: int = 0
    last_at: datetime | None = None
    number: int = 0
    """Grows from one to the next: many may come within the clock's resolution."""

    @property
    def host(self) -> str:
        """The address without the port."""
        return self.peer.rpartition(":")[0].strip("[]").partition("%")[0]

    @property
    def origin(self) -> str:
        """The address; of IPv6 the network: a host has as many addresses of that as it likes."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:  # on the Unix socket, where it is a pid
            return self.peer.partition(":")[0]
        return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else self.host

    @property
    def newest_at(self) -> datetime:
        """When it happened last."""
        return self.last_at or self.at

    def failed(self, error: BaseException) -> None:
        """It ended so."""
        found = error if isinstance(error, BurgeeError) else _cut_off(error)
        self.error, self.cause = remembered(found), _said(found.__cause__)

    def same_as(self, other: Attempt) -> bool:
        """Whether nothing is new in the other but its time."""
        mine = (self.agent_id, self.attestor, self.origin, _reason(self.error))
        return mine == (other.agent_id, other.attestor, other.origin, _reason(other.error))

    def size(self) -> int:
        """About what keeping it takes."""
        said = len(self.error.detail) + len(self.error.hint) + CAUSE_CHARACTERS if self.error is not None else 0
        return RECORD_BYTES + said + sum(NOTE_BYTES + len(note.what) + len(note.value) for note in self.notes)


class AttestationRing:
    """See the module. Its methods never fail."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._agents: FairRing[Attempt] = FairRing(total=AGENTS, each=EACH_AGENT)
        self._strangers: FairRing[Attempt] = FairRing(total=STRANGERS, each=EACH_ADDRESS)
        self._last: dict[str, Attempt] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._agents) + len(self._strangers)

    @contextmanager
    def attempt(self, attestor: str) -> Iterator[Attempt]:
        """One attestation, the block; it sets `agent_id` when it knows. Kept when the block ends, however it ends."""
        peer = current_peer.get(None)
        made = Attempt(
            id=log.request_id.get(),
            at=self._clock.now(),
            attestor=printable(attestor[:64]),
            peer=peer.remote_address if peer is not None else "",
        )
        begun = self._clock.monotonic()
        with collecting() as notes:
            try:
                yield made
            except BaseException as error:
                made.failed(error)
                raise
            finally:
                made.seconds, made.notes = self._clock.monotonic() - begun, tuple(notes)
                self._keep(made)

    def __iter__(self) -> Iterator[Attempt]:
        """All, the newest first."""
        return iter(sorted((*self._agents, *self._strangers), key=lambda made: made.number, reverse=True))

    def _keep(self, made: Attempt) -> None:
        made.number = next(self._numbers)
        share = str(made.agent_id) if made.agent_id is not None else f"from {made.origin}"
        last = self._last.get(share)
        if last is not None and last.same_as(made):
            last.id, last.seconds, last.last_at = made.id, made.seconds, made.at
            last.number, last.again = made.number, last.again + 1
            if made.size() <= last.size():
                last.error, last.cause, last.notes = made.error, made.cause, made.notes
            return
        self._last[share] = made
        ring = self._agents if made.agent_id is not None else self._strangers
        for gone in ring.put(share, made, made.size()):
            self._forget(gone)

    def _forget(self, gone: Attempt) -> None:
        share = str(gone.agent_id) if gone.agent_id is not None else f"from {gone.origin}"
        if self._last.get(share) is gone:
            del self._last[share]


def _cut_off(error: BaseException) -> BurgeeError:
    return Unavailable(
        f"the caller left before it was over, or it took too long ({type(error).__name__})",
        reason="ATTESTATION_CUT_OFF",
        hint="did the agent answer the challenge? its log says how the attestation ended there",
    )


def _said(cause: BaseException | None) -> str:
    return "" if cause is None else printable(f"{type(cause).__name__}: {cause}"[:CAUSE_CHARACTERS])


def _reason(error: BurgeeError | None) -> str:
    """With the one behind it: a caller may be told less than what made the difference."""
    if error is None:
        return ""
    cause = error.__cause__
    return f"{error.reason} {cause.reason}" if isinstance(cause, BurgeeError) else error.reason
