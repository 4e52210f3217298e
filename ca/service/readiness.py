"""Which agents have an authority, by their own word, and which would be cut off by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from ca.authority.state import Authority
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.service.acks import BUNDLE, Acknowledged, Acks
from ca.service.peers import AgentTable
from ca.service.publication import Publication
from ca.store.values import AttestedAgent


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """One agent and one authority. `reason` is empty for an agent that has it, and so has everything behind it;
    otherwise AGENT_SILENT, AGENT_BEHIND or ENVOY_BEHIND. `until` is the end of the agent's own SVID: whoever has none
    is not waited for. `polls`: it asks every few seconds and acknowledges nothing. `elsewhere`: it has no stream to
    this server, and there are others, which it may have told."""

    agent_id: SpiffeId
    until: datetime
    reason: str = ""
    detail: str = ""
    polls: bool = False
    elsewhere: bool = False


def holders(agents: AgentTable, now: datetime) -> Iterator[tuple[AttestedAgent, datetime]]:
    """Agents with an SVID that they may use, and its end."""
    for agent in agents.agents.values():
        end = max(agent.not_after, agent.pending_not_after or agent.not_after)
        if agent.serial and not agent.banned and end > now:
            yield agent, end


class Readiness:
    """Looks at memory alone. `has_others` tells whether other servers share the store: what agents tell them is not
    known here."""

    def __init__(
        self,
        *,
        agents: AgentTable,
        acks: Acks,
        publication: Publication,
        clock: Clock,
        has_others: Callable[[], bool] = lambda: False,
    ) -> None:
        self._agents = agents
        self._acks = acks
        self._publication = publication
        self._clock = clock
        self._has_others = has_others

    def of(self, authority: Authority) -> list[AgentState]:
        """Every agent that holds an unexpired SVID."""
        anchor, since = self._publication.anchor(authority), self._publication.since(authority)
        now, others = self._clock.now(), self._has_others()
        states = [self._state(agent.id, end, anchor, since) for agent, end in holders(self._agents, now)]
        return [self._elsewhere(state) if others and anchor is not None else state for state in states]

    def _elsewhere(self, state: AgentState) -> AgentState:
        """Whoever is not heard here may be heard by another server, whose push is as quick as ours."""
        if not state.reason or state.polls or state.agent_id in self._acks.connected:
            return state
        return AgentState(agent_id=state.agent_id, until=state.until, elsewhere=True)

    def _state(self, agent_id: SpiffeId, end: datetime, anchor: str | None, since: datetime | None) -> AgentState:
        ack = self._acks.of(agent_id).get(BUNDLE)
        polled = self._acks.last_poll(agent_id)
        if ack is not None and (polled is None or ack.at >= polled):
            lack, polls = self._if_there(agent_id, _by_ack(ack, anchor)), False
        elif polled is not None:
            lack, polls = _by_poll(polled, since), True
        else:
            lack, polls = _Lack(reason="AGENT_SILENT", detail="has said nothing since this server started"), False
        return AgentState(agent_id=agent_id, until=end, reason=lack.reason, detail=lack.detail, polls=polls)

    def _if_there(self, agent_id: SpiffeId, lack: _Lack) -> _Lack:
        """Whoever has no stream cannot be told of the authority; what it lacks is its last word, not its fault."""
        if not lack.reason or agent_id in self._acks.connected:
            return lack
        return _Lack(reason="AGENT_SILENT", detail=f"is not connected; its last word: {lack.detail}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lack:
    """Why an agent does not have it; empty when it does."""

    reason: str = ""
    detail: str = ""


_NOTHING = _Lack()


def _by_ack(ack: Acknowledged, anchor: str | None) -> _Lack:
    if anchor is None or anchor not in ack.authorities:
        why = f": {ack.error}" if ack.error else ""
        words = f"said at {ack.at:%H:%M:%SZ} that it holds bundle {ack.sequence}, in which the authority is not{why}"
        return _Lack(reason="AGENT_BEHIND", detail=words)
    if ack.error:
        return _Lack(reason="AGENT_BEHIND", detail=f"could not apply the bundle: {ack.error}")
    missing = ack.consumers - ack.consumers_acked
    if missing <= 0:
        return _NOTHING
    named = f": {', '.join(ack.waiting)}" if ack.waiting else ""
    words = f"{missing} of its {ack.consumers} Envoy streams have not taken it over{named}"
    return _Lack(reason="ENVOY_BEHIND", detail=words)


def _by_poll(polled: datetime, since: datetime | None) -> _Lack:
    if since is not None and polled >= since:
        return _NOTHING
    words = f"asked last at {polled:%H:%M:%SZ}, before the authority was published"
    return _Lack(reason="AGENT_BEHIND", detail=words)
