"""The agent's own identity, kept alive: attested, renewed at half-life, attested again in place, or degraded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from ca.errors import BurgeeError, Denied, Internal
from ca.ports import Clock, Lasting, NodeProver
from ca.runtime.log import get
from sds.backoff import Backoff, at_least
from sds.condition import IDENTITY, Condition
from sds.config import AgentConfig
from sds.first_trust import ServerTrust
from sds.node_attest import REFUSALS, NodeCalls, NoMoreProof, no_more_proof
from sds.node_plan import BANNED_REASON, Attest, Renew, Wait, is_tainted, plan, renew_at, still_banned, verdict_of
from sds.rarely import Rarely
from sds.state import AgentStore, AgentSvid
from sds.taint import taint_delay

PART = IDENTITY
UNREACHABLE_CAP_SECONDS = 5.0
"""Longest pause between tries while no server answers: recovery takes less than half a minute after its return."""

REFUSED_CAP_SECONDS = 15.0
"""Longest pause after a server's refusal: an operator has to act, and should not wait long to see it work."""

OPERATOR_CAP_SECONDS = 60.0
"""Longest pause between attestations of a node that is banned, or that a server trusts on its first use alone, where
its proof never runs out: once it is evicted it is back within a minute."""

ALREADY_ATTESTED_REASON = "AGENT_ALREADY_ATTESTED"

MAX_WAIT_SECONDS = 60.0
"""The plan is made anew at least this often: the wall clock may jump, and a machine may sleep."""

STATE_PART = "state"
SAVE_RETRY_SECONDS = 5.0
"""How often what could not be saved is tried again."""

PROOF_POLL_SECONDS = 2.0
"""How often a prover without proof is asked whether it has some now."""

log = get("sds.identity")


class NodeIdentity:
    """`run` for ever. `condition` holds the state and its reason.

    A ban erases everything; after that the node attests as a new one would, as soon as it has something to prove itself
    with, and a server that still says no is asked again, ever less often.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        clock: Clock,
        store: AgentStore,
        trust: ServerTrust,
        attestor: str,
        prover: NodeProver,
        condition: Condition,
        calls: NodeCalls | None = None,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - spreads load, guards nothing
    ) -> None:
        self._clock = clock
        self._store = store
        self._trust = trust
        self._attestor = attestor
        self._prover = prover
        self._calls = calls or NodeCalls(config=config, trust=trust, clock=clock, store=store)
        self._jitter = jitter
        self._backoff = Backoff(jitter)
        self._svid: AgentSvid | None = None
        self._due: datetime = clock.now()
        self._due_by = 0.0
        """The same by the monotonic clock: the wall clock may be set back."""
        self._unsaved = False
        self._verdict: BurgeeError | None = None
        self._ban: BurgeeError | None = None
        self._attested_here = False
        self._attempts = Rarely(clock)
        self._failures = Rarely(clock)
        self._rotated: list[Callable[[], None]] = []
        self._banned: list[Callable[[], Awaitable[None]]] = []
        self._poked = asyncio.Event()
        self._present = asyncio.Event()
        self.condition = condition
        trust.on_change(self._bundle_changed)

    @property
    def svid(self) -> AgentSvid | None:
        """The current one; it may have expired. None before the first attestation, and while banned."""
        return self._svid

    @property
    def reattestable(self) -> bool:
        """Whether this node could attest again by itself now."""
        return self._prover.can_reattest

    async def wait_svid(self) -> AgentSvid:
        """Returns once there is one."""
        while self._svid is None:
            await self._present.wait()
        return self._svid

    def on_rotated(self, listener: Callable[[], None]) -> None:
        """`listener` is called whenever `svid` has been replaced."""
        self._rotated.append(listener)

    def on_banned(self, listener: Callable[[], Awaitable[None]]) -> None:
        """`listener` is awaited after the sealed state was erased: drop everything. Nothing is attested meanwhile."""
        self._banned.append(listener)

    def denied(self, error: BurgeeError) -> bool:
        """Tell about a server's error on whatever call. True when it is about this agent (AGENT_*): acted on here."""
        verdict = verdict_of(error)
        if verdict is not None and self._ban is None:  # else it is about the identity that is gone
            self._verdict = verdict
            self._poked.set()
        return verdict is not None

    async def run(self) -> None:
        """Load what is sealed, then do what is due, whenever it is."""
        if self._ban is None:  # else this task failed while it obeyed a ban, and what is sealed is no one's
            await self._restore()
        while True:
            self._poked.clear()
            if self._verdict is not None and self._verdict.reason == BANNED_REASON:
                await self._obey_ban(self._verdict)
            try:
                pause = await self._step()
            except BurgeeError as error:
                pause = self._failed(error)
            except Exception as error:
                # A stranger's node attestor runs in here: its fault is shown, and the agent goes on trying.
                log.exception("agent identity", reason="IDENTITY_FAILED")
                pause = self._failed(
                    Internal(f"unexpected {type(error).__name__}, see the log", reason="IDENTITY_FAILED")
                )
            await self._sleep(pause)

    async def _restore(self) -> None:
        self._svid = await asyncio.to_thread(self._store.load_agent)
        if self._svid is not None:
            log.info("agent SVID restored", spiffe_id=str(self._svid.id), not_after=self._svid.not_after.isoformat())
            self._use(self._svid)

    async def _step(self) -> float:
        """One decision, carried out; the seconds until the next. Raises what went wrong."""
        first = self._trust.bundle is None
        await self._trust.start()
        if self._trust.bundle is None:
            log.warning("believing the first server that answers", reason="INSECURE_BOOTSTRAP")
            await self._calls.fetch_first_bundle()
        if first:
            self._poked.clear()  # the plan sees this bundle: should it fail, its pause must not end at once
        bundle, now, left = self._trust.bundle, self._clock.now(), self._due_by - self._clock.monotonic()
        due = min(self._due, now + timedelta(seconds=max(left, 0.0)))
        step = plan(svid=self._svid, bundle=bundle, verdict=self._verdict, due=due, now=now)
        if isinstance(step, Wait):
            self._healthy()
            await self._save_again()
            return min(step.seconds, SAVE_RETRY_SECONDS if self._unsaved else MAX_WAIT_SECONDS)
        if isinstance(step, Renew):
            assert self._svid is not None
            await self._take(await self._calls.renew(self._svid))
        else:
            await self._attest(step)
        return 0.0

    async def _attest(self, step: Attest) -> None:
        why = step.why or self._ban
        if (self._attested_here or self._ban) and not self._has_proof():
            raise no_more_proof(self._attestor, why or Denied("the agent's SVID is due", reason="AGENT_EXPIRED"))
        reason = {"why": why.reason} if why else {}
        if self._attempts.worth(f"attesting {reason}"):
            log.info("attesting", attestor=self._attestor, **reason)
        try:
            svid = await self._calls.attest(self._attestor, self._prover)
        except BurgeeError as error:
            raise _with_cause(error, step.why) from error
        self._attested_here = True
        await self._take(svid)

    def _has_proof(self) -> bool:
        """Whether there is any use in asking the server: an operator may have made it forget this node."""
        lasts = isinstance(self._prover, Lasting) and self._prover.evidence_lasts
        return lasts or self._prover.can_reattest

    async def _take(self, svid: AgentSvid) -> None:
        """Saved before it is used: a token that has been used up must not be lost with this process."""
        self._verdict = self._ban = None
        await self._save(svid)
        log.info("agent SVID issued", spiffe_id=str(svid.id), not_after=svid.not_after.isoformat())
        self._use(svid)

    async def _save(self, svid: AgentSvid) -> None:
        """What cannot be saved is used all the same, said, and tried again: a restart would lose it."""
        try:
            if await asyncio.to_thread(self._store.reopen):
                self._trust.save()
            await asyncio.to_thread(self._store.save_agent, svid)
        except BurgeeError as error:
            self._unsaved = True
            if self.condition.report(STATE_PART, error):
                log.error("agent SVID not saved", reason=error.reason, detail=error.detail, hint=error.hint)
            return
        self._unsaved = False
        if self.condition.clear(STATE_PART):
            log.info("agent SVID saved again")

    async def _save_again(self) -> None:
        if self._unsaved and self._svid is not None:
            await self._save(self._svid)

    def _use(self, svid: AgentSvid) -> None:
        self._svid = svid
        self._due = renew_at(svid, self._jitter())
        self._due_by = self._clock.monotonic() + (self._due - self._clock.now()).total_seconds()
        self._present.set()
        self.condition.started()
        for listener in self._rotated:
            listener()

    def _healthy(self) -> None:
        self._backoff.reset()
        self._attempts.forget()
        self._failures.forget()
        if self.condition.clear(PART):
            log.info("agent identity is well again")

    def _failed(self, error: BurgeeError) -> float:
        """Reports the problem; the seconds until the next try."""
        verdict = verdict_of(error)
        if verdict is not None and self._ban is None:
            self._verdict = verdict
            return 0.0 if error.reason == BANNED_REASON else self._backoff.next(UNREACHABLE_CAP_SECONDS)
        if self._ban is not None:
            error = still_banned(self._ban, error)
            self.condition.banned(error)
        else:
            self.condition.report(PART, error)
        self._complain(error)
        if isinstance(error, NoMoreProof):
            return PROOF_POLL_SECONDS
        slow = self._ban is not None or error.reason == ALREADY_ATTESTED_REASON
        refused = OPERATOR_CAP_SECONDS if slow else REFUSED_CAP_SECONDS
        pause = self._backoff.next(refused if error.code in REFUSALS else UNREACHABLE_CAP_SECONDS)
        return at_least(pause, error, self._jitter())

    def _complain(self, error: BurgeeError) -> None:
        if self._failures.worth(error.detail if self._ban else error.reason):
            event = "agent identity" if self._svid else "this agent has no identity"
            tries = {"tries": self._failures.times} if self._failures.times > 1 else {}
            log.error(event, reason=error.reason, detail=error.detail, hint=error.hint, **tries)

    async def _obey_ban(self, error: BurgeeError) -> None:
        """Nothing is left and nothing is served when this returns; what could not be erased is tried again."""
        self._svid, self._ban = None, error
        self._present.clear()
        self._backoff.reset()
        self.condition.clear(PART)
        self.condition.banned(error)
        log.error("this agent is banned: state erased", reason=error.reason, detail=error.detail)
        try:
            await asyncio.to_thread(self._store.erase)
        finally:
            for listener in self._banned:
                await listener()
        self._verdict = None

    def _bundle_changed(self) -> None:
        """An SVID that only a tainted authority vouches for is renewed within a second, once for each such bundle."""
        bundle, svid = self._trust.bundle, self._svid
        if bundle is not None and svid is not None and is_tainted(svid, bundle):
            delay = taint_delay(self._jitter())
            self._due = min(self._due, self._clock.now() + timedelta(seconds=delay))
            self._due_by = min(self._due_by, self._clock.monotonic() + delay)
        self._poked.set()

    async def _sleep(self, seconds: float) -> None:
        """Until the time has come or something happened."""
        tasks = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._poked.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _with_cause(error: BurgeeError, why: BurgeeError | None) -> BurgeeError:
    """A failed re-attestation says why it was needed; when it was refused, that is the reason to show."""
    if why is None or verdict_of(error) is not None:
        return error
    shown = error.code in REFUSALS and error.reason != ALREADY_ATTESTED_REASON
    reason = why.reason if shown else error.reason
    return type(error)(
        f"{why.detail}; attesting again: {error.detail}",
        reason=reason,
        hint=error.hint,
        retry_after_seconds=error.retry_after_seconds,
    )
