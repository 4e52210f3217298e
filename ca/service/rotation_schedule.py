"""Does what is due in time: waits for those who are behind as long as that is safe, and tries again what fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.authority.actions import Activate, Due, Prepare, Prune
from ca.authority.schedule import due, next_due, patience
from ca.authority.state import Authority, AuthorityKind, AuthorityState, find
from ca.authority.story import clock_time
from ca.errors import BurgeeError, FailedPrecondition
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.health import Problem
from ca.service.rotation_guard_port import Blocker
from ca.service.rotation_guarding import Guarding, line
from ca.service.rotation_journal import JournalKeeper
from ca.service.rotation_keys import AuthorityKeys
from ca.service.rotation_metrics import show_blockers, signs_until
from ca.service.rotation_retry import Retry
from ca.service.rotation_steps import Steps

logger = log.get("authority")

LONGEST_SLEEP_SECONDS = 10.0
SHORTEST_SLEEP_SECONDS = 0.2
HOLD_SECONDS = 2.0
"""After this time those who are behind are looked at again."""
MAX_STEPS = 8
"""Rounds of one tick; preparing, activating and pruning take three."""
TICK_PATIENCE_SECONDS = 80.0
"""Makes pauses between failed looks at the store no longer than ten seconds."""

KINDS = tuple(AuthorityKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An activation that waits. `again` is the monotonic time of the next look, `until` when it waits no longer."""

    blockers: tuple[Blocker, ...]
    again: float
    until: datetime


class Schedule:
    """One `keep` for each kind, so that an upstream that hangs over the one does not delay the other."""

    def __init__(
        self, *, journal: JournalKeeper, steps: Steps, keys: AuthorityKeys, guarding: Guarding, clock: Clock
    ) -> None:
        self._journal = journal
        self._steps = steps
        self._keys = keys
        self._guarding = guarding
        self._clock = clock
        self._wake = {kind: asyncio.Event() for kind in KINDS}
        self._making = {kind: Retry(clock) for kind in KINDS}
        self._looking = {kind: Retry(clock) for kind in KINDS}
        self.held: dict[AuthorityKind, Held] = {}

    def wake(self, kind: AuthorityKind) -> None:
        """Look now."""
        self._wake[kind].set()

    async def keep(self, kind: AuthorityKind) -> None:
        """Ticks when something is due, until cancelled."""
        while True:
            await self._pause(kind)
            self._wake[kind].clear()
            try:
                await self.tick([kind])
                self._looking[kind].succeeded()
            except BurgeeError as error:
                logger.warning("rotation cannot go on now", kind=kind, reason=error.reason, detail=error.detail)
                self._looking[kind].failed(error, seconds_left=TICK_PATIENCE_SECONDS)

    async def tick(self, kinds: Sequence[AuthorityKind] = KINDS) -> None:
        """Does what is due now. Raises Unavailable when keys or store are out of reach; nothing is half done then."""
        await self._journal.read()
        await self._steps.retire_lost()
        await self._keys.sweep(kinds)
        await self._steps.forget_others()
        for _ in range(MAX_STEPS):
            actions = [action for kind in kinds for action in self._due(kind)]
            if not actions:
                return
            try:
                await self._do(actions)
            except FailedPrecondition as error:  # an operator was faster: what is due now is another question
                logger.info("rotation gave way", reason=error.reason, detail=error.detail)
                await self._journal.read()

    def problem(self, kind: AuthorityKind) -> BurgeeError | None:
        """Why no new authority of this kind could be made lately."""
        return self._making[kind].error or self._looking[kind].error

    def warnings(self) -> list[Problem]:
        """What is not as it should be, and until when this server can sign all the same."""
        found = []
        for kind in KINDS:
            until = clock_time(signs_until(self._journal.own, kind))
            error, held = self.problem(kind), self.held.get(kind)
            if error is not None:
                detail = f"no new {kind} authority can be made: {error.detail}; this server can sign until {until}"
                found.append(Problem(reason=error.reason, detail=detail, hint=error.hint))
            if held is not None:
                detail = (
                    f"the next {kind} authority waits for {len(held.blockers)}, until {clock_time(held.until)} at most"
                )
                found.append(Problem(reason="ROTATION_HELD", detail=detail, hint="see `caadmin ca status`"))
        return found

    def _due(self, kind: AuthorityKind) -> list[Due]:
        """Without what is to be tried later, or is being done."""
        found = due(
            self._journal.own,
            kind=kind,
            now=self._clock.now(),
            condemned=self._steps.condemned,
            refresh_hint=self._guarding.refresh_hint,
        )
        if not any(isinstance(action, Activate) for action in found):
            self._release(kind)
        return [action for action in found if self._ready_in(kind, action) <= 0]

    def _ready_in(self, kind: AuthorityKind, action: Due) -> float:
        """Seconds until it is to be tried (again)."""
        if isinstance(action, Prepare):
            return SHORTEST_SLEEP_SECONDS if self._keys.is_making(kind) else self._making[kind].seconds_left
        if isinstance(action, Activate) and kind in self.held:
            return self.held[kind].again - self._clock.monotonic()
        return 0.0

    async def _do(self, actions: Sequence[Due]) -> None:
        wanted = [action.kind for action in actions if isinstance(action, Prepare)]
        if wanted:
            made = await self._steps.prepare(wanted, must_outlast=self._must_outlast())
            for kind, outcome in made.items():
                self._settle(kind, outcome)
        for action in actions:
            if isinstance(action, Activate):
                await self._activate(action)
            elif isinstance(action, Prune):
                await self._prune(action)

    def _must_outlast(self) -> datetime | None:
        active = find(self._journal.own, AuthorityState.ACTIVE, AuthorityKind.X509)
        bad = active is None or active.tainted or active.upstream_authority_id in self._steps.condemned
        return None if active is None or bad else active.not_after

    def _settle(self, kind: AuthorityKind, outcome: Authority | BurgeeError) -> None:
        if isinstance(outcome, Authority):
            self._making[kind].succeeded()
            return
        left = (signs_until(self._journal.own, kind) - self._clock.now()).total_seconds()
        self._making[kind].failed(outcome, seconds_left=left)
        logger.warning(
            "authority cannot be made now",
            kind=kind,
            reason=outcome.reason,
            detail=outcome.detail,
            hint=outcome.hint,
            signs_until=clock_time(signs_until(self._journal.own, kind)),
        )

    async def _activate(self, action: Activate) -> None:
        prepared = self._own(action.authority_id)
        if prepared is None:
            return
        kind = prepared.kind
        active = find(self._journal.own, AuthorityState.ACTIVE, kind)
        longest = await self._steps.longest_ttl(kind)
        until = patience(active, prepared, longest_ttl=longest, condemned=self._steps.condemned)
        signs = active is not None and not active.tainted and active.not_after > self._clock.now()
        blockers = await self._guarding.or_blocked(prepared) if signs else ()
        if blockers and self._clock.now() < until:
            self._hold(prepared, blockers, until)
            return
        plan = await self._steps.plan(action, kind=kind, blockers=blockers)
        await self._steps.carry_out(plan, force=True, forced_by="overdue")
        self._release(kind)

    async def _prune(self, action: Prune) -> None:
        one = self._own(action.authority_id)
        if one is not None:
            await self._steps.carry_out(await self._steps.plan(action, kind=one.kind, blockers=()))

    def _own(self, authority_id: str) -> Authority | None:
        """None when it was forgotten meanwhile."""
        return next((one for one in self._journal.own if one.authority_id == authority_id), None)

    def _hold(self, prepared: Authority, blockers: tuple[Blocker, ...], until: datetime) -> None:
        before = self.held.get(prepared.kind)
        if before is None or len(before.blockers) != len(blockers):
            logger.warning(
                "activation waits for those who are behind",
                kind=prepared.kind,
                authority_id=prepared.authority_id,
                reason="ROTATION_HELD",
                count=len(blockers),
                behind=[line(blocker) for blocker in blockers[:10]],
                until=clock_time(until),
            )
        show_blockers(prepared.kind, len(blockers))
        left = (until - self._clock.now()).total_seconds()
        again = self._clock.monotonic() + min(HOLD_SECONDS, left)
        self.held[prepared.kind] = Held(blockers=blockers, again=again, until=until)

    def _release(self, kind: AuthorityKind) -> None:
        if self.held.pop(kind, None) is not None:
            show_blockers(kind, 0)

    async def _pause(self, kind: AuthorityKind) -> None:
        """Until something is due or somebody wakes it."""
        now = self._clock.now()
        condemned, hint = self._steps.condemned, self._guarding.refresh_hint
        moment = next_due(self._journal.own, kind=kind, now=now, condemned=condemned, refresh_hint=hint)
        seconds = (moment - now).total_seconds()
        if seconds <= 0:
            actions = due(self._journal.own, kind=kind, now=now, condemned=condemned, refresh_hint=hint)
            seconds = min(self._ready_in(kind, action) for action in actions)
        seconds = max(seconds, self._looking[kind].seconds_left, SHORTEST_SLEEP_SECONDS)
        sleeping = asyncio.ensure_future(self._clock.sleep(min(seconds, LONGEST_SLEEP_SECONDS)))
        waking = asyncio.ensure_future(self._wake[kind].wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()
