"""The agent: `python -m sds.agent --config FILE [--check]`. Composition root; everything is put together here."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # The standard library loads these where they are there, for archives that no agent makes: 0.5 MB on every node.
    _UNUSED = {"bz2", "lzma"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(_UNUSED))  # type: ignore[arg-type]

    from ca.runtime.stand_ins import load_protobuf

    load_protobuf()

import argparse
import asyncio
import gc
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from attestor.workload.run import attest_all
from ca.errors import BurgeeError, ConfigError
from ca.ports import Clock
from ca.runtime import memory, notify
from ca.runtime.admin_group import warn_if_alone
from ca.runtime.clock import SystemClock
from ca.runtime.config import load_yaml
from ca.runtime.health import Health
from ca.runtime.heartbeat import Heartbeat
from ca.runtime.log import configure, get
from ca.runtime.log_levels import LogLevels
from ca.runtime.reload import reload
from ca.runtime.status_server import StatusServer, serve_metrics_and_health
from ca.runtime.tasks import Tasks
from sds.admin_api import agent_version
from sds.admin_services import DELEGATED, add_admin_services
from sds.agent_metrics import expose
from sds.attestation_ring import telling
from sds.cache import Cache
from sds.condition import Condition
from sds.config import AgentConfig
from sds.data_dir import take_data_dir
from sds.decisions import Decisions
from sds.envoy import EnvoySds
from sds.envoy_status import SdsClients
from sds.first_trust import ServerTrust
from sds.follower import Follower, Keeper, follow_with
from sds.health import delivery_problem, health_handler, no_service, serving
from sds.jwt_cache import JwtCache
from sds.keys import KeyPool
from sds.node_client import NodeClient
from sds.node_identity import NodeIdentity
from sds.plugins import deadlines, node_attestor, workload_attestors
from sds.policy_ecds import EnvoyPolicies
from sds.policy_held import HeldPolicies
from sds.policy_unpushed import Unpushed
from sds.reflection import Reflection
from sds.request_pace import RequestPace
from sds.rotation import Rotator
from sds.secrets import Form, SecretNames
from sds.socket_watch import SocketWatch
from sds.sockets import Administrators, AdministratorsOnly, Endpoint, admin_access
from sds.state import open_store
from sds.workload_api import WorkloadApi
from sds.workload_share import share_of_caller
from sds.workloads import Workloads

KEYS_AHEAD = 32
THREADS = 64
STOP_SECONDS = 2.0
"""What calls under way get when the agent stops."""
LIVE = frozenset({"log", "admin_socket.admin_uids"})
"""What a reload applies; every other key waits for a restart."""
log = get("sds.agent")


class Agent:
    """All parts of one agent. `start`, then it serves until `close`. Raises ConfigError, FailedPrecondition."""

    def __init__(self, config: AgentConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.health = Health()
        self.heartbeat = Heartbeat(clock=self.clock, pool=None)
        self.condition = Condition(self.clock)
        self.log_levels = LogLevels(config.log.level)
        self._lock = take_data_dir(config.data_dir)
        self._make_delivery()
        self._make_server_side()
        self._make_rotation()
        self._status: StatusServer | None = None
        self._closed = False

    # --- putting together ---------------------------------------------------------------------------------------

    def _make_delivery(self) -> None:
        """What workloads meet: attestation, cache, sockets."""
        limits = self.config.limits
        self.attestors = workload_attestors(self.config)

        self.cache = Cache(self.config.domain, clock=self.clock, not_ready=lambda: no_service(self.condition))
        self.workloads = Workloads(
            attest=telling(partial(attest_all, self.attestors, deadlines=deadlines(self.config, self.attestors))),
            cache=self.cache,
            clock=self.clock,
            interval_seconds=self.config.attest_interval_seconds,
            cpu_share=self.config.attest_cpu_share,
            limits=limits,
        )
        self.clients = SdsClients()
        private = self.config.data_dir / "private"
        shutil.rmtree(private, ignore_errors=True)  # what a killed agent left; the lock says that none runs
        self.workload_endpoint = Endpoint("workload", private_directory=private, clock=self.clock, limits=limits.gate())
        self.administrators = Administrators(self.config.admin_socket.admin_uids)
        guard = AdministratorsOnly(self.administrators, open_services=frozenset({DELEGATED}))
        self.admin_endpoint = Endpoint("admin", private_directory=private, clock=self.clock, layers=[guard])

    def _make_server_side(self) -> None:
        """What meets the server: first trust, the agent's identity, the feed."""
        self.node_attestor = attestor, prover = node_attestor(self.config)
        self.store = open_store(self.config)
        self.trust = ServerTrust(config=self.config, clock=self.clock, store=self.store)
        self.identity = NodeIdentity(
            config=self.config,
            clock=self.clock,
            store=self.store,
            trust=self.trust,
            attestor=attestor,
            prover=prover,
            condition=self.condition,
        )
        self.policies = HeldPolicies()
        self.follower = Follower(cache=self.cache, clients=self.clients, clock=self.clock, policies=self.policies)
        self.decisions = Decisions(
            config=self.config,
            peer_of=self.workload_endpoint.gate.peer_of,
            workloads=self.workloads,
            cache=self.cache,
            held=self.policies,
            clients=self.clients,
            clock=self.clock,
            agent_id=lambda: str(self.identity.svid.id) if self.identity.svid else "",
        )
        self.follower.logged = self.decisions.logged
        self.client = NodeClient(
            config=self.config,
            clock=self.clock,
            identity=self.identity,
            trust=self.trust,
            feed=self.follower,
            condition=self.condition,
            version=agent_version(),
            next_expiry=self.cache.next_expiry,
        )
        self.keeper = Keeper(
            store=self.store,
            cache=self.cache,
            follower=self.follower,
            clock=self.clock,
            condition=self.condition,
        )
        self.clients.on_answer.append(self.client.acknowledge)
        self.cache.on_change.append(self.client.acknowledge)
        self.policies.on_verdict.append(self.client.acknowledge)
        self.identity.on_rotated(self._identity_changed)
        self.identity.on_banned(self._banned)

    def _make_rotation(self) -> None:
        """What keeps SVIDs fresh."""
        self.jwts = JwtCache(issuer=self.client, clock=self.clock, limits=self.config.limits)
        self.keys = KeyPool(self.config.key_type, size=KEYS_AHEAD)
        self.rotator = Rotator(
            cache=self.cache, issuer=self.client, keys=self.keys, clock=self.clock, condition=self.condition
        )
        self.cache.on_demand.append(self.rotator.poke)
        self.follower.follows.append(follow_with(self.rotator, self.jwts, self.config.domain))
        self.tasks = Tasks(clock=self.clock, health=self.health)

    # --- running ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve what an earlier run saved, open the sockets, and begin to follow the server."""
        self.keys.start()
        held = await asyncio.to_thread(self.store.load_agent)
        if held is not None and self.keeper.load(held.id):
            log.info("serving what was sealed", entries=len(self.cache.entries()), svids=len(self.cache.svids()))
        self._report()
        await self._open_sockets()
        if self.config.metrics_address is not None:
            self._status = await serve_metrics_and_health(self.config.metrics_address, self.health)
        loops: dict[str, Callable[[], Awaitable[object]]] = {
            "identity": self.identity.run,
            "sync": self.client.run,
            "rotation": self.rotator.run,
            "attestation": self.workloads.run,
            "expiry": self.cache.run,
            "keeper": self.keeper.run,
            "policies": self.policies.run,
        }
        for name, run in loops.items():
            self.heartbeat.essential(name, self.tasks.spawn(name, run))
        self.tasks.spawn("heartbeat", self.heartbeat.run)
        watch = SocketWatch(self.config.workload_socket, condition=self.condition, clock=self.clock)
        self.health.add("workload_socket", watch.problem)
        self.tasks.spawn("workload_socket", watch.run)
        log.info("agent started", workload_socket=str(self.config.workload_socket), version=agent_version())

    def reconfigure(self, config: AgentConfig) -> None:
        """Goes on with `config`, which differs in `LIVE` keys alone."""
        self.config = config
        configure(config.log.format, config.log.level)
        self.log_levels.configured(config.log.level)
        self.administrators.configured = config.admin_socket.admin_uids

    async def close(self) -> None:
        """End streams, save what there is, let go of everything; harmless when done twice."""
        if self._closed:
            return
        self._closed = True
        endpoints = (self.workload_endpoint, self.admin_endpoint)
        ending = asyncio.gather(*(endpoint.close(grace_seconds=STOP_SECONDS) for endpoint in endpoints))
        await asyncio.sleep(0)  # from here on nobody new is let in
        self.workloads.close()  # streams would go on for ever
        await ending
        await self.decisions.close()
        await self.tasks.close()
        await self.keeper.save()
        self.jwts.close()
        await self.keys.close()
        await self.client.close()
        if self._status is not None:
            await self._status.close()
        os.close(self._lock)

    async def _open_sockets(self) -> None:
        workload = self.workload_endpoint
        peer_of = workload.gate.peer_of
        pace = RequestPace(self.config.limits.max_sds_requests_per_second_per_workload, self.clock)
        api = WorkloadApi(peer_of=peer_of, workloads=self.workloads, cache=self.cache, jwts=self.jwts, clock=self.clock)
        sds = EnvoySds(
            peer_of=peer_of,
            workloads=self.workloads,
            cache=self.cache,
            clients=self.clients,
            clock=self.clock,
            pace=pace,
            names=SecretNames(
                svid=self.config.sds.default_svid_name,
                bundle=self.config.sds.default_bundle_name,
                all_bundles=self.config.sds.default_all_bundles_name,
            ),
            validator=Form(self.config.sds.validator),
        )
        policies = EnvoyPolicies(
            peer_of=peer_of,
            workloads=self.workloads,
            cache=self.cache,
            held=self.policies,
            clients=self.clients,
            clock=self.clock,
            pace=pace,
            lasting_seconds=self.config.policy.lasting_seconds,
            unpushed=Unpushed(self.policies, self.clients, self.condition),
        )
        health = health_handler(lambda: serving(self.cache, self.rotator, self.condition, self.clock))
        self.decisions.start()
        served = (api.handler(), sds.handler(), policies.handler(), *self.decisions.handlers())
        workload.server.add_generic_rpc_handlers((*served, health, *Reflection().handlers()))
        add_admin_services(self)
        await self.admin_endpoint.listen(self.config.admin_socket_path, **self._admin_access())
        # Workload Endpoint §2, §3 (E1, E2, E5, E6): a Unix socket of this host and nothing else. Anybody may connect;
        # who it is decides what is given (§5, E17).
        await workload.listen(self.config.workload_socket, mode=0o777, dir_mode=0o755, share_of=share_of_caller)

    def _admin_access(self) -> dict[str, Any]:
        delegates = bool(self.config.authorized_delegates)
        admin = self.config.admin_socket
        warn_if_alone(admin.admin_group, admits=delegates or bool(admin.admin_uids))
        return admin_access(self.config.admin_socket, uids=self.administrators, delegates=delegates)

    def _report(self) -> None:
        self.health.add("alive", self.heartbeat.check, live=True)
        self.health.add("delivery", lambda: delivery_problem(self.cache, self.rotator, self.condition, self.clock))
        expose(
            cache=self.cache,
            jwts=self.jwts,
            follower=self.follower,
            condition=self.condition,
            clock=self.clock,
            svid_not_after=lambda: self.identity.svid.not_after if self.identity.svid else None,
            connected=lambda: self.client.connected,
        )

    def _identity_changed(self) -> None:
        svid = self.identity.svid
        if svid is not None:
            self.keeper.belongs_to(svid.id)

    async def _banned(self) -> None:
        """Nothing is served, and nothing remembered, until there is a new identity and a snapshot for it."""
        await self.keeper.stop()
        self.jwts.retain(frozenset())
        self.follower.forget()
        self.cache.clear(lambda: no_service(self.condition))


def check(config: AgentConfig) -> None:
    """What can be known to be wrong without touching anything. Raises ConfigError."""
    node_attestor(config)
    workload_attestors(config)


async def serve(config: AgentConfig, path: Path | None = None) -> None:
    """Run an agent until SIGTERM or SIGINT; SIGHUP reads `path` again."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # what was read just now need not be read again
    # A name server that does not answer keeps its threads for long; others must not run out of them. Attestation has
    # its own (`ca.runtime.threads`).
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="agent"))
    agent = Agent(config)
    try:
        await agent.start()
        # What start-up made lives as long as the process: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        memory.trim()
        if path is not None:
            file = path
            loop.add_signal_handler(
                signal.SIGHUP, lambda: reload(file, agent.config, live=LIVE, check=check, apply=agent.reconfigure)
            )
        notify.ready()
        await stop.wait()
        log.info("agent stopping")
        notify.stopping()
    finally:
        await agent.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after a stop by signal, 1 when it cannot run here, 2 for a wrong configuration or command line."""
    parser = argparse.ArgumentParser(prog="burgee agent", description="The Burgee agent of this node.")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the configuration, YAML")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    options = parser.parse_args(arguments)
    try:
        config = load_yaml(options.config, AgentConfig)
        configure(config.log.format, config.log.level)
        if options.check:
            check(config)
            print(f"{options.config}: the configuration is valid")
            return 0
        memory.keep_private()
        memory.share_arena()
        asyncio.run(serve(config, options.config))
    except BurgeeError as error:
        print(
            f"error: {error.detail} ({error.reason})" + (f"\n  hint: {error.hint}" if error.hint else ""),
            file=sys.stderr,
        )
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    for name in _UNUSED:  # a plugin may need them
        del sys.modules[name]
    sys.exit(main())
