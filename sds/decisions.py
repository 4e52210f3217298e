"""What an agent decides for proxies and hears of their decisions: its part of the workload socket, and the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import grpc

from ca.ports import Clock
from ca.runtime.decision_log import DecisionLog
from sds.access_log import AccessLogs
from sds.askers import Askers
from sds.authz import ExtAuthz
from sds.cache import Cache
from sds.config import AgentConfig
from sds.envoy_status import SdsClients
from sds.policy_held import HeldPolicies
from sds.policy_rollout import gone_by
from sds.providers import Provider, providers_of
from sds.workloads import Caller, Context, Workloads

if TYPE_CHECKING:
    from sds.authz_checks import Checks


class Decisions:
    """`start` on the event loop, then serve the `handlers`. `agent_id` is written into records."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        peer_of: Callable[[Context], Caller],
        workloads: Workloads,
        cache: Cache,
        held: HeldPolicies,
        clients: SdsClients,
        clock: Clock,
        agent_id: Callable[[], str] = str,
    ) -> None:
        settings = config.policy
        directory = settings.decision_log.directory or config.data_dir / "decisions"
        self.log = DecisionLog(settings.decision_log, directory, agent=agent_id, now=clock.now)
        self._held, self._clock = held, clock
        self._configured = settings.providers
        self._providers: dict[str, Provider] = {}
        self._askers = Askers(workloads=workloads, cache=cache, clock=clock)
        self._authz = ExtAuthz(peer_of=peer_of, askers=self._askers, checks=self._checks)
        self._access_logs = AccessLogs(
            peer_of=peer_of,
            workloads=workloads,
            cache=cache,
            held=held,
            clock=clock,
            log=self.log,
            revision_of=partial(gone_by, clients),
            on_change=clients.moved,
        )

    def start(self) -> None:
        """Raises FailedPrecondition (NOT_PRIVATE), OSError where the log cannot be written."""
        self.log.start()
        self._providers = providers_of(self._configured)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """For the workload socket."""
        return self._authz.handler(), self._access_logs.handler()

    def logged(self, pid: int, node_id: str) -> bool:
        """Implements policy_rollout.Logged."""
        return self._access_logs.logged(pid)

    async def close(self) -> None:
        """Write what waits; nothing more may come."""
        await self._askers.close()
        for provider in self._providers.values():
            await provider.close()
        await asyncio.to_thread(self.log.close)

    def _checks(self) -> Checks:
        from sds.authz_checks import Checks  # the engine, which an agent that nobody asks does without

        return Checks(held=self._held, clock=self._clock, log=self.log, providers=lambda: self._providers)
