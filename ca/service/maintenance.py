"""Forgets what is over: expired join tokens, old issuance records, the tail of the change log."""

from __future__ import annotations

from ca.ports import Clock
from ca.runtime import log
from ca.store.store import Store

logger = log.get("maintenance")

FIRST_SECONDS = 60.0
EVERY_SECONDS = 600.0
KEEP_CHANGES = 100_000
"""Changes that a sleeping agent or replica may miss and still resume; older ones cost it a snapshot."""


class Maintenance:
    """One pass every ten minutes; each part is small and may fail without the others."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        await self._clock.sleep(FIRST_SECONDS)
        while True:
            await self.once()
            await self._clock.sleep(EVERY_SECONDS)

    async def once(self) -> None:
        now = self._clock.now()
        tokens = await self._store.tokens.prune(now)
        records = await self._store.issuance.prune(now)
        changes = await self._store.changes.compact(KEEP_CHANGES)
        if tokens or records or changes:
            logger.info("forgot what is over", join_tokens=tokens, issuance_batches=records, changes=changes)
