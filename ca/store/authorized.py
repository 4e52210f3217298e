"""Which entries each agent may serve: an index in memory, kept current one change at a time.

SPIRE's rule: an agent may serve what descends from its own ID and from the IDs of its node aliases, following
parent IDs, and the alias entries themselves. A node alias is an entry whose parent is the server and whose
selectors the agent all has; an agent also has the selector `spiffe_id:<its own ID>`.
Nothing here is computed ahead for each agent, so one change costs what it touches, not what the trust domain holds.
An entry that has expired gives nothing to anybody, nor does what hangs below it, although it stays until it is removed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain, server_id
from ca.store.multimap import MultiMap
from ca.store.values import AttestedAgent


@dataclass(frozen=True, slots=True)
class Effect:
    """Whom a change concerns. `agents`: every agent for whom an authorized entry came, went or was altered (and
    perhaps some for whom none did). `structural`: entries other than the changed one may have come or gone too."""

    agents: frozenset[SpiffeId] = frozenset()
    structural: bool = False


NOTHING = Effect()


class AuthorizedIndex:
    """The entries and agents of one trust domain; `now` tells the time. Not for use by several threads at once."""

    def __init__(self, trust_domain: TrustDomain, now: Callable[[], datetime]) -> None:
        self._trust_domain = trust_domain
        self._now = now
        self._server = server_id(trust_domain)
        self._entries: dict[str, RegistrationEntry] = {}
        self._by_parent: MultiMap[str, str, RegistrationEntry] = MultiMap()  # aliases are not in it
        self._by_spiffe_id: MultiMap[str, str, RegistrationEntry] = MultiMap()
        self._aliases: MultiMap[Selector, str, RegistrationEntry] = MultiMap()  # under one selector of each
        self._alias_pivots: dict[str, Selector] = {}
        self._agents: dict[str, tuple[SpiffeId, frozenset[Selector]]] = {}
        self._holders: MultiMap[Selector, str, SpiffeId] = MultiMap()  # agents by each selector
        self._expiring: set[str] = set()  # entries that have an end
        self._ends: list[tuple[datetime, str]] = []  # a heap, also of what is no more

    def load(self, entries: Iterable[RegistrationEntry], agents: Iterable[AttestedAgent]) -> None:
        """Replace everything."""
        AuthorizedIndex.__init__(self, self._trust_domain, self._now)
        for entry in entries:
            self._insert(entry)
        for agent in agents:
            self._insert_agent(agent.id, _held(agent))

    def __len__(self) -> int:
        return len(self._entries)

    def put_entry(self, entry: RegistrationEntry) -> Effect:
        """Add or replace an entry."""
        old = self._entries.get(entry.id)
        if old == entry:
            return NOTHING
        touched = set() if old is None else self._agents_above(old)
        if old is not None:
            self._discard(old)
        self._insert(entry)
        touched |= self._agents_above(entry)
        return Effect(frozenset(touched), self._relinks(old, entry))

    def remove_entry(self, entry_id: str) -> Effect:
        """Forget an entry; one that is unknown concerns nobody."""
        old = self._entries.get(entry_id)
        if old is None:
            return NOTHING
        touched = self._agents_above(old)
        self._discard(old)
        return Effect(frozenset(touched), self._relinks(old, None))

    def put_agent(self, agent: AttestedAgent) -> Effect:
        """Add an agent or replace its selectors; its other fields do not matter here."""
        held = _held(agent)
        known = self._agents.get(self._key(agent.id))
        if known is not None and known[1] == held:
            return NOTHING
        self.remove_agent(agent.id)
        self._insert_agent(agent.id, held)
        return Effect(frozenset((agent.id,)), structural=True)

    def remove_agent(self, agent_id: SpiffeId) -> Effect:
        """Forget an agent: it is then authorized to nothing."""
        known = self._agents.pop(self._key(agent_id), None)
        if known is None:
            return NOTHING
        for selector in known[1]:
            self._holders.remove(selector, self._key(agent_id))
        return Effect(frozenset((agent_id,)), structural=True)

    def authorized(self, agent_id: SpiffeId) -> list[RegistrationEntry]:
        """The entries that the agent may serve, sorted by entry id; none for an unknown agent."""
        return self._reachable(agent_id, self._now())

    def servable(self, agent_id: SpiffeId, held: frozenset[Selector]) -> list[RegistrationEntry]:
        """What an agent of this ID might serve that has these selectors, and those of the one there is, if there is."""
        key = self._key(agent_id)
        known = self._agents.get(key)
        held |= {Selector("spiffe_id", str(agent_id))} | (known[1] if known is not None else frozenset())
        return self._below(key, held, self._now())

    def lapsed(self, agent_id: SpiffeId) -> list[str]:
        """Ids of the entries that the agent might still serve if none had expired."""
        if not self._expiring:
            return []
        held = {entry.id for entry in self.authorized(agent_id)}
        return [entry.id for entry in self._reachable(agent_id, None) if entry.id not in held]

    def expire(self) -> dict[str, Effect]:
        """By id, the entries that have expired since the last call, or were put when they had, and whom each concerns.
        Without this call they are out of use all the same; it tells whom to tell."""
        now, effects = self._now(), dict[str, Effect]()
        while self._ends and self._ends[0][0] <= now:
            at, entry_id = heapq.heappop(self._ends)
            entry = self._entries.get(entry_id)
            if entry is not None and entry.expires_at == at:
                effects[entry_id] = Effect(frozenset(self._agents_above(entry)), self._relinks(entry, None))
        return effects

    @property
    def next_expiry(self) -> datetime | None:
        """When to call `expire` again; perhaps for nothing."""
        return self._ends[0][0] if self._ends else None

    def _reachable(self, agent_id: SpiffeId, now: datetime | None) -> list[RegistrationEntry]:
        key = self._key(agent_id)
        known = self._agents.get(key)
        return [] if known is None else self._below(key, known[1], now)

    def _below(self, key: str, held: frozenset[Selector], now: datetime | None) -> list[RegistrationEntry]:
        found: dict[str, RegistrationEntry] = {}
        reached = {key}
        pending = [key]
        for alias in self._aliases_of(held):
            if _lives(alias, now):
                found[alias.id] = alias
                self._reach(alias, reached, pending)
        while pending:
            for entry in self._by_parent.values(pending.pop()):
                if _lives(entry, now):
                    found[entry.id] = entry
                    self._reach(entry, reached, pending)
        return [found[entry_id] for entry_id in sorted(found)]

    def get(self, agent_id: SpiffeId, entry_id: str) -> RegistrationEntry | None:
        """The entry, if the agent may serve it."""
        own = self._key(agent_id)
        entry, known = self._entries.get(entry_id), self._agents.get(own)
        if entry is None or known is None:
            return None
        if entry.expires_at is None and self._key(entry.parent_id) == own:  # as most are
            return entry
        held = known[1]
        for ancestor in self._upwards(entry, self._now()):
            if ancestor.parent_id == self._server:
                if ancestor.selectors and ancestor.selectors <= held:
                    return entry
            elif self._key(ancestor.parent_id) == own:
                return entry
        return None

    def entry(self, entry_id: str) -> RegistrationEntry | None:
        """An entry, whoever may serve it."""
        return self._entries.get(entry_id)

    def all_entries(self) -> list[RegistrationEntry]:
        """Every entry that has not been removed, whoever may serve it."""
        return list(self._entries.values())

    def below(self, parent_id: SpiffeId) -> list[RegistrationEntry]:
        """The entries right below this ID, whoever bears it or nobody, sorted by entry id."""
        now = self._now()
        found = (entry for entry in self._by_parent.values(self._key(parent_id)) if _lives(entry, now))
        return sorted(found, key=lambda entry: entry.id)

    def by_spiffe_id(self, spiffe_id: SpiffeId) -> list[RegistrationEntry]:
        """The entries that give this ID: a caller's admin and downstream rights are in them."""
        now = self._now()
        return [entry for entry in self._by_spiffe_id.values(self._key(spiffe_id)) if _lives(entry, now)]

    def _key(self, spiffe_id: SpiffeId) -> str:
        # Strings keep their hash; IDs of the own trust domain (all but mistakes) are told apart by path.
        return spiffe_id.path if spiffe_id.trust_domain.name == self._trust_domain.name else str(spiffe_id)

    def _reach(self, entry: RegistrationEntry, reached: set[str], pending: list[str]) -> None:
        key = self._key(entry.spiffe_id)
        if key not in reached and key in self._by_parent:
            reached.add(key)
            pending.append(key)

    def _upwards(self, entry: RegistrationEntry, now: datetime | None = None) -> Iterator[RegistrationEntry]:
        """The entry and those above it, each parent ID followed once (entries may form a ring); with `now` only by way
        of what has not expired."""
        pending, followed = [entry], set()
        while pending:
            current = pending.pop()
            if not _lives(current, now):
                continue
            yield current
            if current.parent_id == self._server:
                continue
            parent = self._key(current.parent_id)
            if parent not in followed:
                followed.add(parent)
                pending.extend(self._by_spiffe_id.values(parent))

    def _agents_above(self, entry: RegistrationEntry) -> set[SpiffeId]:
        touched: set[SpiffeId] = set()
        for ancestor in self._upwards(entry):
            if ancestor.parent_id == self._server:
                touched.update(self._holders_of(ancestor.selectors))
                continue
            known = self._agents.get(self._key(ancestor.parent_id))
            if known is not None:
                touched.add(known[0])
        return touched

    def _relinks(self, old: RegistrationEntry | None, new: RegistrationEntry | None) -> bool:
        """Whether the change joins other entries to an agent, or cuts them off: only if something hangs below it."""
        if old is not None and new is not None and _links(old) == _links(new):
            return False
        return any(entry is not None and self._key(entry.spiffe_id) in self._by_parent for entry in (old, new))

    def _aliases_of(self, held: frozenset[Selector]) -> Iterator[RegistrationEntry]:
        for selector in held:
            for alias in self._aliases.values(selector):
                if alias.selectors <= held:
                    yield alias

    def _holders_of(self, selectors: frozenset[Selector]) -> Iterator[SpiffeId]:
        """Agents that have all of the selectors: the holders of the rarest one, less those that lack another."""
        rarest = min(selectors, key=self._holders.count, default=None)
        if rarest is None:
            return
        for agent_id in self._holders.values(rarest):
            if selectors <= self._agents[self._key(agent_id)][1]:
                yield agent_id

    def _insert(self, entry: RegistrationEntry) -> None:
        self._entries[entry.id] = entry
        self._by_spiffe_id.put(self._key(entry.spiffe_id), entry.id, entry)
        if entry.expires_at is not None:
            self._note_end(entry.id, entry.expires_at)
        if entry.parent_id != self._server:
            self._by_parent.put(self._key(entry.parent_id), entry.id, entry)
        elif entry.selectors:
            pivot = min(entry.selectors, key=self._aliases.count)
            self._alias_pivots[entry.id] = pivot
            self._aliases.put(pivot, entry.id, entry)

    def _discard(self, entry: RegistrationEntry) -> None:
        del self._entries[entry.id]
        self._expiring.discard(entry.id)
        self._by_spiffe_id.remove(self._key(entry.spiffe_id), entry.id)
        pivot = self._alias_pivots.pop(entry.id, None)
        if pivot is not None:
            self._aliases.remove(pivot, entry.id)
        elif entry.parent_id != self._server:
            self._by_parent.remove(self._key(entry.parent_id), entry.id)

    def _note_end(self, entry_id: str, at: datetime) -> None:
        self._expiring.add(entry_id)
        heapq.heappush(self._ends, (at, entry_id))
        if len(self._ends) > 1000 + 2 * len(self._expiring):
            live = ((end, i) for end, i in set(self._ends) if i in self._entries and self._entries[i].expires_at == end)
            self._ends = sorted(live)

    def _insert_agent(self, agent_id: SpiffeId, held: frozenset[Selector]) -> None:
        key = self._key(agent_id)
        self._agents[key] = (agent_id, held)
        for selector in held:
            self._holders.put(selector, key, agent_id)


def _held(agent: AttestedAgent) -> frozenset[Selector]:
    return agent.selectors | {Selector("spiffe_id", str(agent.id))}


def _links(entry: RegistrationEntry) -> tuple[object, ...]:
    return entry.parent_id, entry.spiffe_id, entry.selectors, entry.expires_at


def _lives(entry: RegistrationEntry, now: datetime | None) -> bool:
    """Whether the entry has not expired; always, if no time is given."""
    return now is None or entry.expires_at is None or entry.expires_at > now
