"""`explain workload` at the agent: attests a process now as the Workload API would, or looks up how it was refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime

from ca.errors import BurgeeError, InvalidArgument, NotFound, Unavailable
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from ca.identity.text import quote
from ca.ports import Clock
from ca.proto.burgee import agent_pb2 as pb
from ca.runtime import log
from sds.attestation_ring import AttestationRing, Attested
from sds.cache import Cache
from sds.condition import Condition
from sds.delegated import NamedProcess, named_process
from sds.explain import NEAREST, nearest
from sds.explain_wire import caller, explanation
from sds.policy_explain import policies_of
from sds.policy_held import HeldPolicies
from sds.rotation import Rotator
from sds.verdict import Given, Seen, replaced, verdict, verdict_on_refusal
from sds.workloads import Workloads

MAX_NEAREST = 50
SETTLE_SECONDS = 6.0
"""A caller of the Workload API waits a little less for an SVID that is under way."""


class Explainer:
    """Never for the socket of the workloads. `agent_id` is this agent's SPIFFE ID, `status` what GetStatus says."""

    def __init__(
        self,
        *,
        workloads: Workloads,
        cache: Cache,
        rotator: Rotator,
        condition: Condition,
        clock: Clock,
        attestors: Collection[str],
        agent_id: Callable[[], SpiffeId | None],
        status: Callable[[], pb.Status],
        policies: HeldPolicies,
    ) -> None:
        self._policies = policies
        self._workloads = workloads
        self._cache = cache
        self._rotator = rotator
        self._condition = condition
        self._clock = clock
        self._attestors = frozenset(attestors)
        self._agent_id = agent_id
        self._status = status

    @property
    def _ring(self) -> AttestationRing:
        return self._workloads.ring

    async def explain(self, request: pb.ExplainWorkloadRequest) -> pb.WorkloadExplanation:
        """Raises InvalidArgument, NotFound (PROCESS_NOT_FOUND, REFUSAL_UNKNOWN)."""
        if bool(request.pid) == bool(request.id):
            raise InvalidArgument("name either a pid or the id of a refusal", reason="EXPLAIN_TARGET")
        limit = request.nearest or NEAREST
        return self._refusal(request.id, limit) if request.id else await self._process(request.pid, limit)

    async def _process(self, pid: int, limit: int) -> pb.WorkloadExplanation:
        process = _find(pid)
        history = self._ring.of(pid)
        attested, error = await self._workloads.look_anew(process)
        given: list[Given] = []
        if attested is not None and attested.error is None and self._cache.ready:
            given = await self._given(attested.selectors, attested.share)
        seen = self._seen(attested, error, given, limit)
        return explanation(
            seen,
            verdict(seen),
            caller=caller(pid, process.uid, process.gid, attested.share if attested is not None else ""),
            attested_at=(attested.last_at or attested.at) if attested is not None else None,
            status=self._status(),
            history=history,
            policies=policies_of(self._policies, (str(one.entry.spiffe_id) for one in given), seen.selectors),
        )

    def _refusal(self, refusal_id: str, limit: int) -> pb.WorkloadExplanation:
        refused = self._ring.by_id(refusal_id)
        if refused is None:
            raise NotFound(
                f"this agent remembers no refusal {quote(refusal_id)}",
                reason="REFUSAL_UNKNOWN",
                hint=f"it remembers the latest since its start, whose ids begin with `{log.run_id()}-`; is it another "
                "agent's? its log may know it",
            )
        attested = refused.attested
        selectors = attested.selectors if attested is not None else frozenset()
        given = [] if not self._cache.ready else self._matching(selectors)
        seen = self._seen(attested, refused.error, given, limit)
        return explanation(
            seen,
            verdict_on_refusal(seen, refused.error, pid=refused.pid),
            caller=caller(refused.pid, refused.uid, refused.gid, refused.share),
            attested_at=attested.at if attested is not None else None,
            status=self._status(),
            history=self._ring.of(refused.pid),
        )

    def _seen(self, attested: Attested | None, error: BurgeeError | None, given: list[Given], limit: int) -> Seen:
        outcomes = attested.outcomes if attested is not None else ()
        selectors = attested.selectors if attested is not None else frozenset()
        silent = {outcome.attestor for outcome in outcomes if outcome.error is not None}
        now, entries, limit = self._clock.now(), self._cache.entries(), min(limit, MAX_NEAREST)
        near = nearest(entries, selectors, gone=self._cache.gone, silent=silent, now=now, limit=limit)
        return Seen(
            selectors=selectors,
            outcomes=outcomes,
            error=error,
            given=given,
            near=sorted(near, key=lambda one: bool(one.reason) and replaced(one, near)),
            configured=self._attestors,
            agent_id=self._agent_id(),
            not_ready=None if self._cache.ready else self._cache.not_ready(),
            problem=self._condition.problem,
            sync=self._condition.problems.get("sync") or self._condition.problems.get("identity"),
        )

    async def _given(self, selectors: frozenset[Selector], share: str) -> list[Given]:
        """What a call would get: it waits as one would for an SVID that is under way."""
        try:
            subscription = self._cache.subscribe(selectors, needs_svid=True, share=share)
        except Unavailable:
            return []
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while not subscription.view.settled:
                    await subscription.changed()
        except (TimeoutError, BurgeeError):
            pass
        finally:
            self._cache.unsubscribe(subscription)
        return self._matching(selectors)

    def _matching(self, selectors: frozenset[Selector]) -> list[Given]:
        now = self._clock.now()
        return [
            Given(entry=entry, not_after=self._end(entry.id, now), reason=self._rotator.failure(entry.id) or "")
            for entry in self._cache.matching(selectors)
        ]

    def _end(self, entry_id: str, now: datetime) -> datetime | None:
        svid = self._cache.svid(entry_id)
        return svid.not_after if svid is not None and svid.not_after > now else None


def _find(pid: int) -> NamedProcess:
    if pid <= 0:
        raise InvalidArgument("a pid is positive", reason="EXPLAIN_TARGET")
    try:
        return named_process(pid)
    except Unavailable as error:
        raise NotFound(
            f"the agent sees no process with the pid {pid}",
            reason="PROCESS_NOT_FOUND",
            hint="the pid is that of the agent's own pid namespace, mostly the host's",
        ) from error
