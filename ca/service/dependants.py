"""What is alive and hangs on an authority, and so would break with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ca.authority.state import Authority, AuthorityKind
from ca.ports import Clock
from ca.service.acks import ENTRY, Acks
from ca.service.live_index import Holder, Live, LiveIndex, Tokens
from ca.service.live_issued import LiveIssued
from ca.service.peers import AgentTable
from ca.service.publication import lineage
from ca.store.values import AttestedAgent


@dataclass(frozen=True, slots=True, kw_only=True)
class Untaken:
    """An SVID whose successor was issued, and is not in use yet as far as anybody said; and why it is thought so."""

    live: Live
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hanging:
    """What hangs on an authority: alive and without a successor, or with one that is not in use yet, or tokens. `of` is
    how many X.509-SVIDs and downstream authorities are alive altogether."""

    live: list[Live] = field(default_factory=list)
    untaken: list[Untaken] = field(default_factory=list)
    tokens: Tokens | None = None
    of: int = 0

    @property
    def number(self) -> int:
        """How many they are, of tokens as many as it may be."""
        return len(self.live) + len(self.untaken) + (self.tokens.number if self.tokens else 0)

    @property
    def last_not_after(self) -> datetime | None:
        """When the last of it ends by itself; None when there is nothing."""
        ends = [live.not_after for live in self.live] + [untaken.live.not_after for untaken in self.untaken]
        return max(ends + ([self.tokens.last_not_after] if self.tokens else []), default=None)


class Picture:
    """What is alive as of one moment: not what a banned agent has, nor an agent's own SVID that is neither the one it
    uses nor the one it got last."""

    def __init__(
        self, *, index: LiveIndex, agents: Mapping[str, AttestedAgent], acks: Acks, now: datetime, has_others: bool
    ) -> None:
        self._has_others = has_others
        self._index = index
        self._agents = agents
        self._acks = acks
        self._now = now
        self.alive = [live for live in index.all(now) if self._counts(live)]

    def of(self, authority: Authority, authorities: Iterable[Authority]) -> Hanging:
        """What hangs on an authority, itself or through others of the `authorities` that are known."""
        if authority.kind is AuthorityKind.JWT:
            return Hanging(tokens=self._index.tokens(authority.authority_id))
        return self.below(authority.authority_id, authorities)

    def below(self, authority_id: str, authorities: Iterable[Authority]) -> Hanging:
        """The same by ID, also for a root that is no server's authority."""
        signers = {authority_id} | {one.authority_id for one in authorities if authority_id in lineage(one)}
        live = [one for one in self.alive if one.authority_id in signers]
        held = Counter(one.agent for one in live if one.holder is Holder.WORKLOAD)
        untaken = [
            Untaken(live=old.live, why=why)
            for old in self._index.superseded(signers, self._now)
            if self._counts(old.live) and (why := self._untaken(old.live, authority_id, held))
        ]
        return Hanging(live=live, untaken=untaken, of=len(self.alive) + len(untaken))

    def _counts(self, live: Live) -> bool:
        if not live.agent:
            return True
        agent = self._agents.get(live.agent)
        if agent is None:
            return live.holder is not Holder.AGENT
        if agent.banned:
            return False
        return live.holder is not Holder.AGENT or live.serial in (agent.serial, agent.pending_serial)

    def _untaken(self, old: Live, authority_id: str, held: Mapping[str, int]) -> str:
        """Why a successor is thought not to be in use yet; empty when it is, or where nobody says anything."""
        agent = self._agents.get(old.agent)
        ack = self._acks.of(agent.id).get(ENTRY) if agent is not None and old.holder is Holder.WORKLOAD else None
        if ack is None or agent is None or (self._has_others and agent.id not in self._acks.connected):
            return ""
        if ack.svids.get(authority_id, 0) > held.get(old.agent, 0):
            return "its successor was issued, and the agent has not said that it has it"
        if ack.consumers_acked < ack.consumers:
            return f"{ack.consumers - ack.consumers_acked} Envoy streams have not taken over the successor"
        return ""


class Dependants:
    """Reads what was issued, and what agents say they hold; beside other servers (`has_others`) what those who have a
    stream to this one say."""

    def __init__(
        self,
        *,
        issued: LiveIssued,
        agents: AgentTable,
        acks: Acks,
        clock: Clock,
        has_others: Callable[[], bool] = lambda: False,
    ) -> None:
        self._has_others = has_others
        self.issued = issued
        self._agents = agents
        self._acks = acks
        self._clock = clock

    async def look(self) -> Picture:
        """As of now. Raises Unavailable."""
        index = await self.issued.look()
        agents = {str(agent_id): agent for agent_id, agent in self._agents.agents.items()}
        return Picture(
            index=index, agents=agents, acks=self._acks, now=self._clock.now(), has_others=self._has_others()
        )
