"""What state the agent is in, and why: a set of named problems, of which the cause of the others is shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ca.errors import BurgeeError
from ca.ports import Clock

IDENTITY = "identity"
"""The part whose problem comes first: without a valid identity of the agent nothing else can be well."""


class State(StrEnum):
    """STARTING: no identity yet, or no word from a server since the start. DEGRADED: serves what it has, and something
    is wrong. BANNED: serves nothing."""

    STARTING = "STARTING"
    OK = "OK"
    DEGRADED = "DEGRADED"
    BANNED = "BANNED"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong: a stable reason code, its text, what the operator should do, and since when."""

    reason: str
    detail: str
    hint: str
    since: datetime
    last_seen: datetime


class Condition:
    """Collects problems by the part that has them (`identity`, `sync`, …); a part has one problem at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._problems: dict[str, Problem] = {}
        self._started = False
        self._in_touch = False
        self._since = clock.now()
        self._banned: Problem | None = None

    @property
    def state(self) -> State:
        if self._banned:
            return State.BANNED
        if self._problems:
            return State.DEGRADED
        return State.OK if self._started and self._in_touch else State.STARTING

    @property
    def problem(self) -> Problem | None:
        """The one to show first: the ban, else what is wrong with the identity, else the problem that has lasted
        longest, else that it is starting."""
        shown = self._banned or self._problems.get(IDENTITY)
        shown = shown or min(self._problems.values(), key=lambda p: p.since, default=None)
        return shown or (self._not_in_touch() if self.state is State.STARTING else None)

    @property
    def problems(self) -> dict[str, Problem]:
        """Every problem by part."""
        return dict(self._problems)

    @property
    def no_identity(self) -> Problem | None:
        """What keeps the agent from having an identity; None while it has one, or has not failed to get one yet."""
        return None if self._started else self._banned or self._problems.get(IDENTITY)

    def started(self) -> None:
        """The agent has an identity; that ends a ban."""
        self._started = True
        self._banned = None

    def in_touch(self) -> None:
        """A server's word was heard since the start: what is served is no longer only what was saved."""
        self._in_touch = True

    def _not_in_touch(self) -> Problem:
        detail = "no server's word yet since the start" if self._started else "this agent has no identity yet"
        now = self._clock.now()
        return Problem(reason="AGENT_STARTING", detail=detail, hint="", since=self._since, last_seen=now)

    def report(self, part: str, error: BurgeeError) -> bool:
        """`part` has this problem. True when it is news (another reason than before), which is worth a log line."""
        now = self._clock.now()
        known = self._problems.get(part)
        same = known is not None and known.reason == error.reason
        since = known.since if known is not None and same else now
        self._problems[part] = Problem(
            reason=error.reason, detail=error.detail, hint=error.hint, since=since, last_seen=now
        )
        return not same

    def clear(self, part: str) -> bool:
        """`part` is well. True when it was not before."""
        return self._problems.pop(part, None) is not None

    def banned(self, error: BurgeeError) -> None:
        """The identity is gone, until a new attestation `started` another; told again, it is the same ban."""
        now = self._clock.now()
        since = self._banned.since if self._banned else now
        self._banned = Problem(reason=error.reason, detail=error.detail, hint=error.hint, since=since, last_seen=now)
        self._started = self._in_touch = False
