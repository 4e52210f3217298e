"""Authorization of every call: the caller's tier against the method's row."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from ca.api.tiers import LOCAL_SERVICES, TIERS, Tier, service_of
from ca.errors import Denied, Unauthenticated, Unimplemented
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
    """Who calls, and as what it was let in. `agent` is there for Tier.AGENT."""

    peer: Peer
    tier: Tier
    agent: AttestedAgent | None = None


def current_caller() -> Caller:
    """The caller of the RPC that runs now."""
    return _caller.get()


def current_agent() -> AttestedAgent:
    """The calling agent; only for methods whose row is Tier.AGENT."""
    agent = _caller.get().agent
    if agent is None:
        raise Unauthenticated("the caller is no agent")
    return agent


def current_svid() -> X509Svid:
    """The caller's X.509-SVID; only for methods that no anonymous or local caller reaches."""
    svid = _caller.get().peer.svid
    if svid is None:
        raise Unauthenticated("the caller has no X.509-SVID")
    return svid


class Access:
    """Evaluates in SPIRE's order: anyone, local, admin or downstream by entry, agent."""

    def __init__(self, *, agents: AgentAuthorizer, index: AuthorizedIndex, clock: Clock) -> None:
        self._agents = agents
        self._index = index
        self._clock = clock

    async def admit(self, method: str, peer: Peer) -> Caller:
        """The caller, also kept for `current_caller`. Raises Denied; its reason is AGENT_* where an agent was asked
        for and the caller's SVID is not an acting agent's. Raises Unimplemented where the service is not served."""
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
            raise self._denied(method)
        if Tier.ANYONE in allowed:
            return Caller(peer=peer, tier=Tier.ANYONE)
        if local:
            if Tier.LOCAL in allowed:
                return Caller(peer=peer, tier=Tier.LOCAL)
            raise self._denied(method)
        if peer.svid is None:
            raise self._denied(method)
        return await self._judge_svid(method, peer, peer.svid, allowed)

    async def _judge_svid(self, method: str, peer: Peer, svid: X509Svid, allowed: Tier) -> Caller:
        if allowed & (Tier.ADMIN | Tier.DOWNSTREAM) and self._clock.now() < svid.not_after:
            for entry in self._index.by_spiffe_id(svid.id):
                if entry.admin and Tier.ADMIN in allowed:
                    return Caller(peer=peer, tier=Tier.ADMIN)
                if entry.downstream and Tier.DOWNSTREAM in allowed:
                    return Caller(peer=peer, tier=Tier.DOWNSTREAM)
        if Tier.AGENT in allowed:
            try:
                agent = await self._agents.authorize(svid)
            except Denied as denied:
                raise self._denied(method, denied) from denied
            return Caller(peer=peer, tier=Tier.AGENT, agent=agent)
        raise self._denied(method)

    @staticmethod
    def _denied(method: str, cause: Denied | None = None) -> Denied:
        detail = f"authorization denied for method {method}"
        if cause is None:
            return Denied(detail, reason="TIER")
        return Denied(detail, reason=cause.reason, hint=cause.hint)
