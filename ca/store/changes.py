"""The change log: what happened after a revision, and being told when something does.

Readers keep a revision and ask `since`; a revision is visible only together with all lower ones, because each is
handed out under the lock that the commit releases.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from sqlalchemy import Integer, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ca.errors import Unavailable
from ca.runtime import log
from ca.store import tables
from ca.store.database import Database, WriteTransaction
from ca.store.values import Change, Compacted

Subscriber = Callable[[Sequence[Change]], None]

POLL_SECONDS = 1.0
"""How often a server asks PostgreSQL whether another one wrote. SQLite has no other one, and nothing polls."""

_PAGE = 5_000
_REMEMBERED = 1_000
_STATE = select(tables.store)
_AFTER = (
    select(tables.changes)
    .where(tables.changes.c.revision > bindparam("after"))
    .order_by(tables.changes.c.revision)
    .limit(bindparam("most", type_=Integer))
)
_log = log.get("store")


class ChangeLog:
    """The log and its subscribers in this process."""

    def __init__(self, database: Database, epoch: str) -> None:
        self._database = database
        self.epoch = epoch
        self._alone = database.backend == "sqlite"
        self._seen = 0  # everything up to here was given to the subscribers
        self._recent: deque[Change] = deque(maxlen=_REMEMBERED)  # the last of them
        self._doubts = self._settled = 0  # commits that nobody was told of yet, and those of them looked for since
        self._subscribers: list[Subscriber] = []
        self._delivery = asyncio.Lock()
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        database.after_commit = self._deliver
        database.commit_uncertain = lambda: self._spawn_catch_up()

    async def start(self) -> None:
        """Begin to watch; called once by the store."""
        self._seen = await self.revision()
        if self._database.backend == "postgresql":
            self._keep(asyncio.create_task(self._poll(), name="store-change-poll"))

    async def revision(self) -> int:
        """The revision of the last committed change; 0 for a store that never changed."""
        async with self._database.read() as connection:
            return int((await connection.execute(select(tables.store.c.revision))).scalar_one())

    async def mark(self, revision: int) -> str | None:
        """The mark of a change; None when its row is not there (any more)."""
        async with self._database.read() as connection:
            return await read_mark(connection, revision)

    async def since(self, revision: int, limit: int = _PAGE) -> list[Change]:
        """At most `limit` changes after `revision`, oldest first; empty when there are none.

        Raises Compacted when changes after `revision` were compacted away, and when `revision` has not happened
        yet in this store (it then comes from before a restored backup). What was committed here, where nobody else
        writes, is not read back; `catch_up` looks whatever the case.
        """
        known = self._known_after(revision)
        return await self._read(revision, limit) if known is None else known[:limit]

    def is_newest(self, revision: int) -> bool:
        """Whether nothing follows this one, for sure: nobody else writes, and what was written here was told."""
        return self._alone and self._settled == self._doubts and revision == self._seen

    def _known_after(self, revision: int) -> list[Change] | None:
        """None where only the database knows."""
        if not self.is_newest(self._seen) or not 0 <= (missing := self._seen - revision) <= len(self._recent):
            return None
        return [self._recent[at] for at in range(-missing, 0)]

    async def _read(self, revision: int, limit: int) -> list[Change]:
        async with self._database.read() as connection:
            state = (await connection.execute(_STATE)).one()
            if not state.compacted <= revision <= state.revision:
                raise Compacted(f"revision {revision} is not in the change log", hint="read a snapshot")
            if revision == state.revision:
                return []
            rows = await connection.execute(_AFTER, {"after": revision, "most": limit})
            return [Change(row.revision, row.kind, row.name, row.deleted, row.mark) for row in rows]

    async def compact(self, keep: int) -> int:
        """Forget all but the last `keep` changes; returns how many went."""

        async def work(transaction: WriteTransaction) -> int:
            state = (await transaction.connection.execute(select(tables.store))).one()
            last = state.revision - keep
            if last <= state.compacted:
                return 0
            # The last of them stays for its mark: who stands exactly there may still go on.
            await transaction.connection.execute(delete(tables.changes).where(tables.changes.c.revision < last))
            await transaction.connection.execute(update(tables.store).values(compacted=last))
            return int(last - state.compacted)

        gone = await self._database.write(work)
        self._recent.clear()
        return gone

    async def count_beyond(self, keep: int) -> int:
        """How many changes `compact` would forget."""
        async with self._database.read() as connection:
            state = (await connection.execute(select(tables.store))).one()
            return max(0, int(state.revision - keep - state.compacted))

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Have `subscriber` called on the event loop after each commit, in order of revision; returns the way out.

        It must not block; what it raises goes to the loop's exception handler and stops nobody.
        """
        self._subscribers.append(subscriber)

        def leave() -> None:
            with suppress(ValueError):
                self._subscribers.remove(subscriber)

        return leave

    async def wait(self, after_revision: int) -> int:
        """Sleep until a revision above `after_revision` is known here, and return the highest known."""
        while self._seen <= after_revision:
            await self._moved.wait()
        return self._seen

    async def catch_up(self) -> int:
        """Deliver what other processes committed meanwhile; returns the highest revision delivered."""
        async with self._delivery:
            await self._read_on()
        return self._seen

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self, changes: list[Change]) -> None:
        async with self._delivery:
            if changes[0].revision == self._seen + 1:
                self._emit(changes)
            elif changes[-1].revision > self._seen:
                # Another server wrote in between, or an earlier commit here was never reported.
                try:
                    await self._read_on()
                except Unavailable:
                    self._spawn_catch_up()  # our write stands; only the news of it is late

    async def _read_on(self) -> None:
        try:
            while changes := await self._read(self._seen, _PAGE):
                self._emit(changes)
        except Compacted:
            self._emit([Change(await self.revision(), "reset", "")])
            self._recent.clear()

    def _emit(self, changes: Sequence[Change]) -> None:
        self._seen = changes[-1].revision
        self._recent.extend(changes)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(changes)
            except Exception as error:
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a subscriber of the change log failed", "exception": error}
                )

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self._survives(self._look)  # what failed is tried again in a second

    def _spawn_catch_up(self) -> None:
        self._doubts += 1
        self._keep(asyncio.create_task(self._catch_up_later(), name="store-change-catch-up"))

    async def _catch_up_later(self) -> None:
        while True:
            doubts = self._doubts
            if await self._survives(self.catch_up):
                self._settled = max(self._settled, doubts)
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        if await self.revision() != self._seen:
            await self.catch_up()

    async def _survives(self, step: Callable[[], Awaitable[object]]) -> bool:
        """Whatever goes wrong must not end the watching: a server that hears of no ban any more lets the banned in."""
        try:
            await step()
        except Unavailable:
            return False  # reads and writes report it meanwhile
        except Exception as error:
            _log.error("cannot read the change log", reason="CHANGES_UNREADABLE", exc_info=error)
            return False
        return True

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def read_mark(connection: AsyncConnection, revision: int) -> str | None:
    """The mark of the change with this revision, if its row is there."""
    query = select(tables.changes.c.mark).where(tables.changes.c.revision == revision)
    mark = (await connection.execute(query)).scalar_one_or_none()
    return None if mark is None else str(mark)
