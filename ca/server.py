"""The server's composition root: everything is put together here. `ca/serve.py` is the program."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING

from ca.api.assembly import servicers
from ca.api.audit import AuditedAccess, Auditor
from ca.api.grpc_side import GrpcSide
from ca.api.http import HttpSide
from ca.api.limits import Limits
from ca.api.policy.check import CheckService
from ca.api.policy.parts import PolicyParts
from ca.api.rest import application
from ca.identity.spiffe_id import TrustDomain
from ca.identity.svid import X509Svid, verify_x509_svid
from ca.ports import AuthorityHost, Clock, Connected
from ca.runtime import log
from ca.runtime.admin_group import warn_if_alone
from ca.runtime.clock import SystemClock
from ca.runtime.decision_log import DecisionLog
from ca.runtime.files import make_private_dir, unusable
from ca.runtime.gate import Gate, PeerCred
from ca.runtime.health import Health
from ca.runtime.heartbeat import Heartbeat
from ca.runtime.istio_config import IstioConfig
from ca.runtime.log_levels import LogLevels
from ca.runtime.private_socket import private_socket
from ca.runtime.server_config import ServerConfig
from ca.runtime.status_server import serve_metrics_and_health
from ca.service import background
from ca.service.attestation import Host, NodeAttestation, load_verifiers
from ca.service.configured import (
    admin_gid,
    admin_ids,
    check,
    consumer_waits,
    gate_limits,
    has_files,
    has_own_keys,
    issue_settings,
    key_manager,
    prune_policy,
    require_free_addresses,
    rotation_settings,
    upstream_link,
)
from ca.service.feed import Feed
from ca.service.follower import Follower
from ca.service.issuance import Issuer
from ca.service.leftover_keys import is_known_store, leftover_keys
from ca.service.longest_ttl import LongestTtls
from ca.service.peers import AgentAuthorizer, AgentTable
from ca.service.policy.book import PolicyBook
from ca.service.policy.made import policy_admins, policy_book
from ca.service.pruning import Pruner
from ca.service.rotation import AuthorityManager
from ca.service.rotation_guard_parts import GuardParts, guard_parts
from ca.service.server_name import has_name, server_name
from ca.service.server_svid import ServerSvid
from ca.service.sign_on import SignOn
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store

if TYPE_CHECKING:
    from ca.api.istio_server import IstioServer

logger = log.get("server")

WORKERS = 2


class Server:
    """One server in this process. `start`, then `stop`; `address` is where agents connect."""

    def __init__(self, config: ServerConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.trust_domain = TrustDomain(config.trust_domain)
        self.health = Health()
        self.address = ("", 0)
        self.metrics_address = ""
        self.istio: IstioServer | None = None
        self._stack = AsyncExitStack()
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Returns when a workload could get an SVID; where keys are out of reach, when it has begun to try for them.

        Raises a BurgeeError, and then nothing is left running.
        """
        check(self.config)
        try:
            await self._start()
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, OSError):
                raise unusable(error) from error
            raise

    async def stop(self) -> None:
        """Calls under way end, streams are told, then everything is closed in the reverse order of its start."""
        self.feed.drain()
        self.admin.drain()
        await self._stack.aclose()

    def reconfigure(self, config: ServerConfig) -> None:
        """Goes on with `config`, which differs in `LIVE` keys alone."""
        self.config = config
        log.configure(config.log.format, config.log.level)
        self.log_levels.configured(config.log.level)
        gone = self.access.admin_ids - admin_ids(config)
        self.access.admin_ids = admin_ids(config)
        self.gate.close_peers(lambda peer: peer.svid is not None and peer.svid.id in gone, "ADMIN_REMOVED")
        self.issuer.settings = replace(
            self.issuer.settings,
            x509_svid_ttl_seconds=config.x509_svid_ttl_seconds,
            jwt_svid_ttl_seconds=config.jwt_svid_ttl_seconds,
            agent_ttl_seconds=config.agent_ttl_seconds,
        )
        self.pruner.policy = prune_policy(config.prune)
        self._maintenance.every_seconds = config.prune.every_seconds
        self.auditor.reads = config.audit.reads
        self.policy.admins = policy_admins(config.policy)

    async def _start(self) -> None:
        require_free_addresses(self.config)
        make_private_dir(self.config.data_dir)
        await self._open_store()
        await self._make_authority()
        self._make_services()
        await self._listen()
        if self.config.istio is not None:
            await self._serve_istio(self.config.istio)
        await self._watch()

    async def _open_store(self) -> None:
        """The store and what of it is kept in memory."""
        known = has_name(self.config.data_dir)
        self.store = await Store.open(self.config.store_url, clock=self.clock, known=known)
        self._stack.push_async_callback(self.store.close)
        self.trust = Trust(self.trust_domain)
        self.index = AuthorizedIndex(self.trust_domain, self.clock.now)
        self.agents = AgentTable(self.store.agents)
        self.follower = Follower(store=self.store, index=self.index, agents=self.agents, trust=self.trust)
        await self.follower.load()
        self.policy: PolicyBook = await policy_book(
            self.config,
            store=self.store,
            index=self.index,
            clock=self.clock,
            server=server_name(self.config.data_dir),
        )
        self.follower.on_applied(self.policy.held.on_applied)

    async def _make_authority(self) -> None:
        """Keys, authorities, issuers, and the server's own SVID."""
        config = self.config
        pool = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="crypto")
        self._stack.callback(pool.shutdown)
        self.heartbeat = Heartbeat(clock=self.clock, pool=pool)
        server = server_name(config.data_dir)
        keys = key_manager(config, self._authority_host(server))
        if isinstance(keys, Connected):
            self._stack.push_async_callback(keys.close)
        self.leftovers = leftover_keys(
            keys,
            own=has_own_keys(config),
            store=self.store,
            clock=self.clock,
            ca_ttl_seconds=config.ca_ttl_seconds,
        )
        if not is_known_store(config.data_dir, self.store.epoch):
            self.leftovers = None
        self.guarding = self._guard_parts()
        self.longest_ttl = LongestTtls(
            entries=self.store.entries,
            settings=lambda: self.issuer.settings,
            ca_ttl_seconds=config.ca_ttl_seconds,
            without_entries_seconds=0 if config.istio is None else config.istio.max_ttl_seconds,
        )
        self.upstream = upstream_link(config, self._authority_host(server))
        if self.upstream is not None:
            self._stack.push_async_callback(self.upstream.close)
        self.authority = AuthorityManager(
            settings=rotation_settings(config, server),
            store=self.store,
            keys=keys,
            follower=self.follower,
            guard=self.guarding.guard,
            longest_ttl=self.longest_ttl,
            clock=self.clock,
            pool=pool,
            upstream=self.upstream,
        )
        self.issuer = Issuer(
            settings=issue_settings(config, server),
            authority=self.authority,
            records=self.store.issuance,
            clock=self.clock,
            pool=pool,
            workers=WORKERS,
        )
        self.server_svid = ServerSvid(issuer=self.issuer, trust=self.trust, clock=self.clock)
        self.sign_on = SignOn(
            keys=keys,
            authority=self.authority,
            server_svid=self.server_svid,
            leftovers=self.leftovers,
            clock=self.clock,
            patient=self.upstream is not None,
        )
        self.sign_on.on_done = self._open_to_agents
        await self.sign_on.start()

    def _guard_parts(self) -> GuardParts:
        return guard_parts(
            store=self.store,
            trust=self.trust,
            agents=self.agents,
            index=self.index,
            clock=self.clock,
            authorities=lambda: self.authority.journal.authorities,
            server=server_name(self.config.data_dir),
            waits=consumer_waits(self.config),
            has_files=has_files(self.config),
        )

    @property
    def publisher_host(self) -> AuthorityHost:
        """What bundle publishers are lent."""
        return self._authority_host(self.issuer.settings.server)

    def _authority_host(self, server: str) -> AuthorityHost:
        return AuthorityHost(
            trust_domain=self.trust_domain,
            server=server,
            data_directory=str(self.config.data_dir),
            clock=self.clock,
        )

    def _make_services(self) -> None:
        """What answers calls."""
        self.feed = Feed(
            store=self.store,
            index=self.index,
            trust=self.trust,
            follower=self.follower,
            clock=self.clock,
            streams_per_agent=self.config.limits.streams_per_agent,
            acks=self.guarding.acks,
            set_of=self.policy.set_of,
        )
        self.policy.on_changed(self.feed.note_policies)
        self.authorizer = AgentAuthorizer(
            self.agents, self.store.agents, self.trust, self.clock, lambda: self.authority.journal.authorities
        )
        self.auditor = Auditor(
            records=self.store.audit,
            server=self.issuer.settings.server,
            clock=self.clock,
            token_id=self.store.tokens.id_of,
            reads=self.config.audit.reads,
        )
        self.pruner = Pruner(
            store=self.store, follower=self.follower, clock=self.clock, policy=prune_policy(self.config.prune)
        )
        self.log_levels = LogLevels(self.config.log.level)
        self.attestation = self._attestation()
        self.started_at = self.clock.now()
        self.limits = Limits(self.config.limits, self.clock)
        self.decisions = self._decision_log()
        made = servicers(self)
        self.admin, self._services = made.admin, made.all

    def _decision_log(self) -> DecisionLog:
        config = self.config.policy.decision_log
        found = DecisionLog(config, config.directory or self.config.data_dir / "decisions", now=self.clock.now)
        found.start()
        self._stack.push_async_callback(asyncio.to_thread, found.close)
        return found

    def _attestation(self) -> NodeAttestation:
        host = Host(self.trust, self.store, self.clock)
        return NodeAttestation(
            trust_domain=self.trust_domain,
            verifiers=load_verifiers(self.config.node_attestors, host),
            store=self.store,
            issuer=self.issuer,
            agents=self.agents,
            clock=self.clock,
        )

    async def _listen(self) -> None:
        """The private grpcio servers, and the gate before them."""
        config, limits = self.config, self.config.limits
        self.access = access = AuditedAccess(
            agents=self.authorizer,
            index=self.index,
            clock=self.clock,
            admin_ids=admin_ids(config),
            auditor=self.auditor,
        )
        policy = PolicyParts(
            book=self.policy,
            feed=self.feed,
            auditor=self.auditor,
            clock=self.clock,
            decisions=self.decisions,
            pushes=config.push_service,
        )
        private = private_socket(config.data_dir, "grpc.sock", self._stack)
        agents = private_socket(config.data_dir, "agents.sock", self._stack)
        self.gate = Gate(
            grpc_socket=lambda peer: agents if self.authorizer.acts(peer.svid) else private,
            http_protocol_factory=HttpSide(
                lambda: application(
                    version=package_version("burgee"), access=access, status=self.admin.status, policy=policy
                )
            ),
            limits=gate_limits(limits),
            clock=self.clock,
        )
        self._stack.push_async_callback(self.gate.close)
        self.checks = CheckService(
            book=self.policy, trust=self.trust, index=self.index, log=self.decisions, clock=self.clock
        )
        rpc = GrpcSide(
            self.gate, access, self.auditor, limits, services=self._services, handlers=[self.checks.handler()]
        )
        self._stack.push_async_callback(lambda: rpc.stop(self.config.stop_grace_seconds))
        await rpc.start(private, agents)
        if self.sign_on.done:
            await self._open_to_agents()
        gid = admin_gid(config)
        warn_if_alone(config.admin_socket.admin_group, admits=bool(config.admin_socket.admin_uids))
        await self.gate.listen_unix(
            "admin",
            config.admin_socket_path,
            mode=0o600 if gid is None else 0o660,
            dir_mode=0o700 if gid is None else 0o750,
            gid=gid,
            admit=self._admits(),
        )
        self._stack.callback(self.gate.stop_listening)

    async def _open_to_agents(self) -> None:
        """Not before the server can show who it is."""
        config, tls = self.config, self.server_svid.material
        self.address = await self.gate.listen_tcp(
            "tcp", config.bind_address, config.bind_port, tls=tls, verify_client=self._verify
        )
        logger.info("open to agents", address=f"{self.address[0]}:{self.address[1]}")

    async def _serve_istio(self, config: IstioConfig) -> None:
        """Imported here: it is memory that most servers have no use for."""
        from ca.api.istio_server import IstioServer

        self.istio = IstioServer(self, config, self._verify)
        await self.istio.start(private_socket(self.config.data_dir, "istio.sock", self._stack), self._stack)

    async def _watch(self) -> None:
        """What goes on in the background, and what follows from changes."""
        self._maintenance = await background.start(self, self._stack)
        if self.config.metrics_address is not None:
            status = await serve_metrics_and_health(self.config.metrics_address, self.health)
            self._stack.push_async_callback(status.close)
            self.metrics_address = f"{status.host}:{status.port}"

    def _verify(self, chain: Sequence[bytes]) -> X509Svid:
        """Against the bundle of the leaf's own trust domain."""
        return verify_x509_svid(chain, self.trust.bundles, now=self.clock.now())

    def _admits(self) -> Callable[[PeerCred], bool]:
        own = {0, os.geteuid()}
        return lambda cred: cred.uid in own or cred.uid in self.config.admin_socket.admin_uids
