"""Who is calling: from a connection to a pinned process, its selectors, and the identities that they earn.

A process is attested when it first calls, again when it calls after `FRESH_SECONDS`, and every `interval_seconds` while
one of its streams lives, as far as `cpu_share` goes (sds.reattestation). One that ended has its streams ended, also
where somebody else holds their connections; so has one that became another user or program, and its connection is
closed, so that it comes back as what it is now. All streams of a process share one attestation. What the processes of
one workload may have open is limited, and their attestations take turns with those of others. One that hangs keeps its
workload's turn for as long as it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import grpc

from ca.errors import BurgeeError, Exhausted, Unauthenticated, Unavailable
from ca.identity.selector import Selector
from ca.ports import Clock, Process
from ca.runtime import threads
from ca.runtime.cpu import steps
from ca.runtime.log import get
from sds.attestation_ring import AttestationRing, Attested
from sds.cache import Cache, Subscription
from sds.limits import MAX_IDLE, LimitsConfig
from sds.memory import Charge, Memory, Room
from sds.peer import PinnedProcess, ProcessKey, caller_gone, pidfd_exited, read_start_time
from sds.program import Program
from sds.reattestation import Reattestation
from sds.shares import FairQueue, Places
from sds.workload_share import share_of_process

log = get("sds.workloads")

FRESH_SECONDS = 1.0
"""How long an attestation answers further calls of the same process."""

SELECTOR_BYTES = 192
"""What remembering one selector takes beside the letters of its value."""

PARTING_SECONDS = 0.25
"""From a caller's CALLER_CHANGED to the end of its connection: its client reads why before it has to connect anew."""

Attest = Callable[[Process], Awaitable[frozenset[Selector]]]
"""Every configured workload attestor's selectors together. Raises Unavailable when none could tell."""


Context = grpc.aio.ServicerContext[Any, Any]


class Caller(Protocol):
    """What is needed of the gate's Peer: who connected to the Unix socket."""

    @property
    def pid(self) -> int | None: ...

    @property
    def uid(self) -> int | None: ...

    @property
    def gid(self) -> int | None: ...

    @property
    def pidfd(self) -> int | None: ...

    @property
    def program(self) -> Program | None: ...

    def close(self, reason: str) -> None: ...


class Workload:
    """One process that called: its pin, its last attestation, its subscriptions, whose share of the room it uses."""

    def __init__(self, process: PinnedProcess, room: Room) -> None:
        self.process = process
        self.share = room.share
        self.selectors: frozenset[Selector] = frozenset()
        self.charge = Charge(room)
        self.attested_at: float | None = None
        self.attesting: asyncio.Task[None] | None = None
        self.last: Attested | None = None
        self.subscriptions: set[Subscription] = set()
        self.uses = 0
        self.gone = False

    @property
    def followed(self) -> bool:
        """Whether one of its streams lives."""
        return bool(self.subscriptions) and not self.gone


class Workloads:
    """See the module. `close` lets go of every process."""

    def __init__(
        self,
        *,
        attest: Attest,
        cache: Cache,
        clock: Clock,
        interval_seconds: float = 10.0,
        cpu_share: float = 0.1,
        limits: LimitsConfig | None = None,
        share_of: Callable[[Process], str] = share_of_process,
        ring: AttestationRing | None = None,
    ) -> None:
        self._attest = attest
        self._cache = cache
        self._clock = clock
        self._known: dict[ProcessKey, Workload] = {}
        self._idle: dict[ProcessKey, Workload] = {}
        self._share_of = share_of
        self.ring = ring or AttestationRing(clock)
        limits = limits or LimitsConfig()
        self.memory = Memory(limits.max_memory_bytes_per_workload)
        self._streams = Places(limits.max_streams_per_workload, what="open streams and calls", reason="STREAM_LIMIT")
        self._turns = FairQueue(
            total=limits.max_attestations,
            each=limits.max_attestations_per_workload,
            what="attestations",
            reason="ATTESTATION_STUCK",
        )
        self._stuck: set[ProcessKey] = set()
        self.again = Reattestation(
            self._again,
            clock=clock,
            interval_seconds=interval_seconds,
            cpu_share=cpu_share,
            each=max(limits.max_attestations_per_workload // 2, 1),
            total=max(limits.max_attestations // 2, 1),
        )

    def __len__(self) -> int:
        return len(self._known)

    @asynccontextmanager
    async def session(self, caller: Caller, *, needs_svid: bool, patient: bool = False) -> AsyncIterator[Subscription]:
        """Attest the caller and subscribe to what it may have, for as long as the block runs.

        `patient` waits for an agent that is starting. Raises Unauthenticated (CALLER_GONE, CALLER_CHANGED,
        CALLER_INVISIBLE), Exhausted (STREAM_LIMIT, MEMORY_LIMIT, ATTESTATION_STUCK), Unavailable (ATTESTATION_FAILED,
        AGENT_STARTING); a caller without any identity is no error here. The subscription ends with Unauthenticated when
        the process ends or changes, and with Unavailable or Exhausted when it can no longer be attested.
        """
        async with self.attested(caller, patient=patient) as workload:
            subscription = self._cache.subscribe(workload.selectors, needs_svid=needs_svid, share=workload.share)
            workload.subscriptions.add(subscription)
            self.again.follow(workload)
            try:
                yield subscription
            finally:
                workload.subscriptions.discard(subscription)
                self._cache.unsubscribe(subscription)

    @asynccontextmanager
    async def attested(self, caller: Caller, *, patient: bool = False) -> AsyncIterator[Workload]:
        """The calling process with fresh selectors; it stays pinned while the block runs, and what refuses it is kept
        in the ring."""
        workload: Workload | None = None
        try:
            workload = self._find(caller)
            async with self._held(workload, caller, patient=patient):
                yield workload
        except BurgeeError as error:
            self._refused(caller, workload, error)
            raise

    async def look_anew(self, caller: Caller) -> tuple[Attested | None, BurgeeError | None]:
        """Attest somebody on an administrator's behalf, whatever was found a moment ago: what was found, and what a
        call of his would be refused with. Raises Unauthenticated where there is no such process."""
        workload = self._find(caller)
        workload.attested_at = None
        before = workload.last
        try:
            async with self._held(workload, caller):
                return workload.last, None
        except BurgeeError as error:
            return (workload.last if workload.last is not before else None), error

    @asynccontextmanager
    async def _held(self, workload: Workload, caller: Caller, *, patient: bool = False) -> AsyncIterator[None]:
        workload.uses += 1
        self._idle.pop(workload.process.key, None)
        try:
            with self._streams.place(workload.share):
                if patient:
                    await self._cache.wait_ready()
                await self._ensure_fresh(workload)
                yield
        except Unauthenticated as error:
            if error.reason == "CALLER_CHANGED":
                # Its credentials are those of the moment when it connected: on this connection it is nobody for ever.
                asyncio.get_running_loop().call_later(PARTING_SECONDS, caller.close, error.reason)
            raise
        finally:
            workload.uses -= 1
            if not workload.uses:
                self._keep_a_moment(workload)

    def _refused(self, caller: Caller, workload: Workload | None, error: BurgeeError) -> None:
        self.ring.refused(
            error,
            pid=caller.pid or 0,
            uid=caller.uid or 0,
            gid=caller.gid or 0,
            share=workload.share if workload is not None else f"uid:{caller.uid}",
            attested=workload.last if workload is not None else None,
        )

    async def run(self) -> None:
        """Attest the callers of open streams again, for ever."""
        await self.again.run()

    def close(self) -> None:
        """End every subscription and let go of every process."""
        for workload in list(self._known.values()):
            self._remove(workload, lambda: Unavailable("the agent is stopping", reason="AGENT_STOPPING"))

    def _find(self, caller: Caller) -> Workload:
        if caller.pid is None or caller.uid is None or caller.gid is None or caller.pid <= 0:
            raise Unauthenticated("the calling process is not visible to the agent", reason="CALLER_INVISIBLE")
        known = self._known.get((caller.pid, read_start_time(caller.pid), caller.uid, caller.gid, caller.program))
        # The start time was read by pid: it is the caller's only if the caller lives still.
        if known is not None and (caller.pidfd is None or not pidfd_exited(caller.pidfd)):
            return known
        process = PinnedProcess.pin(
            pid=caller.pid, uid=caller.uid, gid=caller.gid, pidfd=caller.pidfd, program=caller.program
        )
        workload = self._known.get(process.key)
        if workload is not None:
            process.close()
            return workload
        workload = self._known[process.key] = Workload(process, self.memory.room(self._share_of(process)))
        if process.pidfd is not None:
            asyncio.get_running_loop().add_reader(process.pidfd, self._remove, workload, caller_gone)
        return workload

    async def _ensure_fresh(self, workload: Workload) -> None:
        age = None if workload.attested_at is None else self._clock.monotonic() - workload.attested_at
        if age is None or age >= FRESH_SECONDS or workload.attesting is not None:
            await self._attest_shared(workload)
        else:
            workload.process.ensure_same_program()
        workload.process.ensure_alive()

    async def _attest_shared(self, workload: Workload) -> None:
        """One attestation at a time for each process; whoever comes meanwhile waits for the same one."""
        if workload.attesting is None:
            workload.attesting = asyncio.create_task(steps(self._attest_now, workload))
            workload.attesting.add_done_callback(_look_at)
        await asyncio.shield(workload.attesting)

    async def _attest_now(self, workload: Workload) -> None:
        try:
            with self.ring.attesting(workload.process, workload.share) as workload.last:
                selectors = await self._look(workload)
                # Whatever was read is the caller's only if it lives still, and still is what connected.
                workload.process.ensure_alive()
                workload.process.ensure_same_program()
                workload.last.selectors = selectors
        except (Unauthenticated, Exhausted):
            raise
        except Exception as error:  # whatever a plugin does wrong, its caller has no selectors then
            log.warning("attestation failed", reason="ATTESTATION_FAILED", pid=workload.process.pid, cause=str(error))
            raise attestation_failed() from error
        finally:
            workload.attesting = None
        changed = selectors != workload.selectors
        if changed:
            workload.charge.set(sum(len(selector.value) + SELECTOR_BYTES for selector in selectors))
        workload.attested_at = self._clock.monotonic()
        if changed:
            workload.selectors = selectors
            for subscription in list(workload.subscriptions):
                self._cache.move(subscription, selectors)

    async def _look(self, workload: Workload) -> frozenset[Selector]:
        """The selectors of the workload's process, in its share's turn; what hangs keeps the turn until it ends.

        Raises Exhausted (ATTESTATION_STUCK) where the process, or as many others of its share as may be attested at
        once, are being looked at without end.
        """
        process, key = workload.process, workload.process.key
        if key in self._stuck:  # another thread would hang as well
            raise self._turns.refusal()
        async with self._turns.turn(workload.share) as turn:
            process.ensure_alive()
            with threads.watch() as unfinished:
                try:
                    return await self._attest(process)
                finally:
                    turn.unfinished = unfinished()
                    if turn.unfinished:
                        self._stuck.add(key)
                        threads.when_over(turn.unfinished, partial(self._stuck.discard, key))
                        log.warning(
                            "an attestation hangs", reason="ATTESTATION_STUCK", pid=process.pid, workload=workload.share
                        )

    async def _again(self, workload: Workload) -> None:
        try:
            await self._attest_shared(workload)
        except Unauthenticated as error:
            self._remove(workload, partial(_anew, error) if error.reason == "CALLER_CHANGED" else caller_gone)
        except Exhausted as error:
            self._remove(workload, partial(_anew, error))
        except Unavailable:
            # It cannot be told any more who this is: fail closed, the workload may call again.
            self._remove(workload, attestation_failed)

    def _keep_a_moment(self, workload: Workload) -> None:
        """The next call of the same process need not attest again; of too many such processes the earliest goes."""
        if self._known.get(workload.process.key) is not workload:
            return
        self._idle[workload.process.key] = workload
        if len(self._idle) > MAX_IDLE:
            self._remove(next(iter(self._idle.values())), caller_gone)
        asyncio.get_running_loop().call_later(FRESH_SECONDS, self._forget_if_idle, workload)

    def _forget_if_idle(self, workload: Workload) -> None:
        if not workload.uses:
            self._remove(workload, caller_gone)

    def _remove(self, workload: Workload, error: Callable[[], BurgeeError]) -> None:
        if self._known.get(workload.process.key) is not workload:
            return
        del self._known[workload.process.key]
        self._idle.pop(workload.process.key, None)
        if workload.process.pidfd is not None:
            asyncio.get_running_loop().remove_reader(workload.process.pidfd)
        for subscription in workload.subscriptions:
            subscription.end(error)
        workload.gone = True
        workload.charge.set(0)
        workload.process.close()


@asynccontextmanager
async def quiet_exit(context: Context) -> AsyncIterator[None]:
    """Around an open stream: that a caller exits ends it with its status and is no refusal worth a line in the log."""
    try:
        yield
    except Unauthenticated as error:
        if error.reason != "CALLER_GONE":
            raise
        # Most often the connection has gone with the process: an abort would then fail, a status does not.
        context.set_code(grpc.StatusCode.UNAUTHENTICATED)
        context.set_details(error.detail)


def _anew(error: BurgeeError) -> BurgeeError:
    """The same error for each of several streams."""
    return type(error)(error.detail, reason=error.reason, hint=error.hint)


def _look_at(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # every waiter may have hung up; the failure is logged where it happened


def attestation_failed() -> Unavailable:
    """The caller is there, and no attestor could say what it is."""
    return Unavailable("workload attestation failed", reason="ATTESTATION_FAILED")
