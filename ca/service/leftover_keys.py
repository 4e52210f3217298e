"""Keys that no authority refers to: a server that was killed had made them, or had just forgotten their authority."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

from ca.ports import Clock, Dated, KeyManager
from ca.runtime import log
from ca.runtime.files import atomic_write
from ca.store.store import Store

logger = log.get("authority")

SETTLED_SECONDS = 600.0
"""After the start: whatever the start itself does with keys is over by then."""

EVERY_SECONDS = 86_400.0
"""Those that were too young are looked at again."""

STORE_EPOCH = "store-epoch"
"""Beside the server's name."""

LAPSED = timedelta(days=7)

_NAMED_BY_US = re.compile(r"[a-z0-9]{1,16}-[0-9a-f]{16}")


def leftover_keys(
    keys: KeyManager, *, own: bool, store: Store, clock: Clock, ca_ttl_seconds: int
) -> LeftoverKeys | None:
    """For keys with a date that lie where no other server has any: in the data directory (`own`), or remote under this
    server's name. Else None: they stay.

    Whoever restored an older store, here or in a copy of this server, has keys that it does not name and that the newer
    one would need again: so keys go only when whatever they signed has lapsed.
    """
    if not isinstance(keys, Dated) or not (own or keys.remote):
        return None
    older_than = timedelta(seconds=2 * ca_ttl_seconds) + LAPSED
    return LeftoverKeys(keys=keys, store=store, clock=clock, older_than=older_than)


def is_known_store(data_dir: Path, epoch: str) -> bool:
    """Whether this data directory's server has always had the store of this epoch; the first one is noted.

    With another store, which somebody configured by mistake, keys that the right one names look left over.
    """
    path = data_dir / STORE_EPOCH
    if not path.exists():
        atomic_write(path, f"{epoch}\n".encode())
    if path.read_bytes().strip() == epoch.encode():
        return True
    logger.warning(
        "this is not the store that the server had before: no key is taken for left over",
        reason="STORE_OTHER",
        file=str(path),
        hint="is `store.url` right? if the store was replaced on purpose, remove the file and start again",
    )
    return False


class LeftoverKeys:
    """What is nobody's key here must be no other server's.

    Only keys are deleted that were there before this process made its first, so that none is taken for left over
    which is about to get its authority; only those with names as authorities' keys have; and only those that are known
    to be older than `older_than`. While the store names none of them it is taken for another one, which somebody
    configured by mistake: then all stay.
    """

    def __init__(self, *, keys: KeyManager, store: Store, clock: Clock, older_than: timedelta) -> None:
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
        made = await self._keys.made_at(key_id) if isinstance(self._keys, Dated) else None
        return made is None or self._clock.now() - made < self._older_than
