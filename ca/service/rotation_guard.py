"""Says who would be cut off by a step of a rotation: by what agents acknowledge, and by what was issued."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ca.authority.state import Authority
from ca.ports import Clock
from ca.runtime.istio_config import OF_PROXIES
from ca.service.acks import Acks
from ca.service.consumer_waits import ConsumerWaits
from ca.service.dependants import Dependants, Hanging, Picture
from ca.service.live_index import Holder, Live
from ca.service.publication import Publication
from ca.service.readiness import AgentState, Readiness
from ca.service.rotation_guard_port import Blocker
from ca.store.authorized import AuthorizedIndex

NAMED = 3
"""Identities that are named of a node; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """How a kind of holder is told of."""

    kind: str
    reason: str
    where: str


_WORDS = {
    Holder.WORKLOAD: _Words(kind="svid", reason="SVID_LIVE", where="on `{agent}`"),
    Holder.AGENT: _Words(kind="agent", reason="AGENT_SVID_LIVE", where="the agent's own SVID"),
    Holder.SERVER: _Words(kind="server", reason="SERVER_SVID_LIVE", where="the SVID of server `{server}`"),
    Holder.MINTED: _Words(kind="svid", reason="SVID_LIVE", where="minted by an administrator"),
    Holder.EXCHANGED: _Words(kind="svid", reason="SVID_LIVE", where="given without an agent, for `{agent}`"),
    Holder.DOWNSTREAM: _Words(
        kind="downstream-ca", reason="DOWNSTREAM_LIVE", where="the authority of a server below this one"
    ),
}


class RotationGuard:
    """Implements ca.service.rotation_guard_port.Guard. `authorities` gives all that are known, of every server."""

    def __init__(
        self,
        *,
        readiness: Readiness,
        dependants: Dependants,
        publication: Publication,
        acks: Acks,
        index: AuthorizedIndex,
        authorities: Callable[[], Sequence[Authority]],
        clock: Clock,
        waits: ConsumerWaits | None = None,
        has_files: bool = False,
    ) -> None:
        self._readiness = readiness
        self._dependants = dependants
        self._publication = publication
        self._acks = acks
        self._index = index
        self._authorities = authorities
        self._clock = clock
        self._waits = waits or ConsumerWaits()
        self._has_files = has_files

    async def before_activation(self, authority: Authority) -> Sequence[Blocker]:
        """Agents that are behind, with what would break there, and kinds of consumers that are given time still."""
        picture = await self._dependants.look()
        return self.behind(authority, picture, self._readiness.of(authority))

    def behind(self, authority: Authority, picture: Picture, states: Sequence[AgentState]) -> Sequence[Blocker]:
        """The same for what is at hand: the picture, and how far each agent is with the authority."""
        late = {str(state.agent_id): state for state in states if state.reason}
        names = _names(picture.alive, late)
        behind = [_behind(state, names.get(agent, [])) for agent, state in late.items()]
        return [*behind, *self._waiting(authority, states, picture.alive)]

    async def before_removal(self, authority: Authority) -> Sequence[Blocker]:
        """What is alive and hangs on it."""
        picture = await self._dependants.look()
        hanging = picture.of(authority, self._authorities())
        return [*self._live(hanging), *_untaken(hanging), *_tokens(authority, hanging)]

    def _waiting(self, authority: Authority, states: Iterable[AgentState], alive: Iterable[Live]) -> list[Blocker]:
        since, now = self._publication.since(authority), self._clock.now()
        if since is None:
            return []
        return [
            Blocker(
                kind="consumer",
                who=who,
                reason="CONSUMERS_WAITED_FOR",
                detail=f"cannot acknowledge and get {wait.total_seconds():g} s from the publication on",
                until=since + wait,
            )
            for who, wait in self._kinds(states, alive)
            if now < since + wait
        ]

    def _kinds(self, states: Iterable[AgentState], alive: Iterable[Live]) -> list[tuple[str, timedelta]]:
        """The kinds of consumers that there are and that cannot acknowledge."""
        kinds = []
        if streams := self._acks.workload_streams:
            kinds.append((f"{streams} Workload API streams", self._waits.workloads))
        if polling := sum(state.polls for state in states):
            kinds.append((f"{polling} agents that poll", self._waits.polling_agents))
        if elsewhere := sum(state.elsewhere for state in states):
            kinds.append((f"{elsewhere} agents without a stream to this server", self._waits.polling_agents))
        if self._has_files:
            kinds.append(("readers of the bundle file", self._waits.files))
        if downstream := len({live.entry_id for live in alive if live.holder is Holder.DOWNSTREAM}):
            kinds.append((f"{downstream} downstream servers", self._waits.downstream))
        if proxies := sum(live.agent.startswith(OF_PROXIES) for live in alive):
            kinds.append((f"{proxies} certificates of Istio's proxies", self._waits.istio_proxies))
        return kinds

    def _live(self, hanging: Hanging) -> list[Blocker]:
        return [_alive(live, self._who(live)) for live in hanging.live]

    def _who(self, live: Live) -> str:
        """A downstream authority's record names the trust domain; its entry tells which server it is."""
        entry = self._index.entry(live.entry_id) if live.holder is Holder.DOWNSTREAM else None
        return str(entry.spiffe_id) if entry is not None else live.spiffe_id


def _names(alive: Iterable[Live], agents: Container[str]) -> dict[str, list[str]]:
    """Workloads' SPIFFE IDs by agent, of these agents."""
    names: dict[str, list[str]] = {}
    for live in alive:
        if live.agent in agents and live.holder is Holder.WORKLOAD:
            names.setdefault(live.agent, []).append(live.spiffe_id)
    return names


def _behind(state: AgentState, identities: list[str]) -> Blocker:
    shown = ", ".join(sorted(identities)[:NAMED])
    more = f" and {len(identities) - NAMED} more" if len(identities) > NAMED else ""
    broken = f"; {shown}{more} there would refuse what it signs" if identities else ""
    return Blocker(
        kind="agent",
        who=str(state.agent_id),
        reason=state.reason,
        detail=f"{state.detail}{broken}",
        until=state.until,
    )


def _alive(live: Live, who: str) -> Blocker:
    words = _WORDS[live.holder]
    return Blocker(
        kind=words.kind,
        who=who,
        reason=words.reason,
        detail=f"{words.where.format(agent=live.agent, server=live.server)}, ends {_time(live.not_after)}",
        until=live.not_after,
    )


def _untaken(hanging: Hanging) -> list[Blocker]:
    return [
        Blocker(
            kind="svid",
            who=one.live.spiffe_id,
            reason="SVID_NOT_REPLACED",
            detail=f"on `{one.live.agent}`: {one.why}; ends {_time(one.live.not_after)}",
            until=one.live.not_after,
        )
        for one in hanging.untaken
    ]


def _tokens(authority: Authority, hanging: Hanging) -> list[Blocker]:
    if hanging.tokens is None:
        return []
    end = hanging.tokens.last_not_after
    detail = f"up to {hanging.tokens.number} JWT-SVIDs, the last ends {_time(end)}"
    return [Blocker(kind="token", who=authority.authority_id, reason="TOKENS_LIVE", detail=detail, until=end)]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
