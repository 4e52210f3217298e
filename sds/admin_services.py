"""What is served on the agent's admin socket: ours, and what SPIRE's tools ask for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING

import grpc

from ca.identity.spiffe_id import SpiffeId
from ca.proto.burgee import agent_pb2_grpc
from sds.admin_api import AgentApi, AgentState
from sds.late_service import LateService

if TYPE_CHECKING:
    from sds.agent import Agent
    from sds.doctor import Doctor
    from sds.explain_api import Explainer

DELEGATED = "spire.api.agent.delegatedidentity.v1.DelegatedIdentity"


def add_admin_services(agent: Agent) -> None:
    """All of them, before the socket is opened. All but the agent's own are loaded for the first who calls them."""
    server = agent.admin_endpoint.server
    agent_pb2_grpc.add_AgentServicer_to_server(_own(agent), server)
    late: dict[str, Callable[..., None]] = {
        "spire.api.agent.logger.v1.Logger": _add_logger,
        "burgee.debug.v1.Debug": partial(_add_report, started_at=agent.clock.now()),
        "spire.agent.debug.v1.Debug": partial(_add_debug, started=agent.clock.monotonic()),
        "burgee.decisions.v1.Decisions": _add_decisions,
        DELEGATED: _add_delegated,
    }
    server.add_generic_rpc_handlers([LateService(name, partial(add, agent)) for name, add in late.items()])


def _own(agent: Agent) -> AgentApi:
    """What explains and what looks for troubles is loaded for the first who asks."""
    state = _state(agent)
    explainer, doctor = cache(lambda: _explainer(agent, state)), cache(lambda: _doctor(agent))
    return AgentApi(state=state, clients=agent.clients, explainer=explainer, doctor=doctor)


def _state(agent: Agent) -> AgentState:
    def identity() -> tuple[str, datetime | None, bool]:
        svid = agent.identity.svid
        return (str(svid.id) if svid else "", svid.not_after if svid else None, agent.identity.reattestable)

    return AgentState(
        cache=agent.cache,
        jwts=agent.jwts,
        clients=agent.clients,
        follower=agent.follower,
        condition=agent.condition,
        clock=agent.clock,
        identity=identity,
        server=lambda: agent.client.server_address,
        sync_mode=lambda: agent.client.sync_mode,
        policies=agent.policies,
    )


def _explainer(agent: Agent, state: AgentState) -> Explainer:
    from sds.explain_api import Explainer

    def agent_id() -> SpiffeId | None:
        return agent.identity.svid.id if agent.identity.svid else None

    return Explainer(
        workloads=agent.workloads,
        cache=agent.cache,
        rotator=agent.rotator,
        condition=agent.condition,
        clock=agent.clock,
        attestors=agent.attestors,
        agent_id=agent_id,
        status=state.status,
        policies=agent.policies,
    )


def _doctor(agent: Agent) -> Doctor:
    from sds.doctor import Doctor

    name, prover = agent.node_attestor
    return Doctor(
        config=agent.config,
        clock=agent.clock,
        cache=agent.cache,
        condition=agent.condition,
        trust=agent.trust,
        store=agent.store,
        svid=lambda: agent.identity.svid,
        plugins={name: prover, **agent.attestors},
        attestors=agent.attestors,
    )


def _add_logger(agent: Agent, server: grpc.aio.Server) -> None:
    from ca.proto.spire import agent_logger_pb2_grpc
    from sds.logger_api import LoggerApi

    agent_logger_pb2_grpc.add_LoggerServicer_to_server(LoggerApi(agent.log_levels), server)


def _add_report(agent: Agent, server: grpc.aio.Server, *, started_at: datetime) -> None:
    from ca.proto.burgee import debug_pb2_grpc
    from ca.runtime.debug_report import DebugReport

    report = DebugReport(
        program="agent",
        config=lambda: agent.config,
        health=agent.health,
        clock=agent.clock,
        started_at=started_at,
    )
    debug_pb2_grpc.add_DebugServicer_to_server(report, server)


def _add_debug(agent: Agent, server: grpc.aio.Server, *, started: float) -> None:
    from ca.proto.spire import agent_debug_pb2_grpc
    from sds.debug_api import DebugApi

    debug = DebugApi(
        clock=agent.clock,
        started=started,
        chain=lambda: agent.identity.svid.chain if agent.identity.svid else (),
        bundle=lambda: agent.trust.bundle,
        last_sync_at=lambda: agent.follower.last_sync_at,
        x509_svids=lambda: len(agent.cache.svids()),
        jwt_svids=lambda: len(agent.jwts),
    )
    agent_debug_pb2_grpc.add_DebugServicer_to_server(debug, server)


def _add_decisions(agent: Agent, server: grpc.aio.Server) -> None:
    from ca.runtime.decision_service import add_decisions

    add_decisions(agent.decisions.log, server)


def _add_delegated(agent: Agent, server: grpc.aio.Server) -> None:
    from ca.proto.spire import agent_delegatedidentity_pb2_grpc
    from sds.delegated import DelegatedIdentityApi

    delegated = DelegatedIdentityApi(
        peer_of=agent.admin_endpoint.gate.peer_of,
        delegates=agent.config.delegates,
        workloads=agent.workloads,
        cache=agent.cache,
        jwts=agent.jwts,
    )
    agent_delegatedidentity_pb2_grpc.add_DelegatedIdentityServicer_to_server(delegated, server)
