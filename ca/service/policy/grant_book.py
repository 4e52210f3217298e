"""Grants and invariants: what holds of the book itself, and what an admin alone reads and writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Sequence
from dataclasses import replace

from ca.errors import AlreadyExists, Exhausted, InvalidArgument, NotFound
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.runtime.threads import to_thread
from ca.service.policy import gate
from ca.service.policy.answers import Answers
from ca.service.policy.grant_effect import effect
from ca.service.policy.grants import Rights, check_grant
from ca.service.policy.held import Held
from ca.service.policy.records import MAX_LINES, Author, diff, record
from ca.service.policy.refusals import changed, forbidden
from ca.store.audit import MAX_TEXT, AuditItem, AuditRecord
from ca.store.policies import Answer, Moved
from ca.store.policy_rows import with_etag
from ca.store.store import Store
from policy.book_values import Grant, Role
from policy.problems import shown

MAX_INVARIANTS_BYTES = 256 << 10


class GrantBook:
    """Each write looks at what is in force, and the store whether it still is."""

    def __init__(self, *, store: Store, held: Held, clock: Clock, server: str) -> None:
        self._store = store
        self._held = held
        self._clock = clock
        self._server = server
        self._answers = Answers(store=store, clock=clock)

    def all(self, rights: Rights) -> tuple[Grant, ...]:
        """By name. Raises Denied."""
        _require_admin(rights, "read grants")
        return tuple(grant for _, grant in sorted(self._held.grants.items()))

    def get(self, name: str, rights: Rights) -> Grant:
        """Raises Denied, NotFound."""
        _require_admin(rights, "read grants")
        return self._existing(name)

    async def write(
        self,
        grant: Grant,
        author: Author,
        rights: Rights,
        *,
        if_match: str | None,
        must_be_new: bool,
        idempotency_key: str = "",
    ) -> Grant:
        """See PolicyBook.write_grant."""
        _require_admin(rights, "write grants")
        check_grant(grant, root_namespace=self._held.settings.mesh.root_namespace)
        made = with_etag(grant)
        request = _digest("put a grant", made.name, made.etag, if_match, must_be_new)
        answer = self._answers.asked(author, idempotency_key, request)

        async def work() -> Grant:
            before = self._held.grants.get(grant.name)
            if before is not None and must_be_new:
                raise AlreadyExists(f"there is a grant {shown(grant.name)} already", reason="GRANT_EXISTS")
            if if_match is not None and (before is None or before.etag != if_match):
                raise changed(f"grant {shown(grant.name)}")
            most = self._held.settings.limits.max_grants
            if before is None and len(self._held.grants) >= most:
                raise Exhausted(f"there are {most:,} grants, and no more may be", reason="GRANTS_FULL")
            if made == before:
                await self._answers.remember(answer)
                return made
            told = self._record(author, made.name, diff(_line(before), _line(made)))
            put = self._store.policies.put_grant(made, before=before, record=told, answer=answer)
            await _unless_moved(put, f"grant {shown(grant.name)}")
            self._held.grants = {**self._held.grants, made.name: made}
            return made

        async with self._held.lock:
            return await self._answers.once(answer, work, lambda _: made)

    async def delete(
        self, name: str, author: Author, rights: Rights, *, if_match: str | None, idempotency_key: str = ""
    ) -> Grant:
        """See PolicyBook.delete_grant."""
        _require_admin(rights, "write grants")
        asked = self._answers.asked(author, idempotency_key, _digest("delete a grant", name, if_match))

        async def work() -> Grant:
            before = self._existing(name)
            if if_match is not None and before.etag != if_match:
                raise changed(f"grant {shown(name)}")
            answer = None if asked is None else replace(asked, told=_told(before))
            told = self._record(author, name, diff(_line(before), []))
            gone = self._store.policies.delete_grant(before, record=told, answer=answer)
            await _unless_moved(gone, f"grant {shown(name)}")
            self._held.grants = {key: grant for key, grant in self._held.grants.items() if key != name}
            return before

        async with self._held.lock:
            return await self._answers.once(asked, work, lambda known: _grant(known.told))

    def rehearse(
        self, name: str, after: Grant | None, rights: Rights, *, caller: str, admins: frozenset[SpiffeId]
    ) -> tuple[Grant, tuple[str, ...]]:
        """See PolicyBook.rehearse_grant."""
        _require_admin(rights, "write grants")
        root = self._held.settings.mesh.root_namespace
        if after is not None:
            check_grant(after, root_namespace=root)
        before = self._existing(name) if after is None else self._held.grants.get(name)
        others = (grant for key, grant in self._held.grants.items() if key != name)
        told = effect(before, after, others, caller=caller, admins=admins, root_namespace=root)
        return (self._existing(name) if after is None else with_etag(after)), told

    def invariants(self, rights: Rights) -> tuple[str, str]:
        """(text, etag). Raises Denied."""
        _require_admin(rights, "read invariants")
        return self._held.invariants, etag_of_text(self._held.invariants)

    async def set_invariants(
        self,
        text: str,
        author: Author,
        rights: Rights,
        *,
        if_match: str | None,
        idempotency_key: str = "",
        dry_run: bool = False,
    ) -> str:
        """See PolicyBook.set_invariants."""
        _require_admin(rights, "write invariants")
        if len(text) > MAX_INVARIANTS_BYTES or "\0" in text:
            raise InvalidArgument(
                f"invariants are text of at most {MAX_INVARIANTS_BYTES >> 10} KiB", reason="INVARIANTS_INVALID"
            )
        if text:
            await to_thread(gate.read_invariants, text)
        if dry_run:
            if if_match not in (None, etag_of_text(self._held.invariants)):
                raise changed("the text of the invariants")
            await to_thread(gate.check_invariants, text, self._held.state)
            return etag_of_text(text)
        answer = self._answers.asked(author, idempotency_key, _digest("put invariants", etag_of_text(text), if_match))

        async def work() -> str:
            await self._set(text, author, if_match, answer)
            return etag_of_text(text)

        async with self._held.lock:
            return await self._answers.once(answer, work, lambda _: etag_of_text(text))

    async def _set(self, text: str, author: Author, if_match: str | None, answer: Answer | None) -> None:
        before, state = self._held.invariants, self._held.state
        if if_match is not None and if_match != etag_of_text(before):
            raise changed("the text of the invariants")
        if text == before:
            await self._answers.remember(answer)
            return
        await to_thread(gate.check_invariants, text, state)
        told = await to_thread(diff, _lines(before), _lines(text))
        put = self._store.policies.put_invariants(
            text,
            before=before,
            number=state.revision,
            at=self._clock.now(),
            record=self._record(author, "invariants", told, call="policy invariants"),
            answer=answer,
        )
        await _unless_moved(put, "the book of policies")
        self._held.invariants = text
        self._held.holding = gate.Holding(text, state.snapshot)

    def _existing(self, name: str) -> Grant:
        found = self._held.grants.get(name)
        if found is None:
            raise NotFound(f"there is no grant {shown(name)}", reason="GRANT_NOT_FOUND")
        return found

    def _record(self, author: Author, name: str, told: str, *, call: str = "policy grant") -> AuditRecord:
        told = f"revision {self._held.state.revision}: {told}"
        items: Sequence[AuditItem] = (AuditItem(name, told[:MAX_TEXT], "OK"),)
        return record(author, items, call=call, server=self._server, at=self._clock.now())


async def _unless_moved(write: Awaitable[None], what: str) -> None:
    try:
        await write
    except Moved:
        raise changed(what) from None


def _line(grant: Grant | None) -> list[str]:
    if grant is None:
        return []
    return [f"{grant.role} of {', '.join(grant.namespaces) or 'everything'}: {grant.spiffe_id}"]


def _told(grant: Grant) -> str:
    return json.dumps([grant.name, grant.spiffe_id, grant.role.value, grant.namespaces])


def _grant(told: str) -> Grant:
    name, spiffe_id, role, namespaces = json.loads(told)
    return with_etag(Grant(name=name, spiffe_id=spiffe_id, role=Role(role), namespaces=tuple(namespaces)))


def _digest(*asked: object) -> bytes:
    return hashlib.sha256(json.dumps(asked).encode()).digest()


def _require_admin(rights: Rights, what: str) -> None:
    if not rights.is_admin:
        raise forbidden(what, rights.missing())


def _lines(text: str) -> list[str]:
    lines = text.splitlines()
    return lines if len(lines) <= MAX_LINES else [etag_of_text(text)]


def etag_of_text(text: str) -> str:
    """Of the invariants."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
