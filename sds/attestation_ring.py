"""What was found about callers lately, attestor by attestor, and who was refused why: for administrators alone.

Kept in memory, within bounds that one workload cannot use up for all. A refusal is found by the id that the refused
caller was told, the request id of its call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from attestor.workload.run import Attestation, AttestationRefused, Outcome
from ca.errors import BurgeeError, Unavailable, remembered
from ca.identity.selector import Selector
from ca.ports import Clock, Process
from ca.runtime import log
from ca.runtime.ring import Bounds, FairRing
from sds.peer import ProcessKey

TOTAL = Bounds(items=1024, bytes=1 << 20)
EACH = Bounds(items=96, bytes=128 << 10)

RECORD_BYTES = 400
"""What one record takes beside its texts."""
OUTCOME_BYTES = 200
SELECTOR_BYTES = 120

_outcomes: ContextVar[list[Outcome] | None] = ContextVar("burgee_outcomes", default=None)


class Pinned(Process, Protocol):
    """What is needed of a pinned process: which one it is."""

    @property
    def key(self) -> ProcessKey: ...


@dataclass(slots=True, kw_only=True)
class Attested:
    """One attestation. `again` counts those that found the very same since, the last of them at `last_at`."""

    at: datetime
    key: ProcessKey
    share: str
    outcomes: tuple[Outcome, ...] = ()
    selectors: frozenset[Selector] = frozenset()
    error: BurgeeError | None = None
    again: int = 0
    last_at: datetime | None = None
    size: int = 0
    kept: bool = True

    @property
    def pid(self) -> int:
        return self.key[0]

    def same_as(self, other: Attested) -> bool:
        """Whether nothing is new in the other but its time."""
        return (
            (self.key, self.selectors, _reason(self.error)) == (other.key, other.selectors, _reason(other.error))
            and len(self.outcomes) == len(other.outcomes)
            and all(
                (a.attestor, _reason(a.error), len(a.selectors)) == (b.attestor, _reason(b.error), len(b.selectors))
                for a, b in zip(self.outcomes, other.outcomes, strict=True)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One call that was refused. `id` is what its caller was told; `attested` what was known of the caller."""

    id: str
    at: datetime
    pid: int
    uid: int
    gid: int
    share: str
    error: BurgeeError
    attested: Attested | None = None


Record = Attested | Refused


class AttestationRing:
    """See the module. Its methods never fail."""

    def __init__(self, clock: Clock, *, total: Bounds = TOTAL, each: Bounds = EACH) -> None:
        self._clock = clock
        self._ring: FairRing[Record] = FairRing(total=total, each=each)
        self._last: dict[ProcessKey, Attested] = {}

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def used_bytes(self) -> int:
        """About what all that is kept takes."""
        return self._ring.used_bytes

    @contextmanager
    def attesting(self, process: Pinned, share: str) -> Iterator[Attested]:
        """One attestation, the block; it sets `selectors`. Kept when the block ends, with the error that ended it."""
        record = Attested(at=self._clock.now(), key=process.key, share=share)
        told: list[Outcome] = []
        token = _outcomes.set(told)
        try:
            yield record
        except BaseException as error:
            record.error = remembered(error if isinstance(error, BurgeeError) else _cut_off(error))
            raise
        finally:
            _outcomes.reset(token)
            record.outcomes = tuple(told)
            self._keep(record)

    def refused(
        self, error: BurgeeError, *, pid: int, uid: int, gid: int, share: str, attested: Attested | None = None
    ) -> None:
        """The call that runs now is refused; `attested` is what was known of its caller."""
        record = Refused(
            id=log.request_id.get(),
            at=self._clock.now(),
            pid=pid,
            uid=uid,
            gid=gid,
            share=share,
            error=remembered(error),
            attested=attested,
        )
        self._put(record, RECORD_BYTES + len(error.detail) + len(error.hint) + len(share))

    def by_id(self, refusal: str) -> Refused | None:
        """The refusal with this id: where a call asked on another's behalf, that of the other."""
        found = [record for record in self._ring if isinstance(record, Refused) and record.id == refusal]
        return found[-1] if refusal and found else None

    def of(self, pid: int) -> list[Record]:
        """What is kept of a pid, the newest first; whoever had that pid before is in it."""
        return [record for record in self._ring if record.pid == pid]

    def _keep(self, record: Attested) -> None:
        record.size = _size_of(record)
        last = self._last.get(record.key)
        if last is not None and last.kept and last.same_as(record) and record.size <= last.size:
            last.outcomes = record.outcomes
            last.again += 1
            last.last_at = record.at
            return
        self._last[record.key] = record
        self._put(record, record.size)

    def _put(self, record: Record, size: int) -> None:
        for gone in self._ring.put(record.share, record, size):
            if isinstance(gone, Attested):
                gone.kept = False
                if self._last.get(gone.key) is gone:
                    del self._last[gone.key]


def telling(attest: Callable[[Process], Awaitable[Attestation]]) -> Callable[[Process], Awaitable[frozenset[Selector]]]:
    """`attest` for whoever wants the selectors alone; what each attestor said goes to the ring's record."""

    async def selectors(process: Process) -> frozenset[Selector]:
        told = _outcomes.get()
        try:
            done = await attest(process)
        except AttestationRefused as refused:
            if told is not None:
                told += refused.outcomes
            raise
        if told is not None:
            told += done.outcomes
        return done.selectors

    return selectors


def _cut_off(error: BaseException) -> BurgeeError:
    return Unavailable(f"the attestation was cut off: {type(error).__name__}", reason="ATTESTATION_FAILED")


def _size_of(record: Attested) -> int:
    texts = sum(OUTCOME_BYTES + _size(outcome) for outcome in record.outcomes)
    selectors = sum(SELECTOR_BYTES + len(selector.value) for selector in record.selectors)
    return RECORD_BYTES + len(record.share) + texts + selectors


def _size(outcome: Outcome) -> int:
    error = outcome.error
    said = len(error.detail) + len(error.hint) if error is not None else 0
    return said + sum(len(note.what) + len(note.value) + OUTCOME_BYTES for note in outcome.notes)


def _reason(error: BurgeeError | None) -> str:
    return "" if error is None else error.reason
