"""The push feed: for each connected agent, what concerns it, from where it left off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import Clock
from ca.service.acks import BUNDLE, ENTRY, POLICY, Acknowledged, Acks
from ca.service.feed_missed import Missed, Resume
from ca.service.feed_policies import SentPolicies, SetOf
from ca.service.follower import Applied, Follower
from ca.service.policy.candidates import CandidateSet
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store
from ca.store.values import Change, Compacted

KINDS = frozenset({ENTRY, BUNDLE, POLICY})
"""What is pushed, and so what can be acknowledged."""
RESUME_LIMIT = 10_000
"""Changes read for one resuming agent; above it a snapshot is cheaper."""


@dataclass(kw_only=True)
class Update:
    """What an agent is to apply, and the resume token that it then holds.

    A snapshot is everything; whatever it does not name is gone. `policies` are there where they are new to the agent.
    """

    epoch: str
    revision: int
    snapshot: bool = False
    entries: list[RegistrationEntry] = field(default_factory=list)
    bundles: list[TrustBundle] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)
    """(kind, name)."""
    policies: CandidateSet | None = None

    @property
    def empty(self) -> bool:
        return not (self.snapshot or self.entries or self.bundles or self.removed or self.policies)


def _epoch(store_epoch: str, mark: str) -> str:
    return f"{store_epoch}.{mark}" if mark else store_epoch


class Session:
    """One stream. `known` and `domains` are what the agent holds: entry ids, and trust domains of bundles."""

    def __init__(self, feed: Feed, agent_id: SpiffeId) -> None:
        self._feed = feed
        self.agent_id = agent_id
        self.known: set[str] = set()
        self.domains: set[TrustDomain] = set()
        self.superseded = False
        """True when the stream shall end, for there are enough newer ones."""
        self.policies = SentPolicies(feed.set_of)
        self._entries: set[str] = set()
        self._bundles: set[TrustDomain] = set()
        self._whole = False
        self._snapshot = False
        self._wake = asyncio.Event()

    def note(self, entries: Iterable[str] = (), bundles: Iterable[TrustDomain] = (), *, whole: bool = False) -> None:
        """Marks what changed; the stream's own task makes one update of all that piled up."""
        self._entries.update(entries)
        self._bundles.update(bundles)
        self._whole = self._whole or whole
        self._wake.set()

    def note_everything(self) -> None:
        self._snapshot = True
        self._wake.set()

    def note_policies(self) -> None:
        """What the agent is sent of policies may be another."""
        self.policies.note()
        self._wake.set()

    def wake(self) -> None:
        """Makes the stream look at its rights again."""
        self._wake.set()

    def supersede(self) -> None:
        self.superseded = True
        self._wake.set()

    async def wait(self, timeout_seconds: float) -> None:
        """Returns when something was noted, at the latest after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    def take(self) -> Update:
        """One update of everything noted since the last one; may be empty."""
        self._wake.clear()
        entries, self._entries = self._entries, set()
        bundles, self._bundles = self._bundles, set()
        whole, self._whole = self._whole, False
        snapshot, self._snapshot = self._snapshot, False
        if snapshot:
            return self.snapshot()
        update = self._update()
        self._put_entries(update, entries, whole)
        self._put_bundles(update, bundles)
        update.policies = self.policies.take()
        return update

    def snapshot(self) -> Update:
        """Everything that concerns this agent."""
        entries = self._feed.index.authorized(self.agent_id)
        self.known = {entry.id for entry in entries}
        self.domains = self._feed.domains(entries)
        bundles = self._feed.bundles(self.domains)
        return self._update(snapshot=True, entries=entries, bundles=bundles, policies=self._all_policies(entries))

    def resume(self, missed: Resume) -> Update:
        """What is missing since the resume token. The bundles that changed entries name go with them, in case they
        are new to the agent; what is not the agent's any more is named as removed. A bundle that did not change, and
        that no entry names any more, stays with the agent until its next snapshot."""
        entries = self._feed.index.authorized(self.agent_id)
        self.known = {entry.id for entry in entries}
        self.domains = self._feed.domains(entries)
        changed = [entry for entry in entries if entry.id in missed.entries]
        fresh = (missed.bundles & self.domains) | {domain for entry in changed for domain in entry.federates_with}
        bundles = self._feed.bundles(fresh)
        gone = missed.bundles - {bundle.trust_domain for bundle in bundles}
        lapsed = self._feed.index.lapsed(self.agent_id)  # of their end no revision tells
        removed = [(ENTRY, name) for name in sorted(missed.entries.union(lapsed) - self.known)]
        removed += [(BUNDLE, domain.name) for domain in sorted(gone)]
        policies = self._all_policies(entries)
        return self._update(entries=changed, bundles=bundles, removed=removed, policies=policies)

    def _all_policies(self, entries: Iterable[RegistrationEntry]) -> CandidateSet | None:
        """At the begin of a stream, and with each snapshot: what the agent holds of policies is not asked."""
        self.policies.begin(entries)
        return self.policies.take()

    def _update(self, **parts: Any) -> Update:
        return Update(epoch=self._feed.epoch, revision=self._feed.revision, **parts)

    def _put_entries(self, update: Update, names: set[str], whole: bool) -> None:
        if whole:
            now = {entry.id: entry for entry in self._feed.index.authorized(self.agent_id)}
            names = names | (now.keys() - self.known) | (self.known - now.keys())
            found = {name: now.get(name) for name in names}
        else:
            found = {name: self._feed.index.get(self.agent_id, name) for name in names}
        for name in sorted(found):
            entry = found[name]
            if entry is not None:
                update.entries.append(entry)
                self.known.add(name)
                self.policies.put(entry)
            elif name in self.known:
                update.removed.append((ENTRY, name))
                self.known.discard(name)
                self.policies.remove(name)

    def _put_bundles(self, update: Update, changed: set[TrustDomain]) -> None:
        wanted = self.domains
        if update.entries or update.removed:
            entries = (self._feed.index.get(self.agent_id, name) for name in self.known)
            wanted = self._feed.domains(entry for entry in entries if entry is not None)
        send = (changed & wanted) | (wanted - self.domains)
        gone = self.domains - wanted
        self.domains = wanted
        update.bundles.extend(self._feed.bundles(send))
        held = {bundle.trust_domain for bundle in update.bundles}
        update.removed.extend((BUNDLE, domain.name) for domain in sorted((send - held) | gone))


class Feed:
    """All sessions, woken by the follower; and what the agents said they applied."""

    def __init__(
        self,
        *,
        store: Store,
        index: AuthorizedIndex,
        trust: Trust,
        follower: Follower,
        clock: Clock,
        streams_per_agent: int,
        acks: Acks | None = None,
        set_of: SetOf = lambda _: None,
    ) -> None:
        """For one stream more than `streams_per_agent` the agent's oldest ends: it is the likeliest to be dead.
        `set_of` says what agents are sent of policies."""
        self.streams_per_agent = streams_per_agent
        self._store = store
        self.index = index
        self._trust = trust
        self._follower = follower
        self._clock = clock
        self._sessions: dict[SpiffeId, list[Session]] = {}
        """Of each agent the oldest first."""
        self.acks = acks or Acks()
        self.set_of = set_of
        self._missed = Missed(follower.revision)
        self.closing = False
        follower.on_applied(self._on_applied)

    @property
    def revision(self) -> int:
        return self._follower.revision

    @property
    def epoch(self) -> str:
        """Opaque to agents: the store's epoch and the mark of the last change. Of two histories that share an epoch,
        because one began in a backup of the other, it tells which one a revision belongs to."""
        return _epoch(self._store.epoch, self._follower.mark)

    @property
    def connected(self) -> int:
        """Agents with at least one stream."""
        return len(self._sessions)

    async def open(self, agent_id: SpiffeId, *, epoch: str, revision: int) -> tuple[Session, Update]:
        """A session and its first update: the missing part if (epoch, revision) can be resumed, else a snapshot."""
        await self._follower.catch_up()
        session = Session(self, agent_id)
        sessions = self._sessions.setdefault(agent_id, [])
        sessions.append(session)
        self.acks.connected.add(agent_id)
        if len(sessions) > self.streams_per_agent:
            sessions.pop(0).supersede()
        try:
            return session, await self._first(session, epoch, revision)
        except BaseException:
            self.close(session)
            raise

    def close(self, session: Session) -> None:
        sessions = self._sessions.get(session.agent_id, [])
        if session in sessions:
            sessions.remove(session)
        if not sessions:
            self._sessions.pop(session.agent_id, None)
            self.acks.connected.discard(session.agent_id)

    def drain(self) -> None:
        """Makes every stream end now: the server stops."""
        self.closing = True
        for session in self._all():
            session.wake()

    def wake(self, agent_id: SpiffeId) -> None:
        """Makes an agent's streams look at their rights again."""
        for session in self._sessions.get(agent_id, ()):
            session.wake()

    def note_policies(self) -> None:
        """Policies are others now: each stream looks whether its agent's are."""
        for session in self._all():
            session.note_policies()

    def policies_sent(self, agent_id: SpiffeId) -> int:
        """The revision that an agent was sent last, which is as good as every later one that it was not sent; 0 for one
        without a stream, or without policies."""
        return max((session.policies.revision for session in self._sessions.get(agent_id, ())), default=0)

    def policies_settled(self, agent_id: SpiffeId) -> bool:
        """Whether all that an agent needs of the newest policies was sent to it."""
        return all(session.policies.settled for session in self._sessions.get(agent_id, ()))

    def acknowledge(self, agent_id: SpiffeId, kind: str, ack: Acknowledged) -> None:
        self.acks.put(agent_id, kind, ack)

    def acknowledged(self, agent_id: SpiffeId) -> dict[str, Acknowledged]:
        """By kind; empty for an agent that never said anything to this server."""
        return dict(self.acks.of(agent_id))

    def forget(self, agent_id: SpiffeId) -> None:
        self.acks.forget(agent_id)

    def domains(self, entries: Iterable[RegistrationEntry]) -> set[TrustDomain]:
        """Trust domains whose bundles an agent with these entries needs."""
        found = {self._trust.trust_domain}
        for entry in entries:
            found.update(entry.federates_with)
        return found

    def bundles(self, domains: Iterable[TrustDomain]) -> list[TrustBundle]:
        held = (self._trust.get(domain) for domain in sorted(domains))
        return [bundle for bundle in held if bundle is not None]

    async def _first(self, session: Session, epoch: str, revision: int) -> Update:
        """Takes the session's state without awaiting after its source was read, so that nothing falls between."""
        if not 0 < revision <= self.revision or not await self._shares_history(epoch, revision):
            return session.snapshot()
        if revision >= self._missed.since:
            resume = self._missed.of(session.agent_id, revision)
        else:
            resume = await self._from_log(session.agent_id, revision)
        if resume is None:
            return session.snapshot()
        return session.resume(resume)

    async def _shares_history(self, epoch: str, revision: int) -> bool:
        """Whether the token's revision is the change that it was when the token was made."""
        if revision == self.revision and epoch == self.epoch:
            return True
        mark = await self._store.changes.mark(revision)
        return mark is not None and epoch == _epoch(self._store.epoch, mark)

    async def _from_log(self, agent_id: SpiffeId, revision: int) -> Resume | None:
        """What the log alone can tell after a restart of the server; None where it cannot and a snapshot must do."""
        try:
            changes = await self._store.changes.since(revision, RESUME_LIMIT)
        except Compacted:
            return None
        if len(changes) >= RESUME_LIMIT:
            return None
        resume = Resume()
        parents = {entry.parent_id for entry in self.index.authorized(agent_id)}
        for change in changes:
            if not self._foretell(agent_id, change, parents, resume):
                return None
        return resume

    def _foretell(self, agent_id: SpiffeId, change: Change, parents: set[SpiffeId], resume: Resume) -> bool:
        """False when the agent may hold, or lack, something that the log does not describe.

        An entry that is the agent's now is sent, unless others hang below it. One that is not, and was never updated,
        never was the agent's. One that was deleted or updated may have been: naming it could tell an agent of entries
        that do not concern it.
        """
        if change.kind == "bundle":
            resume.bundles.add(TrustDomain(change.name))
            return True
        if change.kind == "agent":
            return change.name != str(agent_id)
        if change.kind == "policy":
            return True  # what an agent is sent of policies is looked at in any case
        entry = self.index.get(agent_id, change.name)
        if entry is not None:
            resume.entries.add(change.name)
            return entry.spiffe_id not in parents
        stranger = self.index.entry(change.name)
        return stranger is not None and stranger.revision_number == 0

    def _on_applied(self, applied: Applied) -> None:
        if applied.everything:
            self._missed = Missed(applied.revision)
            for session in self._all():
                session.note_everything()
            return
        self._missed.add(applied)
        for name, agents in applied.entries.items():
            for agent_id in agents:
                for session in self._sessions.get(agent_id, ()):
                    session.note(entries=(name,))
        for agent_id in applied.whole:
            for session in self._sessions.get(agent_id, ()):
                session.note(whole=True)
        for agent_id in applied.agents:
            self.wake(agent_id)
        self._note_bundles(applied.bundles)

    def _note_bundles(self, domains: set[TrustDomain]) -> None:
        if not domains:
            return
        for session in self._all():
            if domains & session.domains:
                session.note(bundles=domains)

    def _all(self) -> list[Session]:
        return [session for sessions in self._sessions.values() for session in sessions]
