"""Whether the store can be reached: asked every few seconds, since readiness must not wait for a call to fail."""

from __future__ import annotations

from ca.errors import BurgeeError
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.health import Problem
from ca.service.follower import Follower
from ca.store.store import Store

logger = log.get("store-watch")

EVERY_SECONDS = 5.0
LATE_SECONDS = 30.0
"""Without an answer for so long the store counts as lost although nobody said so."""


class StoreWatch:
    """`agreed_at` is when memory was last known to show all that the store holds (monotonic seconds)."""

    def __init__(self, *, store: Store, follower: Follower, clock: Clock) -> None:
        self._store = store
        self._follower = follower
        self._clock = clock
        self._failure: BurgeeError | None = None
        self.agreed_at = clock.monotonic()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(EVERY_SECONDS)
            await self.ask()

    async def ask(self) -> None:
        """Catches up with the change log once, writes where writing failed, and remembers the outcome."""
        try:
            await self._store.changes.catch_up()
            await self._follower.catch_up()
            await self._store.check_writable()
        except BurgeeError as error:
            if self._failure is None:
                logger.warning("store cannot be reached", reason=error.reason, detail=error.detail)
            self._failure = error
        else:
            if self._failure is not None:
                logger.info("store is there again")
            self._failure = None
            self.agreed_at = self._clock.monotonic()

    def check(self) -> Problem | None:
        """For ca.runtime.health."""
        if self._failure is not None:
            reason = self._failure.reason if self._failure.reason.startswith("STORE_") else "STORE_UNAVAILABLE"
            return Problem(reason=reason, detail=self._failure.detail, hint="no SVID is issued without a record")
        if self._store.unwritable:
            return Problem(
                reason="STORE_UNAVAILABLE",
                detail="the last write of the store failed",
                hint="no SVID is issued without a record; is the disk full, or a backup holding the lock?",
            )
        silent = self._clock.monotonic() - self.agreed_at
        if silent > LATE_SECONDS:
            return Problem(reason="STORE_UNAVAILABLE", detail=f"the store has not answered for {silent:.0f} seconds")
        return None
