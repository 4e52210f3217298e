"""Follows the store's change log and keeps memory in step: entries, agents, bundles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.runtime import log
from ca.service.peers import AgentTable
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex, Effect
from ca.store.store import Store
from ca.store.values import AttestedAgent, Change, Compacted

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
    policies: set[str] = field(default_factory=set)
    """Revisions of policies, or what else of them changed, by the names that the changes have."""
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
        self._begun = self._done = 0  # passes; one shows whatever was committed before it began
        self._listeners: list[Listener] = []
        self.revision = 0
        self.mark = ""

    @property
    def trust(self) -> Trust:
        """The bundles that it keeps in step."""
        return self._trust

    def on_applied(self, listener: Listener) -> None:
        """Calls `listener` after each pass that changed something."""
        self._listeners.append(listener)

    async def load(self) -> None:
        """Reads everything, as of one revision."""
        async with self._agents.lock:
            snapshot = await self._store.snapshot()
            self._index.load(snapshot.entries, snapshot.agents)
            self._trust.load(snapshot.bundles)
            self.revision, self.mark = snapshot.revision, snapshot.mark
            self._agents.load(snapshot.agents)

    async def run(self) -> None:
        """Follows until cancelled."""
        while True:
            await self._store.changes.wait(self.revision)
            if self._lock.locked():
                async with self._lock:
                    continue  # whoever was reading has mostly shown it
            await self.catch_up()

    async def catch_up(self) -> None:
        """Returns when memory shows every change committed before the call. Of those who wait for their turn one reads
        for all."""
        wanted = self._begun + 1
        async with self._lock:
            if self._done >= wanted:
                return
            self._begun += 1
            await self._read_on()
            self._done = self._begun

    async def _read_on(self) -> None:
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

    def expire(self) -> None:
        """Tells of the entries whose end has come. That is no change of the store, so the revision stays."""
        applied = Applied(revision=self.revision)
        for name, effect in self._index.expire().items():
            self._note(name, effect, applied)
        if applied.entries:
            logger.info("entries have expired", count=len(applied.entries))
            self._tell(applied)

    async def _apply(self, changes: list[Change]) -> None:
        """Reads everything, then takes it over and tells of it at once: a pass that fails or is cancelled has changed
        nothing, and the next one finds the same differences."""
        names: dict[str, list[str]] = {"entry": [], "agent": [], "bundle": []}
        for kind, name in dict.fromkeys((change.kind, change.name) for change in changes):
            names.setdefault(kind, []).append(name)
        agent_ids = [SpiffeId.parse(name) for name in names["agent"]]
        domains = [TrustDomain(name) for name in names["bundle"]]
        async with self._agents.lock:
            created = self._store.entries.created.among(changes)
            entries = await self._store.entries.get_many([name for name in names["entry"] if name not in created])
            entries |= created
            agents = await self._agents_of(agent_ids, changes)
            bundles = {domain: await self._store.bundles.get(domain) for domain in domains}
            applied = Applied(revision=changes[-1].revision, policies=set(names.get("policy", ())))
            for name in names["entry"]:
                self._take_entry(name, entries.get(name), applied)
            for agent_id in agent_ids:
                self._take_agent(agent_id, agents.get(agent_id), applied)
            for domain, bundle in bundles.items():
                self._take_bundle(domain, bundle, applied)
            self.revision, self.mark = applied.revision, changes[-1].mark
            self._store.entries.created.drop(changes)
            self._store.agents.attested.drop(changes)
            self._tell(applied)

    async def _agents_of(self, agent_ids: list[SpiffeId], changes: list[Change]) -> dict[SpiffeId, AttestedAgent]:
        """Those that are there. Memory may have newer rows already (a ban's, say): what was attested here is taken as
        it was written only where nothing can have followed it."""
        newest = self._store.changes.is_newest(changes[-1].revision)
        attested = self._store.agents.attested.among(changes) if newest else {}
        known = {agent.id: agent for agent in attested.values()}
        rest = [agent_id for agent_id in agent_ids if agent_id not in known]
        return known | (await self._store.agents.get_many(rest) if rest else {})

    def _take_entry(self, name: str, entry: RegistrationEntry | None, applied: Applied) -> None:
        effect = self._index.remove_entry(name) if entry is None else self._index.put_entry(entry)
        self._note(name, effect, applied)

    def _take_agent(self, agent_id: SpiffeId, agent: AttestedAgent | None, applied: Applied) -> None:
        self._agents.adopt(agent_id, agent)
        effect = self._index.remove_agent(agent_id) if agent is None else self._index.put_agent(agent)
        applied.agents.add(agent_id)
        applied.whole |= effect.agents

    def _take_bundle(self, trust_domain: TrustDomain, bundle: TrustBundle | None, applied: Applied) -> None:
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
        """What was applied is not told again, so that no listener may keep the others from hearing of it."""
        for listener in self._listeners:
            try:
                listener(applied)
            except Exception as error:
                logger.error("cannot follow a change", reason="CHANGE_NOT_FOLLOWED", exc_info=error)
