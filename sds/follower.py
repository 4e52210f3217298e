"""Takes the server's push into the cache, and keeps what must outlive a restart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from datetime import datetime

from ca.errors import BurgeeError
from ca.identity.lineage import issuer_ids
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.svid import parse_x509_svid
from ca.ports import Clock
from ca.runtime.log import get
from sds.cache import Cache
from sds.condition import Condition
from sds.envoy_status import SdsClients
from sds.feed import BUNDLE, ENTRY, POLICY, Change, Held, ResumeToken, Snapshot
from sds.holdings import holdings
from sds.jwt_cache import JwtCache
from sds.policy_held import HeldPolicies
from sds.policy_rollout import Logged, rollout, unlogged
from sds.rotation import Rotator, rotate_at
from sds.state import AgentStore, StoredSvid
from sds.views import WorkloadSvid, asked_for

log = get("sds.follower")

SAVE_RETRY_SECONDS = 5.0
SAVE_AFTER_SECONDS = 0.5
"""Changes within this time are saved together."""


class Follower:
    """Implements sds.feed.Feed: applies pushes in order, then calls who `follows`, e.g. to ask for SVIDs."""

    def __init__(
        self, *, cache: Cache, clients: SdsClients, clock: Clock, policies: HeldPolicies | None = None
    ) -> None:
        self.policies = policies or HeldPolicies()
        self.logged: Logged = unlogged
        """Whether a proxy's decisions reach the access log."""
        self._cache = cache
        self._clients = clients
        self._clock = clock
        self._token = ResumeToken()
        self.last_sync_at: datetime | None = None
        self.follows: list[Callable[[Snapshot | Change], None]] = []

    @property
    def token(self) -> ResumeToken:
        return self._token

    @property
    def kinds(self) -> tuple[str, ...]:
        """Policies once there were any: a server that does not know of them is told nothing of them."""
        return (ENTRY, BUNDLE, POLICY) if self.policies.told else (ENTRY, BUNDLE)

    def not_known(self) -> None:
        """Policies stay in force as they are; nothing more is said of them until some come."""
        self.policies.told = False

    def restore(self, snapshot: Snapshot) -> None:
        """Begin with what was saved by an earlier run; the server is then asked only for what came after."""
        self._cache.apply(snapshot)
        self._token = snapshot.token
        if snapshot.policies is not None:
            self.policies.take(snapshot.policies or None)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Everything anew."""
        self._apply(snapshot)

    def on_change(self, change: Change) -> None:
        """What came and went."""
        self._apply(change)

    def forget(self) -> None:
        """What was applied is gone: the server is asked for everything."""
        self._token = ResumeToken()
        self.policies.forget()

    def held(self, kind: str) -> Held:
        """What is held of this kind, and how far the Envoys are that were sent it."""
        if kind == POLICY:
            return rollout(self.policies, self._clients, self.logged)
        return holdings(kind, self._cache, self._clients)

    def _apply(self, update: Snapshot | Change) -> None:
        self.last_sync_at = self._clock.now()
        polled = not update.token.epoch
        self.policies.heard(polled=polled, newcomers=self._newcomers(update) if polled else frozenset())
        if isinstance(update, Change) and update.empty:
            self._token = update.token
            return
        # Policies first: none that are older than an entry may let somebody to its workload.
        if update.policies is not None:
            self.policies.take(update.policies, self._newcomers(update))
        elif isinstance(update, Change) and update.removed_policies:
            self.policies.take(None)
        self._cache.apply(update)
        self._token = update.token
        for follow in self.follows:
            follow(update)

    def _newcomers(self, update: Snapshot | Change) -> frozenset[str]:
        """SPIFFE IDs that no entry had before."""
        if not update.entries:
            return frozenset()
        known = {entry.spiffe_id for entry in self._cache.entries()}
        return frozenset(str(entry.spiffe_id) for entry in update.entries if entry.spiffe_id not in known)


def follow_with(rotator: Rotator, jwts: JwtCache, own: TrustDomain) -> Callable[[Snapshot | Change], None]:
    """What the rotator and the cache of JWT-SVIDs do about an update."""

    def follow(update: Snapshot | Change) -> None:
        if isinstance(update, Change):
            jwts.forget(frozenset(update.removed_entries))
        else:
            jwts.retain(frozenset(entry.id for entry in update.entries))
        for bundle in update.bundles:
            if bundle.trust_domain == own:
                jwts.trust(frozenset(key.key_id for key in bundle.jwt_authorities if not key.tainted))
        rotator.forget(entry.id for entry in update.entries)
        if update.bundles:
            rotator.retry_untrusted()

    return follow


class Keeper:
    """Saves entries, bundles and workload SVIDs soon after they change; loads them at the start."""

    def __init__(
        self,
        *,
        store: AgentStore,
        cache: Cache,
        follower: Follower,
        clock: Clock,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - spreads load, guards nothing
        condition: Condition | None = None,
    ) -> None:
        self._condition = condition
        self._jitter = jitter
        self._store = store
        self._cache = cache
        self._follower = follower
        self._clock = clock
        self._changed = asyncio.Event()
        self._agent: SpiffeId | None = None
        self._saving = asyncio.Lock()
        self._saved_policies: bytes | None = None
        cache.on_change.append(self._changed.set)
        follower.policies.on_change.append(self._changed.set)

    def load(self, agent: SpiffeId) -> bool:
        """Serve what an earlier run of this agent saved and what is still valid; False when there was nothing."""
        self._agent = agent
        snapshot = self._store.load_feed(agent)
        if snapshot is None:
            return False
        self._follower.restore(snapshot)
        now = self._clock.now()
        self._cache.put_svids(self._revived(self._store.load_svids(agent), now))
        return True

    def belongs_to(self, agent: SpiffeId | None) -> None:
        """From now on save for this agent; None: save nothing more."""
        self._agent = agent
        self._changed.set()

    async def run(self) -> None:
        """Save what changed, for ever."""
        while True:
            await self._changed.wait()
            await self._clock.sleep(SAVE_AFTER_SECONDS)
            await self.save()
            if self._store.cache_problem is not None:
                await self._clock.sleep(SAVE_RETRY_SECONDS)
                self._changed.set()

    async def stop(self) -> None:
        """Save nothing more, until this `belongs_to` an agent; what is being saved is when this returns."""
        self._agent = self._saved_policies = None
        async with self._saving:
            pass

    async def save(self) -> None:
        """Save now. The files are written in a thread; a failure to do so is logged by the store."""
        async with self._saving:
            await self._save()

    async def _save(self) -> None:
        self._changed.clear()
        agent = self._agent
        if agent is None or not self._cache.ready:
            return
        feed = Snapshot(
            token=self._follower.token, entries=tuple(self._cache.entries()), bundles=tuple(self._cache.bundles())
        )
        svids = tuple(self._stored(svid) for svid in self._cache.svids())
        policies, came = self._follower.policies.payload, self._follower.policies.came
        # The feed last: a resume token must never be newer than what it resumes from.
        await asyncio.to_thread(self._store.save_svids, agent, svids)
        if policies is not None and policies is not self._saved_policies:
            await asyncio.to_thread(self._store.save_policies, agent, policies)
            self._saved_policies = policies if self._store.cache_problem is None else None
        await asyncio.to_thread(self._store.save_feed, agent, feed, came)
        self._report()

    def _report(self) -> None:
        problem = self._store.cache_problem
        if self._condition is None:
            return
        if problem is not None:
            self._condition.report("cache", problem)
        elif self._condition.clear("cache"):
            log.info("the cache is saved again")

    def _stored(self, svid: WorkloadSvid) -> StoredSvid:
        entry = self._cache.entry(svid.entry_id)
        current = entry is not None and svid.asked == asked_for(entry)
        return StoredSvid(
            entry_id=svid.entry_id,
            entry_revision=entry.revision_number if entry is not None and current else -1,
            chain=svid.chain,
            key_der=svid.key,
            issued_at=svid.issued_at,
            not_after=svid.not_after,
        )

    def _revived(self, stored: Iterable[StoredSvid], now: datetime) -> list[WorkloadSvid]:
        """Those that are still valid and whose entry is still here, ready to be served and to be rotated in time."""
        revived = []
        for item in stored:
            entry = self._cache.entry(item.entry_id)
            if entry is None or item.not_after <= now:
                continue
            try:
                svid = parse_x509_svid(item.chain)
            except BurgeeError as error:
                log.warning("a saved SVID is ignored", reason=error.reason, entry_id=item.entry_id)
                continue
            current = item.entry_revision == entry.revision_number
            at = rotate_at(item.issued_at, item.not_after, self._jitter())
            revived.append(
                WorkloadSvid(
                    entry_id=item.entry_id,
                    spiffe_id=svid.id,
                    chain=item.chain,
                    key=item.key_der,
                    issued_at=item.issued_at,
                    not_after=item.not_after,
                    rotate_at=at,
                    rotate_by=self._clock.monotonic() + (at - now).total_seconds(),
                    issuer_ids=issuer_ids(svid.authority_key_id, item.chain[1:]),
                    asked=asked_for(entry) if current else (),
                )
            )
        return revived
