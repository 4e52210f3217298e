"""Whether this machine's clock and the server's agree, by what the server issued just now."""

from __future__ import annotations

from datetime import datetime

from ca.errors import BurgeeError, FailedPrecondition, Unauthenticated
from ca.ports import Clock
from ca.runtime.log import get
from sds.condition import Condition

PART = "clock"
HINT = "set this machine's clock or the server's, whichever is wrong"
SET_SECONDS = 1.0
"""A step of the wall clock against the monotonic one from which on somebody has set it."""

log = get("sds.clock")


def ahead(detail: str) -> Unauthenticated:
    """The error of an SVID that had ended when it arrived; `detail` names both times."""
    return Unauthenticated(
        f"what the server issued just now has ended by the clock here: {detail}", reason="CLOCK_AHEAD", hint=HINT
    )


class ClockWatch:
    """Tells `condition` that the clocks disagree, until they agree or ours has been set."""

    def __init__(self, clock: Clock, condition: Condition | None) -> None:
        self._clock = clock
        self._condition = condition
        self._disagreed_at: float | None = None

    def compare(self, begins: datetime | None, ended: BurgeeError | None) -> None:
        """`begins`: notBefore of what was just issued and taken; `ended`: the error of what had ended already.

        What is issued begins a little before now, and ends later, where both clocks agree.
        """
        now = self._clock.now()
        problem = ended if begins is None or begins <= now else _behind(begins, now)
        if self._condition is None or (begins is None and ended is None):
            return
        self._disagreed_at = None if problem is None else self._offset()
        if problem is None:
            self._condition.clear(PART)
        elif self._condition.report(PART, problem):
            log.error("the clocks disagree", reason=problem.reason, detail=problem.detail, hint=problem.hint)

    def look(self) -> None:
        """Forget a disagreement once our clock was set: what is issued next tells whether it is right now."""
        was = self._disagreed_at
        if was is not None and self._condition is not None and abs(self._offset() - was) > SET_SECONDS:
            self._disagreed_at = None
            self._condition.clear(PART)

    def _offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()


def _behind(begins: datetime, now: datetime) -> FailedPrecondition:
    return FailedPrecondition(
        f"what the server issued just now begins at {begins.isoformat()}, the clock here says {now.isoformat()}",
        reason="CLOCK_BEHIND",
        hint=HINT,
    )
