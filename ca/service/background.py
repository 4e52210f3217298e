"""What a server does beside answering calls: tasks under supervision, health, and what follows from changes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Protocol

from ca.identity.spiffe_id import TrustDomain
from ca.ports import AuthorityHost, Clock
from ca.runtime import metrics
from ca.runtime.gate import Gate
from ca.runtime.health import Health
from ca.runtime.heartbeat import Heartbeat
from ca.runtime.server_config import ServerConfig
from ca.runtime.tasks import Tasks
from ca.service.bundle_file import BundleFile
from ca.service.bundle_pruning import BundlePruning
from ca.service.configured import bundle_publishers
from ca.service.entry_expiry import EntryExpiry
from ca.service.feed import Feed
from ca.service.follower import Follower
from ca.service.leftover_keys import LeftoverKeys
from ca.service.maintenance import Maintenance
from ca.service.peers import AgentTable
from ca.service.policy.book import PolicyBook
from ca.service.pruning import Pruner
from ca.service.publishing import Publishing
from ca.service.revocation import Revocation
from ca.service.rotation import AuthorityManager
from ca.service.server_svid import ServerSvid
from ca.service.sign_on import SignOn
from ca.service.store_watch import StoreWatch
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store

_connected = metrics.gauge("connected_agents", "Agents with an open push stream.")
_lag = metrics.gauge("sync_lag_seconds", "Since the server's memory last agreed with the store.")


class Parts(Protocol):
    """What the tasks look after; the server has them all."""

    config: ServerConfig
    clock: Clock
    trust_domain: TrustDomain
    health: Health
    heartbeat: Heartbeat
    store: Store
    trust: Trust
    index: AuthorizedIndex
    agents: AgentTable
    follower: Follower
    feed: Feed
    gate: Gate
    authority: AuthorityManager
    leftovers: LeftoverKeys | None
    server_svid: ServerSvid
    sign_on: SignOn
    pruner: Pruner
    policy: PolicyBook

    @property
    def publisher_host(self) -> AuthorityHost: ...


async def start(parts: Parts, stack: AsyncExitStack) -> Maintenance:
    """Starts all of it, to be ended by `stack`; returns the schedule, which a reload may change."""
    _follow_changes(parts)
    store_watch = StoreWatch(store=parts.store, follower=parts.follower, clock=parts.clock)
    _add_checks(parts, store_watch)
    tasks = Tasks(clock=parts.clock, health=parts.health)
    stack.push_async_callback(tasks.close)
    maintenance = Maintenance(pruner=parts.pruner, clock=parts.clock, every_seconds=parts.config.prune.every_seconds)
    await _spawn(parts, tasks, store_watch, maintenance)
    _connected.set_function(lambda: parts.feed.connected)
    _lag.set_function(lambda: parts.clock.monotonic() - store_watch.agreed_at)
    return maintenance


def _follow_changes(parts: Parts) -> None:
    parts.server_svid.on_renewed = parts.gate.refresh_tls
    revocation = Revocation(gate=parts.gate, feed=parts.feed, trust=parts.trust, clock=parts.clock)
    parts.follower.on_applied(revocation.on_applied)
    parts.agents.on_change(revocation.on_agent)


def _add_checks(parts: Parts, store_watch: StoreWatch) -> None:
    parts.health.add("keys", parts.sign_on.check)
    parts.health.add("authority", parts.authority.check)
    parts.health.warn("rotation", parts.authority.warning)
    parts.health.warn("upstream", parts.authority.upstream_warning)
    parts.health.add("server_svid", parts.server_svid.check)
    parts.health.warn("policy", parts.policy.held.problem)
    parts.health.warn("policy_key_sets", parts.policy.key_sets.problem)
    parts.health.add("store", store_watch.check)
    parts.health.add("alive", parts.heartbeat.check, live=True)


async def _spawn(parts: Parts, tasks: Tasks, store_watch: StoreWatch, maintenance: Maintenance) -> None:
    """The server cannot be without the essential ones for long."""
    if parts.config.bundle_file is not None:
        file = BundleFile(parts.config.bundle_file, parts.trust)
        await file.write()
        tasks.spawn("bundle-file", file.run)
    _spawn_publishers(parts, tasks)
    pruning = BundlePruning(
        store=parts.store, trust_domain=parts.trust_domain, follower=parts.follower, clock=parts.clock
    )
    tasks.spawn("bundle-pruning", pruning.run)
    tasks.spawn("heartbeat", parts.heartbeat.run)
    tasks.spawn("entry-expiry", EntryExpiry(index=parts.index, follower=parts.follower, clock=parts.clock).run)
    essential = parts.heartbeat.essential
    essential("follower", tasks.spawn("follower", parts.follower.run))
    essential("authority", tasks.spawn("authority", parts.sign_on.run))
    if parts.sign_on.keys is not None:
        essential("keys", tasks.spawn("keys", parts.sign_on.keys.run))
    essential("server-svid", tasks.spawn("server-svid", parts.server_svid.run))
    essential("store-watch", tasks.spawn("store-watch", store_watch.run))
    tasks.spawn("maintenance", maintenance.run)
    tasks.spawn("policy", parts.policy.held.run)
    tasks.spawn("policy-targets", parts.policy.held.run_entries)
    tasks.spawn("policy-key-sets", parts.policy.key_sets.run)
    if parts.leftovers is not None:
        tasks.spawn("leftover-keys", parts.leftovers.run)


def _spawn_publishers(parts: Parts, tasks: Tasks) -> None:
    """Each is a task of its own: an API that hangs is nobody else's to wait for."""
    for name, publisher in bundle_publishers(parts.config, parts.publisher_host).items():
        publishing = Publishing(name, publisher, trust=parts.trust, clock=parts.clock)
        parts.health.warn(f"publisher:{name}", publishing.problem)
        tasks.spawn(f"publisher-{name}", publishing.run)
