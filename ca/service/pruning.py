"""Forgets what is over: agents, entries, join tokens, used evidence, issuance and audit records, old changes and
revisions of policies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.runtime import log
from ca.service.follower import Follower
from ca.store.store import Store

T = TypeVar("T")
logger = log.get("pruning")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePolicy:
    """What is over when. None keeps agents for ever; of changes and revisions as many are kept."""

    agents_expired_for: timedelta | None = timedelta(days=30)
    first_use_agents: bool = False
    entries_expired_for: timedelta = timedelta()
    issuance_retention: timedelta = timedelta(days=7)
    audit_retention: timedelta = timedelta(days=90)
    changes_kept: int = 100_000
    policy_revisions_kept: int = 1_000


@dataclass(slots=True, kw_only=True)
class Pruned:
    """What a pass forgot, or would have."""

    agents: list[SpiffeId] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    join_tokens: int = 0
    used_evidence: int = 0
    issuance_batches: int = 0
    audit_records: int = 0
    changes: int = 0
    policy_revisions: int = 0

    def counts(self) -> dict[str, int]:
        """What is not zero, for a log line."""
        all_counts = {
            "agents": len(self.agents),
            "entries": len(self.entries),
            "join_tokens": self.join_tokens,
            "used_evidence": self.used_evidence,
            "issuance_batches": self.issuance_batches,
            "audit_records": self.audit_records,
            "changes": self.changes,
            "policy_revisions": self.policy_revisions,
        }
        return {name: count for name, count in all_counts.items() if count}


class Pruner:
    """`policy` may be replaced at any time; the next pass goes by it."""

    def __init__(self, *, store: Store, follower: Follower, clock: Clock, policy: PrunePolicy) -> None:
        self._store = store
        self._follower = follower
        self._clock = clock
        self.policy = policy

    async def prune(self, policy: PrunePolicy | None = None) -> Pruned:
        """One pass. Memory has followed when it returns. Raises Unavailable; what was forgotten until then is."""
        policy, now, store = policy or self.policy, self._clock.now(), self._store
        done = Pruned()
        if policy.agents_expired_for is not None:
            over = now - policy.agents_expired_for
            done.agents = await _all(lambda: store.pruning.delete_agents(over, first_use=policy.first_use_agents))
        done.entries = await _all(lambda: store.pruning.delete_entries(now - policy.entries_expired_for))
        done.join_tokens = await store.tokens.prune(now)
        done.used_evidence = await store.evidence.prune(now)
        done.issuance_batches = await store.issuance.prune(now, retention=policy.issuance_retention)
        done.audit_records = await store.audit.prune(now - policy.audit_retention)
        done.changes = await store.changes.compact(policy.changes_kept)
        done.policy_revisions = await store.policy_revisions.prune(policy.policy_revisions_kept)
        if done.agents or done.entries:
            await self._follower.catch_up()
        if counts := done.counts():
            logger.info("forgot what is over", **counts)
        return done

    async def rehearse(self, policy: PrunePolicy | None = None) -> Pruned:
        """What `prune` would forget now."""
        policy, now, store = policy or self.policy, self._clock.now(), self._store
        return Pruned(
            agents=await self._expired_agents(policy, now),
            entries=await store.pruning.expired_entries(now - policy.entries_expired_for),
            join_tokens=await store.pruning.count_tokens(now),
            used_evidence=await store.evidence.count_over(now),
            issuance_batches=await store.issuance.count_old(now, retention=policy.issuance_retention),
            audit_records=await store.audit.count_before(now - policy.audit_retention),
            changes=await store.changes.count_beyond(policy.changes_kept),
            policy_revisions=await store.policy_revisions.count_beyond(policy.policy_revisions_kept),
        )

    async def _expired_agents(self, policy: PrunePolicy, now: datetime) -> list[SpiffeId]:
        if policy.agents_expired_for is None:
            return []
        over = now - policy.agents_expired_for
        return await self._store.pruning.expired_agents(over, first_use=policy.first_use_agents)


async def _all(delete_some: Callable[[], Awaitable[list[T]]]) -> list[T]:
    """Batch by batch until there is nothing left."""
    gone: list[T] = []
    while some := await delete_some():
        gone += some
    return gone
