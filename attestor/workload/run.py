"""Asks every workload attestor about one process, and keeps what each of them answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ca.errors import BurgeeError, Internal, Unauthenticated, Unavailable, remembered
from ca.identity.selector import Selector
from ca.ports import Process, WorkloadAttestor
from ca.runtime.cpu import steps
from ca.runtime.log import get
from ca.runtime.notes import Note, collecting

TIMEOUT_SECONDS = 5.0
"""What one attestor may take unless its own deadline says otherwise."""

log = get("attestor.workload")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one attestor found, or why it could not tell; what it noted, and how long it took."""

    attestor: str
    selectors: frozenset[Selector] = frozenset()
    error: BurgeeError | None = None
    seconds: float = 0.0
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """The selectors of a process and how each attestor fared."""

    selectors: frozenset[Selector]
    outcomes: tuple[Outcome, ...]


class AttestationRefused(Unavailable):
    """No attestor could tell anything. `outcomes` says what each of them met."""

    reason = "WORKLOAD_ATTESTATION_FAILED"

    def __init__(self, outcomes: tuple[Outcome, ...]) -> None:
        super().__init__("workload attestation failed", hint="the agent's log says what each attestor met")
        self.outcomes = outcomes


@dataclass(kw_only=True)
class _Look:
    """One attestor at its work."""

    attestor: str
    task: asyncio.Task[frozenset[Selector]]
    deadline_seconds: float
    begun: float = field(default_factory=time.monotonic)
    ended: float | None = None
    notes: list[Note] = field(default_factory=list)

    def over(self, _: asyncio.Task[frozenset[Selector]]) -> None:
        self.ended = time.monotonic()

    def left(self) -> float:
        return self.begun + self.deadline_seconds - time.monotonic()


async def attest_all(
    attestors: Mapping[str, WorkloadAttestor],
    process: Process,
    *,
    deadlines: Mapping[str, float] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Attestation:
    """All attestors at once; what some cannot tell is tolerated. `deadlines` has seconds by attestor.

    Raises Unauthenticated when the process has gone, AttestationRefused when no attestor could tell anything.
    """
    process.ensure_alive()
    deadlines = deadlines or {}
    looks = [
        _begin(name, attestor, process, deadlines.get(name, timeout_seconds)) for name, attestor in attestors.items()
    ]
    try:
        await _until_over(looks)
    finally:
        for look in looks:  # one that does not heed it goes on, and nobody waits for it
            look.task.cancel()
            look.task.add_done_callback(_taken_note_of)
    outcomes = tuple(_outcome(look, process.pid) for look in looks)
    process.ensure_alive()  # whatever was found belongs to the process that called, and to no later owner of its pid
    _log_failures(outcomes, process.pid)
    if outcomes and all(outcome.error is not None for outcome in outcomes):
        why = "; ".join(f"{o.attestor}: {o.error.detail}" for o in outcomes if o.error is not None)
        raise AttestationRefused(outcomes) from RuntimeError(why)
    return Attestation(selectors=frozenset().union(*(o.selectors for o in outcomes)), outcomes=outcomes)


def _begin(name: str, attestor: WorkloadAttestor, process: Process, deadline_seconds: float) -> _Look:
    with collecting() as notes:  # the task has a copy of this context
        task = asyncio.ensure_future(steps(_attest, attestor, process))
    look = _Look(attestor=name, task=task, deadline_seconds=deadline_seconds, notes=notes)
    task.add_done_callback(look.over)
    return look


async def _attest(attestor: WorkloadAttestor, process: Process) -> frozenset[Selector]:
    return await attestor.attest(process)


async def _until_over(looks: list[_Look]) -> None:
    """Until each has ended or has no time left. Raises Unauthenticated at once when one finds the process gone."""
    running = {look.task: look for look in looks}
    while running:
        left = min(look.left() for look in running.values())
        done, _ = await asyncio.wait(running, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            del running[task]
            if not task.cancelled() and isinstance(error := task.exception(), Unauthenticated):
                raise error
        running = {task: look for task, look in running.items() if look.left() > 0}


def _outcome(look: _Look, pid: int) -> Outcome:
    ended = look.ended if look.ended is not None else time.monotonic()
    found = _found(look, pid)
    seconds, notes = ended - look.begun, tuple(look.notes)
    if isinstance(found, BurgeeError):
        return Outcome(attestor=look.attestor, error=found, seconds=seconds, notes=notes)
    return Outcome(attestor=look.attestor, selectors=found, seconds=seconds, notes=notes)


def _found(look: _Look, pid: int) -> frozenset[Selector] | BurgeeError:
    if not look.task.done():
        return Unavailable(f"no answer within {look.deadline_seconds:g} seconds", reason="ATTESTOR_TIMEOUT")
    try:
        selectors = look.task.result()
    except BurgeeError as error:
        return remembered(error)
    except (Exception, asyncio.CancelledError):
        # A plugin's own fault must not take the other attestors' findings away.
        log.exception("workload attestor crashed", attestor=look.attestor, pid=pid)
        return Internal("the attestor crashed", reason="ATTESTOR_CRASHED")
    foreign = sorted(selector for selector in selectors if selector.type != look.attestor)
    if foreign:
        # Selectors earn identities: an attestor vouches for its own type only.
        detail = f"returned the selector `{foreign[0]}`, which is another attestor's"
        return Internal(detail, reason="ATTESTOR_FOREIGN_SELECTOR")
    return selectors


def _log_failures(outcomes: Iterable[Outcome], pid: int) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            log.warning(
                "workload attestor failed",
                attestor=outcome.attestor,
                pid=pid,
                reason=outcome.error.reason,
                detail=outcome.error.detail,
                seconds=round(outcome.seconds, 3),
            )


def _taken_note_of(task: asyncio.Task[frozenset[Selector]]) -> None:
    """An attestor that was given up may fail still: nobody asks any more, and asyncio need not complain."""
    if not task.cancelled():
        task.exception()
