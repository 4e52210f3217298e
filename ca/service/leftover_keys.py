"""Keys that no authority refers to: a server that was killed had made them, or had just forgotten their authority."""

from __future__ import annotations

import re
from datetime import timedelta

from ca.ports import Clock, Dated, KeyManager
from ca.runtime import log
from ca.store.store import Store

logger = log.get("authority")

SETTLED_SECONDS = 600.0
"""After the start: whatever the start itself does with keys is over by then."""

EVERY_SECONDS = 86_400.0
"""Those that were too young are looked at again."""

LAPSED = timedelta(days=7)

_NAMED_BY_US = re.compile(r"[a-z0-9]{1,16}-[0-9a-f]{16}")


def leftover_keys(
    keys: KeyManager, *, own: bool, store: Store, clock: Clock, ca_ttl_seconds: int
) -> LeftoverKeys | None:
    """For keys that lie where no other server can have any (`own`), or that have a date.

    What lies elsewhere is reached, too, by a copy of this server that somebody restored from a backup, under the same
    name and with an older store: there keys go only when whatever they signed has lapsed. Else None: they stay.
    """
    if own:
        return LeftoverKeys(keys=keys, store=store, clock=clock)
    if isinstance(keys, Dated):
        older_than = timedelta(seconds=2 * ca_ttl_seconds) + LAPSED
        return LeftoverKeys(keys=keys, store=store, clock=clock, older_than=older_than)
    return None


class LeftoverKeys:
    """What is nobody's key here must be no other server's.

    Only keys are deleted that were there before this process made its first, so that none is taken for left over
    which is about to get its authority; only those with names as authorities' keys have; and with `older_than` only
    those that are known to be so old. While the store names none of them it is taken for another one, which somebody
    configured by mistake: then all stay.
    """

    def __init__(self, *, keys: KeyManager, store: Store, clock: Clock, older_than: timedelta | None = None) -> None:
        self._keys = keys
        self._older_than = older_than
        self._store = store
        self._clock = clock
        self._found: frozenset[str] = frozenset()
        self._is_our_store = False

    async def note(self) -> None:
        """What is there now; before the authorities start."""
        self._found = frozenset(key_id for key_id in await self._keys.list() if _NAMED_BY_US.fullmatch(key_id))

    async def run(self) -> None:
        """When the start has settled, and again until none is left that could go."""
        await self._clock.sleep(SETTLED_SECONDS)
        await self.dispose()
        while self._found:
            await self._clock.sleep(EVERY_SECONDS)
            await self.dispose()

    async def dispose(self) -> list[str]:
        """Deletes those noted that no authority of any server names, and returns them. Raises Unavailable."""
        named = {authority.key_id for authority in await self._store.authorities.list()}
        self._is_our_store = self._is_our_store or not self._found.isdisjoint(named)
        if not self._is_our_store:
            return []
        self._found -= named
        gone: list[str] = []
        for key_id in sorted(self._found):
            if await self._is_young(key_id):
                continue
            await self._keys.delete(key_id)
            logger.info("key that no authority has was deleted", key_id=key_id, reason="KEY_LEFT_OVER")
            gone.append(key_id)
        self._found -= frozenset(gone)
        return gone

    async def _is_young(self, key_id: str) -> bool:
        if self._older_than is None:
            return False
        made = await self._keys.made_at(key_id) if isinstance(self._keys, Dated) else None
        return made is None or self._clock.now() - made < self._older_than
