"""What the agents say they hold and took over, in memory: each says it anew when it connects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ca.identity.spiffe_id import SpiffeId

BUNDLE = "bundle"
ENTRY = "entry"
POLICY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyState:
    """One resource of one proxy of an agent. `state`: sent, acked, nacked, or unanswered, which `detail` explains.
    `in_force`: where it was refused, the revision that it goes by instead, 0 if that is not known; `unlogged`: its
    decisions do not reach the agent's access log."""

    proxy: str
    pid: int
    spiffe_id: str
    resource: str
    revision: int
    state: str
    detail: str = ""
    unlogged: bool = False
    in_force: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """The last word of an agent about one kind of resource.

    `waiting` names some of the consumers that have not taken it over. Of bundles: `sequence` and `authorities` (IDs) of
    the own trust domain's, and the `workload_streams` that were told and cannot acknowledge. Of entries: `svids` counts
    X.509-SVIDs of workloads by the authorities that they hang on, directly or through others. Of policies: `revision`
    is that of those in force there, and `proxies` what each proxy made of them.
    """

    revision: int
    error: str
    consumers: int
    consumers_acked: int
    at: datetime
    waiting: tuple[str, ...] = ()
    sequence: int = 0
    authorities: frozenset[str] = frozenset()
    workload_streams: int = 0
    svids: Mapping[str, int] = field(default_factory=dict)
    proxies: tuple[ProxyState, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it was applied, and taken over by every consumer."""
        return not self.error and self.consumers_acked >= self.consumers


class Acks:
    """By agent and kind; of agents that ask every few seconds instead, as SPIRE's do, when they last did."""

    def __init__(self) -> None:
        self._acks: dict[SpiffeId, dict[str, Acknowledged]] = {}
        self._polls: dict[SpiffeId, datetime] = {}
        self.connected: set[SpiffeId] = set()
        """Agents with a stream to this server now."""

    def put(self, agent_id: SpiffeId, kind: str, ack: Acknowledged) -> None:
        self._acks.setdefault(agent_id, {})[kind] = ack

    def of(self, agent_id: SpiffeId) -> Mapping[str, Acknowledged]:
        """Empty for an agent that never said anything to this server."""
        return self._acks.get(agent_id, {})

    @property
    def known(self) -> frozenset[SpiffeId]:
        """Agents that said anything, or have a stream now."""
        return frozenset(self.connected | self._acks.keys())

    def polled(self, agent_id: SpiffeId, at: datetime) -> None:
        """An agent asked for its entries, and so asks for its bundle."""
        self._polls[agent_id] = at

    def last_poll(self, agent_id: SpiffeId) -> datetime | None:
        return self._polls.get(agent_id)

    def forget(self, agent_id: SpiffeId) -> None:
        self._acks.pop(agent_id, None)
        self._polls.pop(agent_id, None)

    @property
    def workload_streams(self) -> int:
        """Of all agents together, as far as they said."""
        return sum(acks[BUNDLE].workload_streams for acks in self._acks.values() if BUNDLE in acks)
