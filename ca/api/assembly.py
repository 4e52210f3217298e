"""The servicers of a server, made of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Protocol

from ca.api.admin import AdminService
from ca.api.agent import AgentService
from ca.api.agent_explained import AgentExplainer
from ca.api.audit import Auditor
from ca.api.authorities import AuthoritiesService
from ca.api.bundle import BundleService
from ca.api.debug import DebugService
from ca.api.entry import EntryService
from ca.api.exchange import ExchangeService
from ca.api.foresight import ForesightService
from ca.api.health import HealthService
from ca.api.issuing import IssuingService
from ca.api.join_tokens import JoinTokens
from ca.api.limits import Limits
from ca.api.local_authority import LocalAuthorityService
from ca.api.logger import LoggerService
from ca.api.node import NodeService
from ca.api.svid import SvidService
from ca.api.trust_domain import TrustDomainService
from ca.ports import Checked, Clock, TokenVerifier
from ca.runtime.debug_report import DebugReport
from ca.runtime.decision_log import DecisionLog
from ca.runtime.decision_service import DecisionsApi
from ca.runtime.health import Health
from ca.runtime.log_levels import LogLevels
from ca.runtime.server_config import ServerConfig
from ca.service.attestation import NodeAttestation
from ca.service.authority_outlook import Outlooks
from ca.service.doctor import ServerDoctor
from ca.service.exchange import Exchanger
from ca.service.feed import Feed
from ca.service.follower import Follower
from ca.service.heard import Heard
from ca.service.issuance import Issuer
from ca.service.issuance_ca import DownstreamIssuer
from ca.service.issuance_jwt import JwtIssuer
from ca.service.longest_ttl import LongestTtls
from ca.service.peers import AgentAuthorizer, AgentTable
from ca.service.policy.book import PolicyBook
from ca.service.pruning import Pruner
from ca.service.rotation import AuthorityManager
from ca.service.rotation_guard_parts import GuardParts
from ca.service.server_svid import ServerSvid
from ca.service.trust import Trust
from ca.service.upstream_link import UpstreamLink
from ca.service.vouched import VouchedIssuer
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store


class Parts(Protocol):
    """What the servicers translate to; the server has them all. `config` may be replaced at any time."""

    config: ServerConfig
    address: tuple[str, int]
    clock: Clock
    health: Health
    log_levels: LogLevels
    started_at: datetime
    store: Store
    trust: Trust
    index: AuthorizedIndex
    agents: AgentTable
    follower: Follower
    feed: Feed
    authorizer: AgentAuthorizer
    attestation: NodeAttestation
    auditor: Auditor
    limits: Limits
    authority: AuthorityManager
    issuer: Issuer
    server_svid: ServerSvid
    pruner: Pruner
    policy: PolicyBook
    decisions: DecisionLog
    guarding: GuardParts
    longest_ttl: LongestTtls
    upstream: UpstreamLink | None

    @property
    def istio(self) -> Checked | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Servicers:
    """`all` of them, the `admin` one included."""

    admin: AdminService
    all: tuple[object, ...]


def servicers(parts: Parts) -> Servicers:
    """One for each service that is served as configured."""
    tokens = JwtIssuer(parts.issuer)
    limits = parts.limits
    admin = _admin(parts, tokens)
    made: list[object] = [
        _agent(parts, limits),
        _entry(parts),
        _svid(parts, tokens, limits),
        BundleService(
            trust=parts.trust, store=parts.store, follower=parts.follower, publish_up=parts.authority.publish_jwt
        ),
        TrustDomainService(),
        LocalAuthorityService(parts.authority),
        _debug(parts),
        LoggerService(parts.log_levels),
        admin,
        _exchange(parts, tokens, limits),
        _issuing(parts, limits),
        AuthoritiesService(manager=parts.authority, outlooks=_outlooks(parts), clock=parts.clock),
        _foresight(parts),
        _report(parts),
        HealthService(parts.health),
        DecisionsApi(parts.decisions),
    ]
    if parts.config.push_service:
        made.append(_node(parts, limits))
    return Servicers(admin=admin, all=tuple(made))


def _outlooks(parts: Parts) -> Outlooks:
    return Outlooks(
        manager=parts.authority,
        guard=parts.guarding.guard,
        readiness=parts.guarding.readiness,
        dependants=parts.guarding.dependants,
        longest_ttl=parts.longest_ttl,
        trust=parts.trust,
        server=parts.issuer.settings.server,
        clock=parts.clock,
    )


def _foresight(parts: Parts) -> ForesightService:
    return ForesightService(
        index=parts.index,
        agents=parts.agents,
        settings=lambda: parts.issuer.settings,
        ca_ttl_seconds=parts.config.ca_ttl_seconds,
        longest_ttl=parts.longest_ttl,
        manager=parts.authority,
        dependants=parts.guarding.dependants,
        upstream=parts.upstream,
        clock=parts.clock,
    )


def _admin(parts: Parts, tokens: JwtIssuer) -> AdminService:
    return AdminService(
        trust_domain=parts.trust.trust_domain,
        issuer=parts.issuer,
        tokens=tokens,
        join_tokens=_join_tokens(parts),
        feed=parts.feed,
        health=parts.health,
        version=version("burgee"),
        started_at=parts.started_at,
        store=parts.store,
        pruner=parts.pruner,
        clock=parts.clock,
        explainer=AgentExplainer(
            agents=parts.agents,
            index=parts.index,
            heard=_heard(parts),
            ring=parts.attestation.ring,
            clock=parts.clock,
        ),
        doctor=_doctor(parts),
    )


def _heard(parts: Parts) -> Heard:
    return Heard(
        acks=parts.feed.acks,
        authorities=lambda: parts.authority.journal.authorities,
        server=parts.issuer.settings.server,
        clock=parts.clock,
    )


def _doctor(parts: Parts) -> ServerDoctor:
    return ServerDoctor(
        config=lambda: parts.config,
        trust_domain=parts.trust.trust_domain,
        health=parts.health,
        store=parts.store,
        agents=parts.agents,
        heard=_heard(parts),
        manager=parts.authority,
        settings=lambda: parts.issuer.settings,
        upstream=parts.upstream,
        verifiers=parts.attestation.verifiers,
        istio=lambda: parts.istio,
        address=lambda: parts.address,
        clock=parts.clock,
    )


def _agent(parts: Parts, limits: Limits) -> AgentService:
    return AgentService(
        trust_domain=parts.trust.trust_domain,
        store=parts.store,
        attestation=parts.attestation,
        follower=parts.follower,
        tokens=_join_tokens(parts),
        limits=limits,
    )


def _join_tokens(parts: Parts) -> JoinTokens:
    return JoinTokens(
        trust_domain=parts.trust.trust_domain, store=parts.store, follower=parts.follower, clock=parts.clock
    )


def _entry(parts: Parts) -> EntryService:
    return EntryService(
        trust_domain=parts.trust.trust_domain,
        store=parts.store,
        index=parts.index,
        follower=parts.follower,
        authorizer=parts.authorizer,
        clock=parts.clock,
        acks=parts.feed.acks,
    )


def _svid(parts: Parts, tokens: JwtIssuer, limits: Limits) -> SvidService:
    return SvidService(
        trust=parts.trust,
        issuer=parts.issuer,
        tokens=tokens,
        downstream=DownstreamIssuer(
            parts.issuer,
            ttl_seconds=parts.config.ca_ttl_seconds,
            roots=lambda: [one.certificate for one in parts.trust.own.x509_authorities],
        ),
        index=parts.index,
        limits=limits,
    )


def _exchange(parts: Parts, tokens: JwtIssuer, limits: Limits) -> ExchangeService:
    verifiers = parts.attestation.verifiers
    exchanger = Exchanger(
        trust_domain=parts.trust.trust_domain,
        verifiers={kind: one for kind, one in verifiers.items() if isinstance(one, TokenVerifier)},
        index=parts.index,
        issuer=parts.issuer,
        tokens=tokens,
        max_ttl_seconds=parts.config.exchange.max_ttl_seconds,
    )
    return ExchangeService(exchanger=exchanger, auditor=parts.auditor, limits=limits, ring=parts.attestation.ring)


def _issuing(parts: Parts, limits: Limits) -> IssuingService:
    return IssuingService(
        trust_domain=parts.trust.trust_domain,
        vouched=VouchedIssuer(index=parts.index, agents=parts.agents, issuer=parts.issuer),
        limits=limits,
        clock=parts.clock,
    )


def _debug(parts: Parts) -> DebugService:
    return DebugService(
        chain=parts.server_svid.chain_to_root,
        agents=parts.agents,
        index=parts.index,
        trust=parts.trust,
        clock=parts.clock,
    )


def _report(parts: Parts) -> DebugReport:
    return DebugReport(
        program="server",
        config=lambda: parts.config,
        health=parts.health,
        clock=parts.clock,
        started_at=parts.started_at,
    )


def _node(parts: Parts, limits: Limits) -> NodeService:
    return NodeService(
        feed=parts.feed,
        authorizer=parts.authorizer,
        attestation=parts.attestation,
        clock=parts.clock,
        limits=limits,
    )
