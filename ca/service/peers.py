"""Who a caller is: the attested agents in memory, and whether one may act now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from ca.authority.state import Authority, AuthorityState
from ca.errors import Denied
from ca.identity.certificate import is_issued_by
from ca.identity.spiffe_id import SpiffeId
from ca.identity.svid import X509Svid
from ca.ports import Clock
from ca.service.trust import Trust
from ca.store.agents import Agents
from ca.store.values import AttestedAgent

Listener = Callable[[SpiffeId, AttestedAgent | None], None]


class AgentTable:
    """The attested agents, a copy of the store's rows.

    Every writer calls `refresh` after its commit; the follower does so for what other servers wrote. The lock makes
    the last read the newest, whoever comes first.
    """

    def __init__(self, store: Agents) -> None:
        self._store = store
        self._agents: dict[SpiffeId, AttestedAgent] = {}
        self._listeners: list[Listener] = []
        self.lock = asyncio.Lock()
        """Held from the reading of rows to their `adopt`."""

    @property
    def agents(self) -> Mapping[SpiffeId, AttestedAgent]:
        """Live view, by SPIFFE ID."""
        return self._agents

    def get(self, agent_id: SpiffeId) -> AttestedAgent | None:
        return self._agents.get(agent_id)

    def on_change(self, listener: Listener) -> None:
        """Calls `listener(id, agent)` after each change; None means gone."""
        self._listeners.append(listener)

    def load(self, agents: Iterable[AttestedAgent]) -> None:
        """Takes over exactly these; the caller holds the lock."""
        kept = {agent.id: agent for agent in agents}
        for agent_id in self._agents.keys() | kept.keys():
            self.adopt(agent_id, kept.get(agent_id))

    async def refresh(self, agent_id: SpiffeId) -> AttestedAgent | None:
        """Reads the agent's row again."""
        async with self.lock:
            agent = await self._store.get(agent_id)
            self.adopt(agent_id, agent)
            return agent

    def adopt(self, agent_id: SpiffeId, agent: AttestedAgent | None) -> None:
        """Takes over a row, None for one that is gone, and tells whoever listens if it differs; the caller holds the
        lock."""
        if agent == self._agents.get(agent_id):
            return
        if agent is None:
            self._agents.pop(agent_id, None)
        else:
            self._agents[agent_id] = agent
        for listener in self._listeners:
            listener(agent_id, agent)


class AgentAuthorizer:
    """Says whether an X.509-SVID is the one that its agent acts with now.

    The reasons are SPIRE's PermissionDeniedDetails: its agents decide by them whether to attest again or to stop.
    """

    def __init__(
        self,
        table: AgentTable,
        store: Agents,
        trust: Trust,
        clock: Clock,
        authorities: Callable[[], Iterable[Authority]] = tuple,
    ) -> None:
        """`authorities` are those of the servers that share the store."""
        self._table = table
        self._store = store
        self._trust = trust
        self._clock = clock
        self._authorities = authorities

    async def authorize(self, svid: X509Svid) -> AttestedAgent:
        """The agent. A renewed SVID becomes the current one at its first use. Raises Denied."""
        agent = self.check(svid, allow_pending=True)
        if agent.serial != str(svid.serial):
            await self._store.promote(svid.id, serial=str(svid.serial))
            await self._table.refresh(svid.id)
            return self.check(svid)
        return agent

    def check(self, svid: X509Svid, *, allow_pending: bool = False) -> AttestedAgent:
        """The same without the promotion, for streams: what was allowed when it began must still be."""
        now = self._clock.now()
        if now >= svid.not_after:
            expired = f"agent SVID expired at {svid.not_after.isoformat()}, the clock here says {now.isoformat()}"
            raise Denied(expired, reason="AGENT_EXPIRED", hint="attest again")
        agent = self._table.get(svid.id)
        if agent is None:
            raise Denied("caller is not an attested agent", reason="AGENT_NOT_ATTESTED", hint="attest again")
        if agent.banned or not agent.serial:
            raise Denied("agent is banned", reason="AGENT_BANNED", hint="an administrator can evict it to lift the ban")
        serial = str(svid.serial)
        if (serial == agent.serial or (allow_pending and serial == agent.pending_serial)) and self._is_ours(svid):
            return agent
        raise Denied("agent SVID is not active", reason="AGENT_NOT_ACTIVE", hint="a newer SVID is in use; attest again")

    def acts(self, svid: X509Svid | None) -> bool:
        """Whether it is an acting agent's, as of now."""
        if svid is None:
            return False
        try:
            self.check(svid, allow_pending=True)
        except Denied:
            return False
        return True

    def _is_ours(self, svid: X509Svid) -> bool:
        """A downstream authority may issue any name in the trust domain, and could repeat an agent's serial number: so
        an agent's SVID is one that an authority of the bundle signed itself, or one of ours that is below such a one
        (below an upstream the bundle holds the root alone)."""
        leaf = svid.chain[0]
        return any(is_issued_by(leaf, one.certificate) for one in self._trust.own.x509_authorities) or any(
            one.certificate and one.status != AuthorityState.REVOKED and is_issued_by(leaf, one.certificate)
            for one in self._authorities()
        )
