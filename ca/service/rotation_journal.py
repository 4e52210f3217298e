"""The journal of authorities in memory, as it was last read, and the one way to change it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ca.authority.bundling import bundled
from ca.authority.journal import Journal
from ca.authority.state import Authority, of_server
from ca.identity.bundle import TrustBundle
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock
from ca.service.authority_values import from_records, to_records
from ca.service.follower import Follower
from ca.store.store import Store
from ca.store.values import JournalRecords

Decision = Callable[[Journal], Journal]


class JournalKeeper:
    """`journal` is what the store last said; `on_change` hears of each difference. `server` is whose authorities are
    `own`."""

    def __init__(
        self, *, store: Store, follower: Follower, trust_domain: TrustDomain, server: str, clock: Clock
    ) -> None:
        self._store = store
        self._follower = follower
        self._trust_domain = trust_domain
        self._clock = clock
        self._lock = asyncio.Lock()
        self.server = server
        self.journal = Journal()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def own(self) -> tuple[Authority, ...]:
        """This server's authorities of both kinds."""
        return of_server(self.journal.authorities, self.server)

    async def read(self) -> Journal:
        async with self._lock:
            self._take(await self._store.authorities.read())
        return self.journal

    async def change(self, decide: Decision) -> Journal:
        """What `decide` makes of the journal as it stands in the store, and of the bundle with it, in one transaction.

        `decide` may raise, and then nothing has changed. Afterwards this process's own view of the bundle shows it.
        """

        def work(records: JournalRecords, bundle: TrustBundle) -> tuple[JournalRecords, TrustBundle]:
            before = from_records(records)
            after = decide(before)
            return to_records(after), bundled(bundle, before, after, now=self._clock.now())

        async with self._lock:  # so that memory follows in the order of the commits
            self._take(await self._store.authorities.alter(self._trust_domain, work))
        await self._follower.catch_up()
        return self.journal

    def _take(self, records: JournalRecords) -> None:
        journal = from_records(records)
        if journal != self.journal:
            self.journal = journal
            self.on_change()
