"""Follows what the upstream publishes: its roots and JWT authorities come into our bundle, show their taint, and go."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from ca.authority.journal import Journal, UpstreamMember, condemned
from ca.authority.state import AuthorityKind, AuthorityState, find
from ca.authority.upstream import polled, unlinked
from ca.errors import BurgeeError
from ca.ports import Clock
from ca.runtime import log
from ca.service.authority_values import members_of
from ca.service.rotation_journal import JournalKeeper
from ca.service.rotation_retry import Retry
from ca.service.rotation_steps import Steps
from ca.service.upstream_link import UpstreamLink

logger = log.get("upstream")

POLL_SECONDS = 5.0
JITTER = 0.1
AGAIN_SECONDS = 0.2
SWAP_SECONDS = 30.0
"""So long a taint waits until nothing is signed below the tainted root any more; then it is shown all the same."""


class UpstreamFollow:
    """`wake` asks the schedule to look at X.509 authorities now. Without a link it lets go of what an earlier
    configuration brought."""

    def __init__(
        self,
        *,
        journal: JournalKeeper,
        link: UpstreamLink | None,
        steps: Steps,
        wake: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._journal = journal
        self._link = link
        self._steps = steps
        self._wake = wake
        self._clock = clock
        self._retry = Retry(clock)
        self._waiting_since: float | None = None

    async def run(self) -> None:
        """Until cancelled; whatever fails is tried again."""
        while True:
            seconds = await self.once()
            await self._clock.sleep(seconds * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 (spreads servers)

    async def once(self) -> float:
        """One look; the seconds until the next one."""
        try:
            seconds = await self._look()
            self._retry.succeeded()
        except BurgeeError as error:
            if self._retry.error is None:
                logger.warning("upstream cannot be followed now", reason=error.reason, detail=error.detail)
            self._retry.failed(error)
            return max(POLL_SECONDS, self._retry.seconds_left)
        return seconds

    async def _look(self) -> float:
        server = self._journal.server
        if self._link is None:
            await self._change(partial(unlinked, server=server, now=self._clock.now()))
            return POLL_SECONDS
        answer = members_of(await self._link.bundle(), server)
        if self._comes_too_early(answer):
            self._wake()
            return AGAIN_SECONDS
        self._steps.doomed, self._waiting_since = frozenset(), None
        await self._change(partial(_polled, answer=answer, server=server, clock=self._clock))
        return POLL_SECONDS

    async def _change(self, decide: Callable[[Journal], Journal]) -> None:
        """Most looks change nothing, and then nothing is written."""
        before = self._journal.journal
        if decide(before) == before:
            return
        after = await self._journal.change(decide)
        _tell(before.upstream, after.upstream)
        self._wake()

    def _comes_too_early(self, answer: Sequence[UpstreamMember]) -> bool:
        """Whether the answer taints the root above what signs now: the schedule gets a moment to put something else in
        its place, so that whoever asks anew because of the taint gets what helps."""
        now, journal = self._clock.now(), self._journal.journal
        after = polled(journal, answer, server=self._journal.server, now=now)
        ahead = condemned(after, self._journal.server, now=now) - condemned(journal, self._journal.server, now=now)
        active = find(self._journal.own, AuthorityState.ACTIVE, AuthorityKind.X509)
        if active is None or active.upstream_authority_id not in ahead:
            return False
        if self._waiting_since is None:
            self._waiting_since = self._clock.monotonic()
        self._steps.doomed = ahead
        return self._clock.monotonic() - self._waiting_since < SWAP_SECONDS


def _polled(journal: Journal, *, answer: Sequence[UpstreamMember], server: str, clock: Clock) -> Journal:
    return polled(journal, answer, server=server, now=clock.now())


def _tell(before: Sequence[UpstreamMember], after: Sequence[UpstreamMember]) -> None:
    known = {member.place: member for member in before}
    for member in after:
        old = known.pop(member.place, None)
        if old is None:
            logger.info("upstream authority came", kind=member.kind, authority_id=member.authority_id)
        if member.tainted and not (old and old.tainted):
            logger.warning(
                "upstream authority is tainted",
                kind=member.kind,
                authority_id=member.authority_id,
                reason="UPSTREAM_TAINTED",
            )
        if member.gone_at and not (old and old.gone_at):
            logger.warning(
                "upstream names an authority no more",
                kind=member.kind,
                authority_id=member.authority_id,
                reason="UPSTREAM_GONE",
            )
    for gone in known.values():
        logger.info("upstream authority left the bundle", kind=gone.kind, authority_id=gone.authority_id)
