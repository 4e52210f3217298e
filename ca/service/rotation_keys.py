"""Private keys of this server's authorities: found by what the journal says, deleted when nothing needs them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ca.authority.journal import Journal, KeyNote
from ca.authority.state import Authority, AuthorityKind
from ca.errors import BurgeeError, FailedPrecondition
from ca.ports import Clock, KeyManager, Signer
from ca.runtime import log
from ca.service.rotation_journal import JournalKeeper

logger = log.get("authority")


class AuthorityKeys:
    """`signers` are the keys at hand, by id. What the journal does not name is left alone: it is somebody else's."""

    def __init__(self, *, keys: KeyManager, journal: JournalKeeper, clock: Clock) -> None:
        self._keys = keys
        self._journal = journal
        self._clock = clock
        self._making: dict[AuthorityKind, str] = {}
        self.signers: dict[str, Signer] = {}

    def is_making(self, kind: AuthorityKind) -> bool:
        return kind in self._making

    async def signer(self, authority: Authority) -> Signer | None:
        """None when the key manager has it no more. Raises Unavailable."""
        known = self.signers.get(authority.key_id)
        if known is None:
            known = await self._keys.get(authority.key_id)
            if known is not None:
                self.signers[authority.key_id] = known
        return known

    @contextmanager
    def new(self, kinds: Sequence[AuthorityKind]) -> Iterator[dict[AuthorityKind, str]]:
        """Ids for keys of these kinds; nobody else in this process makes one of them meanwhile.

        Raises FailedPrecondition (AUTHORITY_STATE) while somebody does.
        """
        for kind in kinds:
            if kind in self._making:
                raise FailedPrecondition(
                    f"another {kind} authority is being prepared right now",
                    reason="AUTHORITY_STATE",
                    hint="see `caadmin ca status`",
                )
        made = {kind: f"{kind}-{secrets.token_hex(8)}" for kind in kinds}
        self._making |= made
        try:
            yield made
        finally:
            for kind in made:
                del self._making[kind]

    async def note(self, key_ids: dict[AuthorityKind, str]) -> None:
        """Writes down that these keys are about to be made."""
        server, now = self._journal.server, self._clock.now()
        notes = tuple(KeyNote(server=server, key_id=key, kind=kind, since=now) for kind, key in key_ids.items())
        await self._journal.change(lambda fresh: replace(fresh, keys=(*fresh.keys, *notes)))

    async def sweep(self, kinds: Iterable[AuthorityKind]) -> None:
        """Deletes keys that belong to no authority; what cannot be deleted now is tried again with the next sweep."""
        wanted, busy = set(kinds), set(self._making.values())
        gone = []
        for note in self._journal.journal.keys:
            ours = note.server == self._journal.server and note.kind in wanted
            if ours and note.key_id not in busy and await self._deleted(note):
                gone.append(note)
        if gone:
            await self._journal.change(lambda fresh: _without(fresh, gone))

    async def _deleted(self, note: KeyNote) -> bool:
        try:
            await self._keys.delete(note.key_id)
        except BurgeeError as error:
            logger.warning("key cannot be deleted now", key_id=note.key_id, reason=error.reason, detail=error.detail)
            return False
        self.signers.pop(note.key_id, None)
        return True


def _without(journal: Journal, gone: Sequence[KeyNote]) -> Journal:
    return replace(journal, keys=tuple(note for note in journal.keys if note not in gone))
