"""Follows the store's change log and keeps memory in step: entries, agents, bundles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.runtime import log
from ca.service.peers import AgentTable
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex, Effect
from ca.store.store import Store
from ca.store.values import Change, Compacted

logger = log.get("follower")

PAGE = 1000
"""Changes read at once."""


@dataclass(kw_only=True)
class Applied:
    """What one pass over the log did. `entries` maps an entry's id to the agents whom its change concerns."""

    revision: int
    entries: dict[str, frozenset[SpiffeId]] = field(default_factory=dict)
    whole: set[SpiffeId] = field(default_factory=set)
    """Agents whose whole set must be looked at again."""
    agents: set[SpiffeId] = field(default_factory=set)
    bundles: set[TrustDomain] = field(default_factory=set)
    everything: bool = False
    """The log was compacted past us and all was loaded anew."""


Listener = Callable[[Applied], None]


class Follower:
    """One per server. `revision` is the last change that memory shows, `mark` its mark."""

    def __init__(self, *, store: Store, index: AuthorizedIndex, agents: AgentTable, trust: Trust) -> None:
        self._store = store
        self._index = index
        self._agents = agents
        self._trust = trust
        self._lock = asyncio.Lock()
        self._listeners: list[Listener] = []
        self.revision = 0
        self.mark = ""

    def on_applied(self, listener: Listener) -> None:
        """Calls `listener` after each pass that changed something."""
        self._listeners.append(listener)

    async def load(self) -> None:
        """Reads everything, as of one revision."""
        snapshot = await self._store.snapshot()
        self._agents.load(snapshot.agents)
        self._index.load(snapshot.entries, snapshot.agents)
        self._trust.load(snapshot.bundles)
        self.revision, self.mark = snapshot.revision, snapshot.mark

    async def run(self) -> None:
        """Follows until cancelled."""
        while True:
            await self._store.changes.wait(self.revision)
            await self.catch_up()

    async def catch_up(self) -> None:
        """Returns when memory shows every change committed before the call."""
        async with self._lock:
            while True:
                try:
                    changes = await self._store.changes.since(self.revision, PAGE)
                except Compacted:
                    logger.warning("change log was compacted past this server; loading everything", reason="COMPACTED")
                    await self.load()
                    self._tell(Applied(revision=self.revision, everything=True))
                    return
                if changes:
                    await self._apply(changes)
                if len(changes) < PAGE:
                    return

    async def _apply(self, changes: list[Change]) -> None:
        applied = Applied(revision=changes[-1].revision)
        latest = {(change.kind, change.name): change for change in changes}
        await self._apply_entries([c for c in latest.values() if c.kind == "entry"], applied)
        for change in latest.values():
            if change.kind == "agent":
                await self._apply_agent(SpiffeId.parse(change.name), applied)
            elif change.kind == "bundle":
                await self._apply_bundle(TrustDomain(change.name), applied)
        self.revision, self.mark = applied.revision, changes[-1].mark
        self._tell(applied)

    async def _apply_entries(self, changes: list[Change], applied: Applied) -> None:
        names = [change.name for change in changes]
        found = await self._store.entries.get_many(names) if names else {}
        for name in names:
            entry = found.get(name)
            effect = self._index.remove_entry(name) if entry is None else self._index.put_entry(entry)
            self._note(name, effect, applied)

    async def _apply_agent(self, agent_id: SpiffeId, applied: Applied) -> None:
        agent = await self._agents.refresh(agent_id)
        effect = self._index.remove_agent(agent_id) if agent is None else self._index.put_agent(agent)
        applied.agents.add(agent_id)
        applied.whole |= effect.agents

    async def _apply_bundle(self, trust_domain: TrustDomain, applied: Applied) -> None:
        bundle = await self._store.bundles.get(trust_domain)
        if bundle is None:
            self._trust.remove(trust_domain)
        else:
            self._trust.put(bundle)
        applied.bundles.add(trust_domain)

    def _note(self, name: str, effect: Effect, applied: Applied) -> None:
        if effect.structural:
            applied.whole |= effect.agents
        applied.entries[name] = effect.agents

    def _tell(self, applied: Applied) -> None:
        for listener in self._listeners:
            listener(applied)
