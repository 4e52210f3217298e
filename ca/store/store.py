"""The store as the server sees it: opened once, one attribute per noun."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from ca.errors import FailedPrecondition
from ca.ports import Clock
from ca.store.agents import Agents, read_all_agents
from ca.store.audit import AuditLog
from ca.store.authorities import Authorities
from ca.store.bundles import Bundles, read_all_bundles
from ca.store.changes import ChangeLog, read_mark
from ca.store.database import Database, parse_url, unavailable
from ca.store.entries import Entries, read_all_entries
from ca.store.issuance import IssuanceLog
from ca.store.issuance_tail import IssuanceTail
from ca.store.lock import DatabaseLock
from ca.store.migrate import migrate
from ca.store.policies import Policies
from ca.store.policy_revisions import PolicyRevisions
from ca.store.prune import Pruning
from ca.store.tables import store as store_table
from ca.store.tokens import Tokens
from ca.store.used_evidence import UsedEvidence
from ca.store.values import Snapshot


class Store:
    """Made by `Store.open`; `close` it on the loop that opened it."""

    def __init__(
        self, database: Database, lock: DatabaseLock | None, epoch: str, token_id_key: bytes, clock: Clock
    ) -> None:
        self._database = database
        self._lock = lock
        self.epoch = epoch
        """Random, made with the store: revisions of another epoch mean nothing here. Agents hold it with a mark."""
        self.entries = Entries(database, clock)
        self.agents = Agents(database)
        self.tokens = Tokens(database, clock, token_id_key)
        self.evidence = UsedEvidence(database)
        self.bundles = Bundles(database)
        self.authorities = Authorities(database)
        self.issuance = IssuanceLog(database, clock)
        self.audit = AuditLog(database)
        self.issuance_tail = IssuanceTail(database)
        self.pruning = Pruning(database)
        self.policies = Policies(database)
        self.policy_revisions = PolicyRevisions(database)
        self.changes = ChangeLog(database, epoch)

    @classmethod
    async def open(cls, url: str, *, clock: Clock, known: bool = False) -> Store:
        """Connect, migrate to the newest schema and start watching for changes.

        `url`: `sqlite:///path` (locked against a second server) or `postgresql://…`. Raises ConfigError for a
        url that cannot work, FailedPrecondition STORE_LOCKED or STORE_NEWER, Unavailable when the database cannot be
        reached or is damaged. A `known` store has been here before: STORE_LOST when its file is gone.
        """
        parsed = parse_url(url)
        if known and parsed.get_backend_name() == "sqlite":
            _refuse_lost(Path(parsed.database or ""))
        database = Database(parsed)
        lock = None
        try:
            if database.backend == "sqlite":
                lock = DatabaseLock(Path(parsed.database or ""))
            store = cls(database, lock, *await _prepare(database), clock)
            database.place.opened()
            await store.changes.start()
            return store
        except BaseException:
            await database.close()
            if lock is not None:
                lock.release()
            raise

    async def snapshot(self) -> Snapshot:
        """All that is watched, with the revision it stands at, read in one transaction."""
        async with self._database.read() as connection:
            revision = (await connection.execute(select(store_table.c.revision))).scalar_one()
            return Snapshot(
                revision=revision,
                entries=tuple(await read_all_entries(connection)),
                agents=tuple(await read_all_agents(connection)),
                bundles=tuple(await read_all_bundles(connection)),
                mark=await read_mark(connection, revision) or "",
            )

    @property
    def unwritable(self) -> bool:
        """Whether the last write failed for a reason of the database's own."""
        return self._database.unwritable

    async def check_writable(self) -> None:
        """After a write that failed, tries one that changes nothing. Raises Unavailable while it fails too, and where
        the store's file was removed or replaced: nothing is written then."""
        await asyncio.to_thread(self._database.place.look)
        if self._database.unwritable:
            await self._database.try_write()

    async def close(self) -> None:
        """Waits for writes under way, then lets go of the database and its lock. Idempotent."""
        await self.changes.close()
        await self.issuance.close()
        await self._database.close()
        if self._lock is not None:
            self._lock.release()


def _refuse_lost(path: Path) -> None:
    """A server without its store would make another authority, which nobody trusts."""
    if not path.exists() or not path.stat().st_size:
        raise FailedPrecondition(
            f"the store `{path}` is gone, and it is not this server's first start",
            reason="STORE_LOST",
            hint="restore it from a backup; to begin anew, with an authority that nobody trusts yet, move the whole "
            "`data_dir` away",
        )


async def _prepare(database: Database) -> tuple[str, bytes]:
    """Migrate, make the one row of the store if it is new, and return (epoch, key of token IDs)."""
    first = {
        "id": 1,
        "epoch": secrets.token_hex(16),
        "revision": 0,
        "compacted": 0,
        "token_id_key": secrets.token_bytes(32),
    }
    dialect = postgresql if database.backend == "postgresql" else sqlite
    with unavailable():
        async with database.engine.connect() as connection:
            await connection.execution_options(burgee_begin="BEGIN IMMEDIATE")
            async with connection.begin():
                await connection.run_sync(migrate)
                await connection.execute(dialect.insert(store_table).values(first).on_conflict_do_nothing())
                row = (await connection.execute(select(store_table.c.epoch, store_table.c.token_id_key))).one()
                return str(row.epoch), bytes(row.token_id_key)
