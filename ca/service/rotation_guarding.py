"""Asks who would be cut off by a step, and words the refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import timedelta

from ca.authority.state import Authority, AuthorityKind
from ca.authority.story import clock_time
from ca.errors import BurgeeError, FailedPrecondition, Unavailable
from ca.ports import Clock
from ca.runtime import log
from ca.service.rotation_guard_port import Blocker, Guard

logger = log.get("authority")

GUARD_SECONDS = 10.0
SHOWN = 3
"""Blockers that a refusal names; the status names them all."""


class Guarding:
    """A guard that answers in time. `refresh_hint` is the bundle's."""

    def __init__(self, guard: Guard, clock: Clock) -> None:
        self.guard = guard
        self.refresh_hint = timedelta()
        self._clock = clock

    async def before_activation(self, authority: Authority) -> tuple[Blocker, ...]:
        """Raises Unavailable (GUARD_SILENT) and whatever the guard raises."""
        return (*self._too_new(authority), *await self._asked(self.guard.before_activation(authority)))

    async def before_removal(self, authorities: Sequence[Authority]) -> tuple[Blocker, ...]:
        """What still hangs on any of them, unless they ended. Raises like `before_activation`."""
        now = self._clock.now()
        found: list[Blocker] = []
        for authority in authorities:
            if authority.not_after > now:
                found += await self._asked(self.guard.before_removal(authority))
        return tuple(found)

    async def or_blocked(self, authority: Authority) -> tuple[Blocker, ...]:
        """`before_activation` for the schedule: who cannot be asked blocks, too."""
        try:
            return await self.before_activation(authority)
        except BurgeeError as error:
            return (Blocker(kind="server", who=authority.server, reason=error.reason, detail=error.detail),)
        except Exception as error:
            logger.error("cannot tell who is behind", reason="GUARD_FAILED", exc_info=error)
            detail = f"cannot tell who is behind: {type(error).__name__}"
            return (Blocker(kind="server", who=authority.server, reason="GUARD_FAILED", detail=detail),)

    def _too_new(self, authority: Authority) -> tuple[Blocker, ...]:
        """SPIFFE Federation §4.1 (H1): who fetches JWT authorities comes by once in each refresh hint."""
        known = authority.published_at + self.refresh_hint
        if authority.kind != AuthorityKind.JWT or self._clock.now() >= known:
            return ()
        return (
            Blocker(
                kind="consumer",
                who="whoever fetches the bundle",
                reason="CONSUMERS_WAITED_FOR",
                detail=f"asks once in {self.refresh_hint.total_seconds():g} s, the bundle's refresh hint",
                until=known,
            ),
        )

    async def _asked(self, question: Awaitable[Sequence[Blocker]]) -> Sequence[Blocker]:
        try:
            async with asyncio.timeout(GUARD_SECONDS):
                return await question
        except TimeoutError as error:
            raise Unavailable(
                f"who depends on the authority could not be told within {GUARD_SECONDS:g} s", reason="GUARD_SILENT"
            ) from error


def refuse(command: str, blockers: Sequence[Blocker]) -> FailedPrecondition:
    """The refusal, with the command that overrules it: SPIRE's clients show the message alone."""
    shown = "; ".join(line(blocker) for blocker in blockers[:SHOWN])
    more = f"; and {len(blockers) - SHOWN} more" if len(blockers) > SHOWN else ""
    return FailedPrecondition(
        f"to {command} would cut off {len(blockers)}: {shown}{more}. `caadmin ca {command} --force` does so",
        reason="ROTATION_BLOCKED",
        hint="`caadmin ca status` shows who is behind, and for how long",
    )


def line(blocker: Blocker) -> str:
    until = f", until {clock_time(blocker.until)}" if blocker.until else ""
    return f"{blocker.kind} `{blocker.who}`: {blocker.detail} ({blocker.reason}{until})"
