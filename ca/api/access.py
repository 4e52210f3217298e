"""Authorization of every call: the caller's tier against the method's row."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from ca.api.tiers import LOCAL_SERVICES, TIERS, Tier, service_of
from ca.errors import Denied, Unauthenticated, Unimplemented
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId, is_agent_path
from ca.identity.svid import X509Svid
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.gate import Peer
from ca.service.peers import AgentAuthorizer
from ca.store.authorized import AuthorizedIndex
from ca.store.values import AttestedAgent

logger = log.get("access")

_caller: ContextVar[Caller] = ContextVar("burgee_caller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, and as what it was let in. `agent` is there for Tier.AGENT; `entry` gives the rights of
    Tier.DOWNSTREAM, and of Tier.ADMIN unless the configuration does."""

    peer: Peer
    tier: Tier
    agent: AttestedAgent | None = None
    entry: RegistrationEntry | None = None


def current_caller() -> Caller:
    """The caller of the RPC that runs now."""
    return _caller.get()


def current_agent() -> AttestedAgent:
    """The calling agent; only for methods whose row is Tier.AGENT."""
    agent = _caller.get().agent
    if agent is None:
        raise Unauthenticated("the caller is no agent")
    return agent


def current_downstream() -> RegistrationEntry:
    """The entry that makes the caller a downstream server; only for methods whose row is Tier.DOWNSTREAM."""
    caller = _caller.get()
    if caller.tier is not Tier.DOWNSTREAM or caller.entry is None:
        raise Unauthenticated("the caller is no downstream server")
    return caller.entry


def current_svid() -> X509Svid:
    """The caller's X.509-SVID; only for methods that no anonymous or local caller reaches."""
    svid = _caller.get().peer.svid
    if svid is None:
        raise Unauthenticated("the caller has no X.509-SVID")
    return svid


class Access:
    """Evaluates in SPIRE's order: anyone, local, admin by configuration, admin or downstream by entry, agent.

    `admin_ids` may be of federated trust domains: a peer's SVID was verified against the bundle of its own. It may be
    replaced at any time.
    """

    def __init__(
        self,
        *,
        agents: AgentAuthorizer,
        index: AuthorizedIndex,
        clock: Clock,
        admin_ids: frozenset[SpiffeId] = frozenset(),
    ) -> None:
        self._agents = agents
        self._index = index
        self.admin_ids = admin_ids
        self._clock = clock

    async def admit(self, method: str, peer: Peer) -> Caller:
        """The caller, also kept for `current_caller`. `method` names a row of the tier table.

        Raises Denied; its reason is AGENT_* where an agent was asked for and the caller's SVID is not an acting
        agent's. Raises Unimplemented where the service is not served.
        """
        caller = await self._judge(method, peer)
        _caller.set(caller)
        return caller

    async def _judge(self, method: str, peer: Peer) -> Caller:
        local = peer.transport == "unix"
        service = service_of(method)
        if service in LOCAL_SERVICES and not local:
            raise Unimplemented(f"unknown service {service}", reason="LOCAL_ONLY")
        allowed = TIERS.get(method)
        if allowed is None:
            logger.error("method has no row in the tier table", method=method, reason="NO_TIER")
            raise denied(method)
        if Tier.ANYONE in allowed:
            return Caller(peer=peer, tier=Tier.ANYONE)
        if local:
            if Tier.LOCAL in allowed:
                return Caller(peer=peer, tier=Tier.LOCAL)
            raise denied(method)
        if peer.svid is None:
            raise denied(method)
        return await self._judge_svid(method, peer, peer.svid, allowed)

    async def _judge_svid(self, method: str, peer: Peer, svid: X509Svid, allowed: Tier) -> Caller:
        if allowed & (Tier.ADMIN | Tier.DOWNSTREAM) and self._clock.now() < svid.not_after:
            if Tier.ADMIN in allowed and svid.id in self.admin_ids:
                return Caller(peer=peer, tier=Tier.ADMIN)
            for entry in self._index.by_spiffe_id(svid.id):
                if entry.admin and Tier.ADMIN in allowed:
                    return Caller(peer=peer, tier=Tier.ADMIN, entry=entry)
                if entry.downstream and Tier.DOWNSTREAM in allowed:
                    return Caller(peer=peer, tier=Tier.DOWNSTREAM, entry=entry)
        if Tier.SVID in allowed and self._clock.now() < svid.not_after:
            return await self._judge_any(method, peer, svid)
        if Tier.AGENT in allowed:
            try:
                agent = await self._agents.authorize(svid)
            except Denied as cause:
                raise denied(method, cause) from cause
            return Caller(peer=peer, tier=Tier.AGENT, agent=agent)
        raise denied(method)

    async def _judge_any(self, method: str, peer: Peer, svid: X509Svid) -> Caller:
        """A banned agent's SVID is good for nothing, whatever it is granted."""
        if is_agent_path(svid.id.path):
            try:
                await self._agents.authorize(svid)
            except Denied as cause:
                raise denied(method, cause) from cause
        return Caller(peer=peer, tier=Tier.SVID)


def denied(method: str, cause: Denied | None = None) -> Denied:
    """The refusal of a call, with the reason and the hint of its cause."""
    detail = f"authorization denied for method {method}"
    if cause is None:
        return Denied(detail, reason="TIER")
    return Denied(detail, reason=cause.reason, hint=cause.hint)
