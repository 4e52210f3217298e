"""The listener for Istio's proxies: a gate and a private gRPC server of its own, and what keeps them going.

No other service of the server can be reached through it. Its clients look at host names, so its certificate has some.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ca.api.access import Access
from ca.api.admitted import Admitted
from ca.api.audit import Auditor
from ca.api.istio import IstioService
from ca.api.istio_limits import IstioLimits
from ca.api.limits import Limits
from ca.errors import BurgeeError
from ca.identity.spiffe_id import TrustDomain
from ca.identity.svid import X509Svid
from ca.ports import Clock, Finding
from ca.proto.istio import ca_pb2_grpc
from ca.runtime import log
from ca.runtime.gate import Gate, GateLimits
from ca.runtime.health import Health, Problem
from ca.runtime.istio_config import IstioConfig
from ca.runtime.kube_permissions import findings
from ca.runtime.rpc import grpc_server
from ca.runtime.rpc_handlers import PARSED
from ca.runtime.server_config import ServerConfig
from ca.runtime.tasks import Tasks
from ca.service.attestation import NodeAttestation
from ca.service.configured import gate_limits
from ca.service.issuance import Issuer
from ca.service.istio import Cluster, IstioAuthority
from ca.service.istio_permissions import needed
from ca.service.istio_roots import RootConfigMaps
from ca.service.server_svid import ServerSvid
from ca.service.sign_on import SignOn
from ca.service.trust import Trust

MAX_MESSAGE_BYTES = 64 << 10
"""A CSR and some metadata."""

MAX_STREAMS_PER_CONNECTION = 128
RETRY_SECONDS = 1.0

logger = log.get("istio")


class Parts(Protocol):
    """What it needs of the server."""

    config: ServerConfig
    clock: Clock
    trust_domain: TrustDomain
    health: Health
    trust: Trust
    issuer: Issuer
    auditor: Auditor
    attestation: NodeAttestation
    limits: Limits
    sign_on: SignOn

    @property
    def access(self) -> Access: ...


class IstioServer:
    """Started by `start`, ended by the stack that it was given. `address` is ("", 0) until the listener is open."""

    def __init__(self, parts: Parts, config: IstioConfig, verify: Callable[[Sequence[bytes]], X509Svid]) -> None:
        """Raises ConfigError where a cluster's API cannot be known."""
        self._parts = parts
        self._config = config
        self._verify = verify
        self.clusters = {name: Cluster(name, one, parts.clock) for name, one in config.clusters.items()}
        self.certificate = ServerSvid(
            issuer=parts.issuer, trust=parts.trust, clock=parts.clock, dns_names=config.dns_names
        )
        self.address = ("", 0)
        self.roots = {
            name: RootConfigMaps(cluster=name, api=one.api, namespaces=one.config.namespaces, trust=parts.trust)
            for name, one in self.clusters.items()
            if one.config.publish_root
        }

    async def start(self, socket: Path, stack: AsyncExitStack) -> None:
        """`socket` is for the private server, in a directory that is ours alone. Raises FailedPrecondition."""
        for cluster in self.clusters.values():
            stack.callback(cluster.api.close)
        self._gate = Gate(grpc_socket=str(socket), limits=self._limits(), clock=self._parts.clock)
        stack.push_async_callback(self._gate.close)
        outermost = self._gate.layer()
        rpc = grpc_server(
            str(socket),
            [outermost, Admitted(self._parts.access), PARSED],
            unknown=outermost.unknown,
            max_receive_bytes=MAX_MESSAGE_BYTES,
            max_connection_age_seconds=self._parts.config.limits.max_connection_age_seconds,
            max_streams_per_connection=MAX_STREAMS_PER_CONNECTION,
        )
        ca_pb2_grpc.add_IstioCertificateServiceServicer_to_server(self._service(), rpc)
        await rpc.start()
        stack.push_async_callback(lambda: rpc.stop(self._parts.config.stop_grace_seconds))
        if self._parts.sign_on.done:
            await self._open()
        stack.callback(self._gate.stop_listening)
        self._spawn(stack)

    async def check(self) -> Sequence[Finding]:
        """Implements ca.ports.Checked: whether each cluster's API server answers, and grants what is asked of it."""
        groups = await asyncio.gather(
            *(findings(one.api, needed(one.config), prefix=f"cluster {name}:") for name, one in self.clusters.items())
        )
        return [found for group in groups for found in group]

    def _spawn(self, stack: AsyncExitStack) -> None:
        health = self._parts.health
        tasks = Tasks(clock=self._parts.clock, health=health)
        stack.push_async_callback(tasks.close)
        health.warn("istio", self._check)
        tasks.spawn("istio-listener", self._run)
        for name, roots in self.roots.items():
            health.warn(f"istio_roots:{name}", roots.check)
            tasks.spawn(f"istio-roots-{name}", roots.run)

    async def _run(self) -> None:
        """Open as soon as there is a certificate to show; then keep that fresh."""
        while not self.address[1]:
            try:
                await self._open()
            except BurgeeError as error:
                logger.debug("not open to proxies yet", reason=error.reason, detail=error.detail)
                await asyncio.sleep(RETRY_SECONDS)
        await self.certificate.run()

    async def _open(self) -> None:
        if self.certificate.due:  # not once for each time that the address is in use
            await self.certificate.renew()
        self.certificate.on_renewed = self._gate.refresh_tls
        self.address = await self._gate.listen_tcp(
            "istio",
            self._config.bind_address,
            self._config.bind_port,
            tls=self.certificate.material,
            verify_client=self._verify,
        )
        logger.info("open to Istio's proxies", address=f"{self.address[0]}:{self.address[1]}")

    def _service(self) -> IstioService:
        parts = self._parts
        return IstioService(
            authority=IstioAuthority(
                config=self._config, trust_domain=parts.trust_domain, clusters=self.clusters, clock=parts.clock
            ),
            issuer=parts.issuer,
            trust=parts.trust,
            auditor=parts.auditor,
            limits=IstioLimits(self._config, parts.limits, parts.clock),
            ring=parts.attestation.ring,
        )

    def _limits(self) -> GateLimits:
        """Nobody here needs a certificate, so those without have all the places."""
        return replace(
            gate_limits(self._parts.config.limits),
            max_connections=self._config.max_connections,
            max_connections_per_address=self._config.max_connections_per_address,
            max_anonymous_connections=self._config.max_connections,
        )

    def _check(self) -> Problem | None:
        """For ca.runtime.health: agents get on without this listener, so it is a warning."""
        problem = self.certificate.check()
        if problem is None and self.address[1]:
            return None
        detail = "proxies of Istio get no certificates"
        return Problem(
            reason="ISTIO_CLOSED",
            detail=detail if problem is None else f"{detail}: {problem.detail}",
            hint="see the log",
        )
