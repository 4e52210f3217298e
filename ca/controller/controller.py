"""Composition: mirrors of the cluster, the reconciler, what is said of it, and the lease that lets one of them act."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

from ca.controller.config import ControllerConfig
from ca.controller.entry_api import AdminChannel, EntryApi
from ca.controller.guard import DeletionGuard
from ca.controller.pod_certificates import pod_certificates
from ca.controller.reconciler import Reconciler, held_hint
from ca.controller.status import GROUP, PLURALS, StatusWriter
from ca.controller.values import Resource, read_meta, read_node_spec, read_pod, read_resource, read_slice
from ca.controller.world import World
from ca.ports import Clock
from ca.runtime import log, metrics
from ca.runtime.clock import SystemClock
from ca.runtime.health import Health, Problem
from ca.runtime.heartbeat import Heartbeat
from ca.runtime.kube import KubeClient
from ca.runtime.kube_lease import LeaderElection
from ca.runtime.kube_mirror import Mirror
from ca.runtime.kube_watch import Object
from ca.runtime.status_server import serve_metrics_and_health
from ca.runtime.tasks import Tasks

V = TypeVar("V")

SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
ALLOW = "burgee/allow-deletions"
MAX_OBJECT_BYTES = 16 << 20
_log = log.get("controller")
_entries = metrics.gauge("controller_entries", "Entries of this controller that the server has.")
_leading = metrics.gauge("controller_leading", "1 while this controller acts.")
_held = metrics.gauge("controller_deletions_held", "Entries that are not deleted, for they are too many at once.")


class Controller:
    """`start`, then `close`. Raises ConfigError where the Kubernetes API is described wrongly."""

    def __init__(self, config: ControllerConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.health = Health()
        self.tasks = Tasks(clock=self.clock, health=self.health)
        self.heartbeat = Heartbeat(clock=self.clock, pool=None)
        self.identity = f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        self.metrics_address = ""
        self.kube = kube_client(config)
        self.channel = AdminChannel(config.server, self.clock)
        self.world = World(config)
        self.guard = DeletionGuard(config.deletion_guard, self.clock)
        self.election = self._election()
        self.reconciler = Reconciler(
            world=self.world,
            api=EntryApi(self.channel, self.world.settings.is_ours),
            guard=self.guard,
            clock=self.clock,
            resync_seconds=config.resync_seconds,
            ready=self._seen_whole,
            may_act=self.leads,
            allowed=self._allowed,
            used_allowance=self._used_allowance,
            done=self._after_round,
        )
        self.status = StatusWriter(
            client=self.kube,
            reconciler=self.reconciler,
            clock=self.clock,
            identity=self.identity,
            may_act=self.leads,
        )
        self.mirrors = self._mirrors()
        self.services = self._mirror("endpointslices", SLICES, read_slice, self.world.slice_changed)
        self.node_specs = self._mirror("nodes' specs", "/api/v1/nodes", read_node_spec, self.world.node_spec_changed)
        self.world.services_known = lambda: self.services.synced
        self.certificates = pod_certificates(config, self.kube, self.clock, self.leads)
        self._stack = AsyncExitStack()

    def leads(self) -> bool:
        """Whether this one may act now."""
        return self.election is None or self.election.leading

    async def start(self) -> None:
        """Begins; what is not there yet is waited for."""
        self._stack.callback(self.kube.close)
        self._stack.push_async_callback(self.channel.close)
        self._stack.push_async_callback(self.tasks.close)
        self._report()
        if self.config.metrics_address is not None:
            served = await serve_metrics_and_health(self.config.metrics_address, self.health)
            self._stack.push_async_callback(served.close)
            self.metrics_address = f"{served.host}:{served.port}"
        for mirror in self.mirrors.values():
            self.spawn(f"watch {mirror.what}", mirror.run)
        self.spawn("services", lambda: self._follow(self.services, lambda: self.world.wants_services))
        self.spawn("nodes' specs", lambda: self._follow(self.node_specs, lambda: self.world.wants_node_specs))
        if self.certificates is not None:
            self._stack.push_async_callback(self.certificates.close)
            self.spawn("pod-certificates", self.certificates.run)
        self.spawn("reconcile", self.reconciler.run)
        self.spawn("status", self.status.run)
        if self.election is not None:
            self.spawn("lease", self.election.run)
        self.tasks.spawn("heartbeat", self.heartbeat.run)

    async def close(self) -> None:
        """Lets the lease go, then everything else."""
        await self._stack.aclose()

    def spawn(self, name: str, run: Callable[[], Awaitable[object]]) -> None:
        """A task without which this program is of no use."""
        self.heartbeat.essential(name, self.tasks.spawn(name, run))

    def reconfigure(self, config: ControllerConfig) -> None:
        """Goes on with `config`, which differs in `LIVE` keys alone."""
        self.config = config
        log.configure(config.log.format, config.log.level)
        self.guard.config = config.deletion_guard
        self.world.wake.set()

    def _election(self) -> LeaderElection | None:
        lease = self.config.lease
        if lease is None:
            return None
        return LeaderElection(
            self.kube,
            namespace=lease.namespace,
            name=lease.name,
            identity=self.identity,
            clock=self.clock,
            duration_seconds=lease.duration_seconds,
            renew_seconds=lease.renew_seconds,
            changed=lambda leading: self.world.wake.set(),
        )

    def _mirrors(self) -> dict[str, Mirror[Any]]:
        world = self.world
        made: list[Mirror[Any]] = [
            self._mirror("pods", "/api/v1/pods", read_pod, world.pod_changed),
            self._mirror("nodes", "/api/v1/nodes", read_meta, world.node_changed, metadata_only=True),
            self._mirror("namespaces", "/api/v1/namespaces", read_meta, world.namespace_changed, metadata_only=True),
            *(
                self._mirror(name, f"{GROUP}/{name}", read_resource, self._resource_changed)
                for name in PLURALS.values()
            ),
        ]
        return {mirror.what: mirror for mirror in made}

    def _resource_changed(self, key: str, before: Resource | None, after: Resource | None, seen: bool) -> None:
        self.world.resource_changed(key, before, after, seen)
        self.status.poke()

    def _mirror(
        self,
        what: str,
        path: str,
        read: Callable[[Object], V | None],
        changed: Callable[[str, V | None, V | None, bool], None],
        *,
        metadata_only: bool = False,
    ) -> Mirror[V]:
        mirror = Mirror(
            self.kube, path, read, what=what, clock=self.clock, changed=changed, metadata_only=metadata_only
        )
        mirror.on_synced = self.world.wake.set
        return mirror

    async def _follow(self, mirror: Mirror[Any], wanted: Callable[[], bool]) -> None:
        """Not before somebody asks for it: who never does need not permit it, nor pay for it."""
        while not wanted():
            await self.clock.sleep(0.2)
        mirror.on_synced = self.world.touch_all
        await mirror.run()

    def _seen_whole(self) -> bool:
        return all(mirror.synced for mirror in self.mirrors.values())

    def _allowed(self) -> int:
        text = self.election.annotations.get(ALLOW, "") if self.election is not None else ""
        return int(text) if text.isdecimal() and len(text) < 10 else 0

    async def _used_allowance(self) -> None:
        if self.election is not None:
            await self.election.forget_annotation(ALLOW)

    def _after_round(self) -> None:
        _entries.set(self.reconciler.entries or 0)
        _held.set(self.guard.held)
        self.status.poke()

    def _report(self) -> None:
        self.health.add("alive", self.heartbeat.check, live=True)
        for mirror in self.mirrors.values():
            self.health.add(f"watch:{mirror.what}", partial(_mirror_problem, mirror))
        self.health.add("watch:endpointslices", self._services_problem)
        self.health.add("watch:nodes' specs", self._node_specs_problem)
        self.health.add("server", self._server_problem)
        if self.certificates is not None:
            self.health.add("watch:podcertificaterequests", partial(_mirror_problem, self.certificates.mirror))
            self.health.warn("pod_certificates", self.certificates.problem)
        self.health.warn("deletions", self._held_problem)
        self.health.warn("resources", self._rules_problem)
        _leading.set_function(lambda: float(self.leads()))

    def _services_problem(self) -> Problem | None:
        return _mirror_problem(self.services) if self.world.wants_services else None

    def _node_specs_problem(self) -> Problem | None:
        return _mirror_problem(self.node_specs) if self.world.wants_node_specs else None

    def _server_problem(self) -> Problem | None:
        found = self.reconciler.problem
        return None if found is None else Problem(reason=found.reason, detail=found.detail, hint=found.hint)

    def _held_problem(self) -> Problem | None:
        if not self.guard.held:
            return None
        detail = f"{self.guard.held} entries are not deleted, for they are too many at once"
        return Problem(reason="DELETIONS_REFUSED", detail=detail, hint=held_hint(self.guard.held))

    def _rules_problem(self) -> Problem | None:
        wrong = sorted(rule.resource.name for rule in self.world.rules if rule.problem is not None)
        if not wrong:
            return None
        return Problem(reason="RESOURCE_INVALID", detail=f"not applied: ClusterSPIFFEIDs {', '.join(wrong[:10])}")


def kube_client(config: ControllerConfig) -> KubeClient:
    if config.kubeconfig is not None:
        return KubeClient.from_kubeconfig(config.kubeconfig, max_bytes=MAX_OBJECT_BYTES)
    return KubeClient.in_cluster(max_bytes=MAX_OBJECT_BYTES)


def _mirror_problem(mirror: Mirror[Any]) -> Problem | None:
    found = mirror.problem
    if found is not None:
        return Problem(reason=found.reason, detail=f"{mirror.what}: {found.detail}", hint=found.hint)
    if not mirror.synced:
        return Problem(reason="NOT_SYNCED", detail=f"{mirror.what} have not been listed yet")
    return None
