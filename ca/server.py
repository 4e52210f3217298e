"""The server's composition root: `python -m ca.server --config FILE [--check]`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import grp
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version as package_version
from pathlib import Path

from ca.api.admin import AdminService
from ca.api.agent import AgentService
from ca.api.audit import AuditedAccess, AuditInterceptor, Auditor
from ca.api.bundle import BundleService
from ca.api.debug import DebugService
from ca.api.entry import EntryService
from ca.api.health import HealthService
from ca.api.http import HttpSide
from ca.api.interceptor import AccessInterceptor
from ca.api.limits import Limits
from ca.api.local_authority import LocalAuthorityService
from ca.api.logger import LoggerService
from ca.api.node import NodeService
from ca.api.rest import application
from ca.api.services import register
from ca.api.svid import SvidService
from ca.api.trust_domain import TrustDomainService
from ca.authority.ttls import check_ttls
from ca.errors import BurgeeError, ConfigError, FailedPrecondition
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.svid import X509Svid, verify_x509_svid
from ca.ports import AuthorityHost, Clock, KeyManager, KeyManagerPlugin, NodeAttestorPlugin
from ca.runtime import log, memory, metrics, notify, plugins
from ca.runtime.admin_group import warn_if_alone
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values, load_yaml
from ca.runtime.debug_report import DebugReport
from ca.runtime.files import atomic_write, make_private_dir
from ca.runtime.gate import Gate, GateLimits, PeerCred
from ca.runtime.health import Health
from ca.runtime.heartbeat import Heartbeat
from ca.runtime.log_levels import LogLevels
from ca.runtime.reload import reload
from ca.runtime.rpc import grpc_server
from ca.runtime.server_config import PruneConfig, ServerConfig
from ca.runtime.status_server import serve_metrics_and_health
from ca.runtime.tasks import Tasks
from ca.runtime.vacancy import require_free_metrics, require_free_port, require_free_socket
from ca.service.attestation import Host, NodeAttestation, load_verifiers
from ca.service.bundle_file import BundleFile
from ca.service.bundle_pruning import BundlePruning
from ca.service.entry_expiry import EntryExpiry
from ca.service.feed import Feed
from ca.service.follower import Follower
from ca.service.issuance import Issuer, IssueSettings
from ca.service.issuance_ca import DownstreamIssuer
from ca.service.issuance_jwt import JwtIssuer
from ca.service.leftover_keys import LeftoverKeys
from ca.service.maintenance import Maintenance
from ca.service.peers import AgentAuthorizer, AgentTable
from ca.service.pruning import PrunePolicy, Pruner
from ca.service.revocation import Revocation
from ca.service.rotation import AuthorityManager, RotationSettings
from ca.service.server_svid import ServerSvid
from ca.service.store_watch import StoreWatch
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store

logger = log.get("server")

WORKERS = 2
SOCKET_PATH_BYTES = 100
SERVER_ID = "server-id"
COLLECT_AFTER = (20_000, 20, 20)
"""Objects made, and younger collections, before the collector looks for cycles: a batch of 500 makes thousands."""

_SERVER_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
MAX_STREAMS_PER_CONNECTION = 128
"""Calls open at once; whoever has no certificate must not hold thousands of them with one connection."""

_connected = metrics.gauge("connected_agents", "Agents with an open push stream.")
_lag = metrics.gauge("sync_lag_seconds", "Since the server's memory last agreed with the store.")


LIVE = frozenset(
    {
        "log",
        "admin_ids",
        "admin_socket.admin_uids",
        "x509_svid_ttl_seconds",
        "jwt_svid_ttl_seconds",
        "agent_ttl_seconds",
        "audit",
        "prune",
        "stop_grace_seconds",
    }
)
"""What a reload applies; every other key waits for a restart."""


def check(config: ServerConfig) -> None:
    """What can be known to be wrong without touching anything. Raises ConfigError."""
    check_ttls(
        ca_ttl_seconds=config.ca_ttl_seconds,
        x509_svid_ttl_seconds=config.x509_svid_ttl_seconds,
        jwt_svid_ttl_seconds=config.jwt_svid_ttl_seconds,
        agent_ttl_seconds=config.agent_ttl_seconds,
    )
    keys = plugins.load(plugins.KEY_MANAGERS, config.keys.plugin, KeyManagerPlugin)
    from_values(config.keys.config, keys.config, name="keys.config")
    for name, settings in config.node_attestors.items():
        attestor = plugins.load(plugins.NODE_ATTESTORS, name, NodeAttestorPlugin)
        from_values(settings, attestor.server_config, name=f"node_attestors.{name}")
    _admin_gid(config)


class Server:
    """One server in this process. `start`, then `stop`; `address` is where agents connect."""

    def __init__(self, config: ServerConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.trust_domain = TrustDomain(config.trust_domain)
        self.health = Health()
        self.address = ("", 0)
        self.metrics_address = ""
        self._stack = AsyncExitStack()
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Returns when a workload could get an SVID. Raises a BurgeeError, and then nothing is left running."""
        check(self.config)
        try:
            await self._start()
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, OSError):
                raise _cannot(error) from error
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
        gone = self.access.admin_ids - _admin_ids(config)
        self.access.admin_ids = _admin_ids(config)
        self.gate.close_peers(lambda peer: peer.svid is not None and peer.svid.id in gone, "ADMIN_REMOVED")
        self.issuer.settings = replace(
            self.issuer.settings,
            x509_svid_ttl_seconds=config.x509_svid_ttl_seconds,
            jwt_svid_ttl_seconds=config.jwt_svid_ttl_seconds,
            agent_ttl_seconds=config.agent_ttl_seconds,
        )
        self.pruner.policy = _prune_policy(config.prune)
        self._maintenance.every_seconds = config.prune.every_seconds
        self.auditor.reads = config.audit.reads

    async def _start(self) -> None:
        self._require_free_addresses()
        make_private_dir(self.config.data_dir)
        await self._open_store()
        await self._make_authority()
        self._make_services()
        await self._listen()
        await self._watch()

    def _require_free_addresses(self) -> None:
        config = self.config
        require_free_port(config.bind_address, config.bind_port)
        if config.metrics_address is not None:
            require_free_metrics(config.metrics_address)
        if config.admin_socket.path is not None:  # in the data directory the store's lock tells more
            require_free_socket(config.admin_socket.path)

    async def _open_store(self) -> None:
        """The store and what of it is kept in memory."""
        known = (self.config.data_dir / SERVER_ID).exists()
        self.store = await Store.open(self.config.store_url, clock=self.clock, known=known)
        self._stack.push_async_callback(self.store.close)
        self.trust = Trust(self.trust_domain)
        self.index = AuthorizedIndex(self.trust_domain, self.clock.now)
        self.agents = AgentTable(self.store.agents)
        self.follower = Follower(store=self.store, index=self.index, agents=self.agents, trust=self.trust)
        await self.follower.load()

    async def _make_authority(self) -> None:
        """Keys, authorities, issuers, and the server's own SVID."""
        config = self.config
        pool = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="crypto")
        self._stack.callback(pool.shutdown)
        self._heartbeat = Heartbeat(clock=self.clock, pool=pool)
        server = _server_name(config.data_dir)
        keys = _key_manager(config, self._authority_host(server))
        self._leftovers = LeftoverKeys(keys=keys, store=self.store, clock=self.clock) if _has_own_keys(config) else None
        if self._leftovers is not None:
            await self._leftovers.note()
        self.authority = AuthorityManager(
            settings=RotationSettings(
                trust_domain=self.trust_domain,
                server=server,
                ca_ttl_seconds=config.ca_ttl_seconds,
                backdate_seconds=config.backdate_seconds,
                x509_key_type=config.ca_key_type,
                jwt_key_type=config.jwt_key_type,
            ),
            store=self.store,
            keys=keys,
            follower=self.follower,
            clock=self.clock,
            pool=pool,
        )
        await self.authority.start()
        settings = IssueSettings(
            trust_domain=self.trust_domain,
            server=server,
            x509_svid_ttl_seconds=config.x509_svid_ttl_seconds,
            jwt_svid_ttl_seconds=config.jwt_svid_ttl_seconds,
            agent_ttl_seconds=config.agent_ttl_seconds,
            backdate_seconds=config.backdate_seconds,
            jwt_issuer=config.jwt_issuer,
        )
        self.issuer = Issuer(
            settings=settings,
            authority=self.authority,
            records=self.store.issuance,
            clock=self.clock,
            pool=pool,
            workers=WORKERS,
        )
        self.server_svid = ServerSvid(issuer=self.issuer, trust=self.trust, clock=self.clock)
        await self.server_svid.renew()

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
        )
        self.authorizer = AgentAuthorizer(self.agents, self.store.agents, self.trust, self.clock)
        self.auditor = Auditor(
            records=self.store.audit,
            server=self.issuer.settings.server,
            clock=self.clock,
            reads=self.config.audit.reads,
        )
        host = Host(self.trust_domain, self.store, self.clock)
        attestation = NodeAttestation(
            trust_domain=self.trust_domain,
            verifiers=load_verifiers(self.config.node_attestors, host),
            store=self.store,
            issuer=self.issuer,
            agents=self.agents,
            clock=self.clock,
        )
        tokens = JwtIssuer(self.issuer)
        self.pruner = Pruner(
            store=self.store, follower=self.follower, clock=self.clock, policy=_prune_policy(self.config.prune)
        )
        self.log_levels = LogLevels(self.config.log.level)
        own = self.trust_domain
        self.admin = AdminService(
            trust_domain=own,
            issuer=self.issuer,
            tokens=tokens,
            feed=self.feed,
            health=self.health,
            version=package_version("burgee"),
            started_at=self.clock.now(),
            store=self.store,
            pruner=self.pruner,
            clock=self.clock,
        )
        limits = Limits(self.config.limits, self.clock)
        self._services: list[object] = [
            AgentService(
                trust_domain=own,
                store=self.store,
                attestation=attestation,
                follower=self.follower,
                clock=self.clock,
                limits=limits,
            ),
            EntryService(
                trust_domain=own,
                store=self.store,
                index=self.index,
                follower=self.follower,
                authorizer=self.authorizer,
                clock=self.clock,
                acks=self.feed.acks,
            ),
            SvidService(
                trust=self.trust,
                issuer=self.issuer,
                tokens=tokens,
                downstream=DownstreamIssuer(self.issuer, ttl_seconds=self.config.ca_ttl_seconds),
                index=self.index,
                limits=limits,
            ),
            BundleService(trust=self.trust, store=self.store, follower=self.follower),
            TrustDomainService(),
            LocalAuthorityService(lambda: self.authority.authorities),
            DebugService(
                chain=self.server_svid.chain_to_root,
                agents=self.agents,
                index=self.index,
                trust=self.trust,
                clock=self.clock,
            ),
            LoggerService(self.log_levels),
            self.admin,
            DebugReport(
                program="server",
                config=lambda: self.config,
                health=self.health,
                clock=self.clock,
                started_at=self.clock.now(),
            ),
            HealthService(self.health),
        ]
        if self.config.push_service:
            self._services.append(
                NodeService(
                    feed=self.feed,
                    authorizer=self.authorizer,
                    attestation=attestation,
                    clock=self.clock,
                    limits=limits,
                )
            )

    async def _listen(self) -> None:
        """The private grpcio server, and the gate before it."""
        config, limits = self.config, self.config.limits
        private = self._private_socket()
        self.access = access = AuditedAccess(
            agents=self.authorizer,
            index=self.index,
            clock=self.clock,
            admin_ids=_admin_ids(config),
            auditor=self.auditor,
        )
        self.gate = Gate(
            grpc_socket=str(private),
            http_protocol_factory=HttpSide(
                lambda: application(version=package_version("burgee"), access=access, status=self.admin.status)
            ),
            limits=GateLimits(
                max_connections=limits.max_connections,
                max_connections_per_address=limits.max_connections_per_address,
                max_connections_per_uid=limits.max_connections_per_uid,
                handshake_timeout_seconds=limits.handshake_timeout_seconds,
                first_bytes_timeout_seconds=limits.handshake_timeout_seconds,
            ),
            clock=self.clock,
        )
        self._stack.push_async_callback(self.gate.close)
        rpc = grpc_server(
            str(private),
            [self.gate.interceptor(), AccessInterceptor(access), AuditInterceptor(self.auditor)],
            max_receive_bytes=limits.max_message_bytes,
            max_connection_age_seconds=limits.max_connection_age_seconds,
            max_streams_per_connection=MAX_STREAMS_PER_CONNECTION,
        )
        register(rpc, self._services)
        await rpc.start()
        self._stack.push_async_callback(lambda: rpc.stop(self.config.stop_grace_seconds))
        self.address = await self.gate.listen_tcp(
            "tcp", config.bind_address, config.bind_port, tls=self.server_svid.material, verify_client=self._verify
        )
        gid = _admin_gid(config)
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

    async def _watch(self) -> None:
        """What goes on in the background, and what follows from changes."""
        self.server_svid.on_renewed = self.gate.refresh_tls
        revocation = Revocation(gate=self.gate, feed=self.feed, trust=self.trust, clock=self.clock)
        self.follower.on_applied(revocation.on_applied)
        self.agents.on_change(revocation.on_agent)
        store_watch = StoreWatch(store=self.store, follower=self.follower, clock=self.clock)
        self.health.add("authority", self.authority.check)
        self.health.add("server_svid", self.server_svid.check)
        self.health.add("store", store_watch.check)
        tasks = Tasks(clock=self.clock, health=self.health)
        self._stack.push_async_callback(tasks.close)
        if self.config.bundle_file is not None:
            file = BundleFile(self.config.bundle_file, self.trust)
            await file.write()
            tasks.spawn("bundle-file", file.run)
        pruning = BundlePruning(
            store=self.store, trust_domain=self.trust_domain, follower=self.follower, clock=self.clock
        )
        tasks.spawn("bundle-pruning", pruning.run)
        self.health.add("alive", self._heartbeat.check, live=True)
        tasks.spawn("heartbeat", self._heartbeat.run)
        self._heartbeat.essential("follower", tasks.spawn("follower", self.follower.run))
        tasks.spawn("entry-expiry", EntryExpiry(index=self.index, follower=self.follower, clock=self.clock).run)
        self._heartbeat.essential("authority", tasks.spawn("authority", self.authority.run))
        self._heartbeat.essential("server-svid", tasks.spawn("server-svid", self.server_svid.run))
        self._heartbeat.essential("store-watch", tasks.spawn("store-watch", store_watch.run))
        self._maintenance = Maintenance(
            pruner=self.pruner, clock=self.clock, every_seconds=self.config.prune.every_seconds
        )
        tasks.spawn("maintenance", self._maintenance.run)
        if self._leftovers is not None:
            tasks.spawn("leftover-keys", self._leftovers.run)
        _connected.set_function(lambda: self.feed.connected)
        _lag.set_function(lambda: self.clock.monotonic() - store_watch.agreed_at)
        if self.config.metrics_address is not None:
            status = await serve_metrics_and_health(self.config.metrics_address, self.health)
            self._stack.push_async_callback(status.close)
            self.metrics_address = f"{status.host}:{status.port}"

    def _verify(self, chain: Sequence[bytes]) -> X509Svid:
        """Against the bundle of the leaf's own trust domain."""
        return verify_x509_svid(chain, self.trust.bundles, now=self.clock.now())

    def _private_socket(self) -> Path:
        """Between the gate and grpcio, in a directory of ours alone; elsewhere if the data directory's name is long."""
        directory = self.config.data_dir / "private"
        if len(os.fsencode(directory / "grpc.sock")) > SOCKET_PATH_BYTES:
            directory = Path(tempfile.mkdtemp(prefix="burgee-"))
            self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        make_private_dir(directory)
        socket = directory / "grpc.sock"
        socket.unlink(missing_ok=True)  # of a server that was killed; the store's lock says that none is running
        return socket

    def _admits(self) -> Callable[[PeerCred], bool]:
        own = {0, os.geteuid()}
        return lambda cred: cred.uid in own or cred.uid in self.config.admin_socket.admin_uids


def _admin_ids(config: ServerConfig) -> frozenset[SpiffeId]:
    return frozenset(SpiffeId.parse(admin) for admin in config.admin_ids)


def _prune_policy(config: PruneConfig) -> PrunePolicy:
    agents = config.agents_expired_for_seconds
    return PrunePolicy(
        agents_expired_for=None if agents is None else timedelta(seconds=agents),
        first_use_agents=config.first_use_agents,
        entries_expired_for=timedelta(seconds=config.entries_expired_for_seconds),
        issuance_retention=timedelta(seconds=config.issuance_retention_seconds),
        audit_retention=timedelta(seconds=config.audit_retention_seconds),
        changes_kept=config.changes_kept,
    )


def _key_manager(config: ServerConfig, host: AuthorityHost) -> KeyManager:
    plugin = plugins.load(plugins.KEY_MANAGERS, config.keys.plugin, KeyManagerPlugin)
    settings = from_values(config.keys.config, plugin.config, name="keys.config")
    return plugin.manager(settings, host)


def _has_own_keys(config: ServerConfig) -> bool:
    """Whether the keys lie where no other server can have any: a directory of one's own choice may be shared."""
    return config.keys.plugin == "disk" and config.keys.config.get("directory") is None


def _admin_gid(config: ServerConfig) -> int | None:
    group = config.admin_socket.admin_group
    if group is None:
        return None
    if config.admin_socket.path is None:
        raise ConfigError(
            "admin_socket.admin_group needs admin_socket.path: the group cannot reach into the data directory",
            hint="set admin_socket.path to a directory of its own, such as /run/burgee-admin/admin.sock",
        )
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group `{group}` for admin_socket.admin_group") from None


def _server_name(data_dir: Path) -> str:
    """This server's name in records and authorities, made once."""
    path = data_dir / SERVER_ID
    if not path.exists():
        atomic_write(path, f"{secrets.token_hex(8)}\n".encode())
    name = path.read_bytes().decode("ascii", "replace").strip()
    if _SERVER_NAME.fullmatch(name) is None:
        raise FailedPrecondition(
            f"`{path}` holds no name of a server",
            reason="SERVER_ID_CORRUPT",
            hint="restore it from a backup: with another name the server has no authority",
        )
    return name


def _cannot(error: OSError) -> FailedPrecondition:
    """Of the system's words those that help."""
    where = f" `{os.fsdecode(error.filename)}`" if error.filename else ""
    return FailedPrecondition(
        f"cannot use{where or ' a file'}: {error.strerror or error}",
        reason="START_FAILED",
        hint="see who owns it, and whether the disk is full or mounted read-only",
    )


async def run(config: ServerConfig, path: Path | None = None) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP reads `path` again."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # what was read just now need not be read again
    server = Server(config)
    await server.start()
    logger.info(
        "ready",
        trust_domain=config.trust_domain,
        address=f"{server.address[0]}:{server.address[1]}",
        admin_socket=str(config.admin_socket_path),
        metrics_address=server.metrics_address,
    )
    if path is not None:
        file = path
        loop.add_signal_handler(
            signal.SIGHUP, lambda: reload(file, server.config, live=LIVE, check=check, apply=server.reconfigure)
        )
    # What start-up made lives as long as the process: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    notify.ready()
    await stop.wait()
    logger.info("stopping", grace_seconds=server.config.stop_grace_seconds)
    notify.stopping()
    await server.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 stopped, 1 failed, 2 the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="burgee server", description="The Burgee server.")
    parser.add_argument("--config", type=Path, required=True, help="configuration file (YAML)")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    options = parser.parse_args(arguments)
    try:
        config = load_yaml(options.config, ServerConfig)
        log.configure(config.log.format, config.log.level)
        if options.check:
            check(config)
            print(f"{options.config}: the configuration is valid")
            return 0
        memory.keep_private()
        asyncio.run(run(config, options.config))
    except BurgeeError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        words = getattr(error.__cause__, "orig", None)  # the database's
        cause = f"\n  cause: {words}" if words else ""
        print(f"error: {error.detail} ({error.reason}){cause}{hint}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
