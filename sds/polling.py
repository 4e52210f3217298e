"""Following a server that does not push, such as SPIRE's: it is asked every few seconds, and what differs is fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import grpc

from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock
from sds.backoff import Backoff
from sds.feed import Change, Feed, ResumeToken, Snapshot
from sds.first_trust import ServerTrust
from sds.poll_bundles import read_bundles
from sds.poll_entries import EntryPoll

INTERVAL_SECONDS = 5.0
JITTER = 0.1
"""The rhythm of SPIRE's agents: servers are sized for it."""

FACTOR = 1.5
RETRY_CAP_SECONDS = 15.0
"""Longest pause after failures: with the dial, an agent is in step well within half a minute of a server's return."""

PUSH_RETRY_SECONDS = 600.0
"""How long to poll before the push service is asked for again: the server may have been replaced by a newer one."""


@dataclass(frozen=True, slots=True)
class World:
    """What a server said at one time: entries by id, bundles by trust domain."""

    entries: Mapping[str, RegistrationEntry]
    bundles: Mapping[TrustDomain, TrustBundle]


def difference(before: World, now: World, token: ResumeToken) -> Change:
    """What leads from one to the other."""
    return Change(
        token=token,
        entries=tuple(entry for i, entry in now.entries.items() if before.entries.get(i) is not entry),
        bundles=tuple(bundle for domain, bundle in now.bundles.items() if before.bundles.get(domain) != bundle),
        removed_entries=tuple(before.entries.keys() - now.entries.keys()),
        removed_bundles=tuple(before.bundles.keys() - now.bundles.keys()),
    )


class Poller:
    """What was polled so far; `run` goes on from there. One for the life of the agent."""

    def __init__(
        self, *, clock: Clock, feed: Feed, trust: ServerTrust, jitter: Callable[[], float], synced: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._feed = feed
        self._trust = trust
        self._jitter = jitter
        self._synced = synced
        self._entries = EntryPoll(trust.trust_domain)
        self._fed: World | None = None
        self.backoff = Backoff(jitter, first_seconds=INTERVAL_SECONDS * FACTOR, factor=FACTOR, spread=JITTER)
        self.live = False

    def acknowledge(self) -> None:
        """Nobody to tell: SPIRE's servers do not ask how far their agents' consumers are."""

    def retry_seconds(self) -> float:
        """How long to wait after a failure."""
        return self.backoff.next(RETRY_CAP_SECONDS)

    def forget(self) -> None:
        """The feed has heard from elsewhere, or has not taken something over: begin anew with a snapshot."""
        self._fed = None

    async def run(self, channel: grpc.aio.Channel, connection: Callable[[], int]) -> None:
        """Poll until it is time to ask for the push service again: after ten minutes, or on another `connection`.

        Raises what a poll or the feed failed with.
        """
        began = connection()
        until = self._clock.monotonic() + self._spread(PUSH_RETRY_SECONDS)
        self._entries.whole = False
        try:
            while self._clock.monotonic() < until:
                await self.poll(channel)
                self.live = True
                self.backoff.reset()
                self._synced()
                if connection() != began:
                    return
                await self._clock.sleep(self._spread(INTERVAL_SECONDS))
        finally:
            self.live = False

    async def poll(self, channel: grpc.aio.Channel) -> None:
        """Ask once, and feed what differs; when nothing does, the feed still learns that it is in step."""
        # Entries first, bundles second: what an entry federates with is then there together with the entry.
        entries = await self._entries.refresh(channel)
        bundles = await read_bundles(channel, self._trust.trust_domain, entries.values())
        self._trust.update(bundles[self._trust.trust_domain])
        before, self._fed = self._fed, None  # should the feed fail, it gets everything anew
        self._hand_over(before, World(entries, bundles))

    def _hand_over(self, before: World | None, world: World) -> None:
        if before is None:
            entries, bundles = tuple(world.entries.values()), tuple(world.bundles.values())
            self._feed.on_snapshot(Snapshot(token=self._next_token(), entries=entries, bundles=bundles))
        else:
            news = difference(before, world, self._feed.token)
            self._feed.on_change(news if news.empty else replace(news, token=self._next_token()))
        self._fed = world

    def _next_token(self) -> ResumeToken:
        """Counted here. Without an epoch, so that a server that pushes begins with a snapshot."""
        return ResumeToken("", self._feed.token.revision + 1)

    def _spread(self, seconds: float) -> float:
        return seconds * (1 + JITTER * self._jitter())
