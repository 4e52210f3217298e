"""Keys that no authority refers to: a server that was killed had made them, or had just forgotten their authority."""

from __future__ import annotations

import re

from ca.ports import Clock, KeyManager
from ca.runtime import log
from ca.store.store import Store

logger = log.get("authority")

SETTLED_SECONDS = 600.0
"""After the start: whatever the start itself does with keys is over by then."""

_NAMED_BY_US = re.compile(r"[a-z0-9]{1,16}-[0-9a-f]{16}")


class LeftoverKeys:
    """For a key manager that no other server uses: what is nobody's here would there be somebody's.

    Only keys are deleted that were there before this process made its first, so that none is taken for left over
    which is about to get its authority; and only those with names as authorities' keys have.
    """

    def __init__(self, *, keys: KeyManager, store: Store, clock: Clock) -> None:
        self._keys = keys
        self._store = store
        self._clock = clock
        self._found: frozenset[str] = frozenset()

    async def note(self) -> None:
        """What is there now; before the authorities start."""
        self._found = frozenset(key_id for key_id in await self._keys.list() if _NAMED_BY_US.fullmatch(key_id))

    async def run(self) -> None:
        """Once, when the start has settled."""
        await self._clock.sleep(SETTLED_SECONDS)
        await self.dispose()

    async def dispose(self) -> list[str]:
        """Deletes those noted that no authority of any server names, and returns them. Raises Unavailable."""
        named = {authority.key_id for authority in await self._store.authorities.list()}
        gone = sorted(self._found - named)
        for key_id in gone:
            await self._keys.delete(key_id)
            logger.info("key that no authority has was deleted", key_id=key_id, reason="KEY_LEFT_OVER")
        self._found = frozenset()
        return gone
