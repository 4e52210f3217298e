"""The book of policies: what is in it, what was, and writes, each of which is one revision or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ca.errors import Exhausted, Internal
from ca.identity.spiffe_id import SpiffeId
from ca.ports import Clock
from ca.runtime.threads import to_thread
from ca.service.policy.candidates import CandidateSet, Concern
from ca.service.policy.compile import book_state, not_found
from ca.service.policy.grant_book import GrantBook
from ca.service.policy.grants import Calling, Rights, rights_of
from ca.service.policy.held import Held
from ca.service.policy.key_sets import KeySets
from ca.service.policy.records import Author
from ca.service.policy.refusals import forbidden
from ca.service.policy.writing import Wanted, Writing, request_digest
from ca.service.rates import TokenBuckets
from ca.store.policies import Moved
from ca.store.store import Store
from ca.store.values import Page
from policy.book_values import Change, Grant, Key, Outcome, Revision, Stored
from policy.state import State

Revisions = list[Revision]

MAX_PAGE = 1_000
MAX_REVISIONS = 200


class PolicyBook:
    """One per server. `admins` may be replaced at any time.

    Who reads is not asked for rights here, but by who answers; who writes is asked here, for every object.
    """

    def __init__(
        self,
        *,
        store: Store,
        held: Held,
        key_sets: KeySets,
        clock: Clock,
        server: str,
        admins: frozenset[SpiffeId] = frozenset(),
    ) -> None:
        limits = held.settings.limits
        self.held = held
        self.key_sets = key_sets
        self.admins = admins
        self._store = store
        self._clock = clock
        self._rates = TokenBuckets(per_second=limits.writes_per_second_per_caller, burst_seconds=limits.burst_seconds)
        self._writing = Writing(store=store, held=held, clock=clock, server=server)
        self._grants = GrantBook(store=store, held=held, clock=clock, server=server)

    @property
    def state(self) -> State:
        """What is in force now. Raises Unavailable POLICY_UNREADABLE."""
        return self.held.state

    def rights_of(self, caller: Calling) -> Rights:
        """What a caller may do."""
        root = self.held.settings.mesh.root_namespace
        return rights_of(caller, self.held.grants.values(), admins=self.admins, root_namespace=root)

    def set_of(self, concerns: frozenset[Concern]) -> CandidateSet | None:
        """What an agent with these entries is sent; None while no policies could be read."""
        found = self.held.candidates
        return None if found is None else found.of(concerns, self.key_sets.sets)

    def on_changed(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever what agents are sent may be new."""
        self.held.on_changed(listener)

    async def wait_changed(self, revision: int) -> int:
        """Returns the revision in force, once it is above `revision`."""
        return await self.held.wait_changed(revision)

    async def get(self, key: Key) -> Stored:
        """Raises NotFound POLICY_NOT_FOUND."""
        found = self.state.objects.get(key)
        if found is None:
            raise not_found(key)
        return found

    async def list(
        self,
        kind: str,
        namespace: str | None,
        after: str,
        limit: int,
        *,
        readable: Callable[[str], bool] | None = None,
    ) -> Page[Stored]:
        """By namespace and name; of all namespaces, or of those that are `readable`. `after` is `namespace/name` of
        the last one of the page before."""
        place = tuple(after.split("/", 1)) if after else ("", "")
        found = [
            stored
            for key, stored in self.state.objects.items()
            if key.kind == kind
            and (key.namespace, key.name) > place
            and namespace in (None, key.namespace)
            and (readable is None or readable(key.namespace))
        ]
        found.sort(key=lambda stored: stored.key)
        page = found[: min(max(limit, 1), MAX_PAGE)]
        last = page[-1].key if len(page) < len(found) else None
        return Page(tuple(page), "" if last is None else f"{last.namespace}/{last.name}")

    async def write(
        self,
        changes: Sequence[Change],
        *,
        actor: str,
        rights: Rights,
        note: str = "",
        dry_run: bool = False,
        idempotency_key: str = "",
        expected_revision: int | None = None,
        origin: str = "",
    ) -> Outcome:
        """All or nothing; nothing where it is a dry run, or where all is so already.

        Raises Denied POLICY_FORBIDDEN, PolicyInvalid, NotFound POLICY_NOT_FOUND, AlreadyExists POLICY_EXISTS,
        FailedPrecondition POLICY_CHANGED, Conflict (POLICY_OWNED, INVARIANT_BROKEN, …), InvalidArgument
        (IDEMPOTENCY_KEY), Exhausted RATE_LIMITED, Unavailable.
        """
        wanted = tuple(changes)
        await self._admit(wanted, actor, rights, origin)

        async def given() -> Sequence[Change]:
            return wanted

        request = await to_thread(request_digest, wanted, note, expected_revision)
        return await self._writing.write(
            given,
            Wanted(
                author=Author(name=actor, origin=origin),
                rights=rights,
                note=note,
                dry_run=dry_run,
                idempotency_key=idempotency_key,
                request=request,
                expected_revision=expected_revision,
            ),
        )

    async def change(
        self,
        key: Key,
        make: Callable[[Stored], Change],
        *,
        request: bytes,
        actor: str,
        rights: Rights,
        note: str = "",
        dry_run: bool = False,
        idempotency_key: str = "",
        origin: str = "",
    ) -> Outcome:
        """A write that follows from what is there: `make` makes it of the object, and of what `request` is a digest of.
        Raises what `write` and `make` raise."""
        await self._admit([Change(key=key, body=None)], actor, rights, origin)

        async def made() -> Sequence[Change]:
            wanted = make(await self.get(key))
            if wanted.key != key:  # of which nobody asked whether the caller may write it
                raise Internal(f"a change of {key} became one of {wanted.key}")
            return [wanted]

        return await self._writing.write(
            made,
            Wanted(
                author=Author(name=actor, origin=origin),
                rights=rights,
                note=note,
                dry_run=dry_run,
                idempotency_key=idempotency_key,
                request=request,
            ),
        )

    async def rollback(
        self,
        number: int,
        *,
        actor: str,
        rights: Rights,
        note: str = "",
        dry_run: bool = False,
        idempotency_key: str = "",
        expected_revision: int | None = None,
        origin: str = "",
    ) -> Outcome:
        """A new revision in which all is as it was in that one; 0 is the empty book. Raises what `write` raises, and
        NotFound POLICY_REVISION_NOT_FOUND."""
        await self._admit((), actor, rights, origin)

        async def undone() -> Sequence[Change]:
            changes = await self._undoing(number)
            await self._require_seen(changes, actor, rights, origin)
            await self._require(changes, actor, rights, origin)
            return changes

        return await self._writing.write(
            undone,
            Wanted(
                author=Author(name=actor, origin=origin),
                rights=rights,
                note=note or f"rollback to revision {number}",
                dry_run=dry_run,
                idempotency_key=idempotency_key,
                request=request_digest((), f"rollback {number} {note}", expected_revision),
                expected_revision=expected_revision,
                call="policy rollback",
            ),
        )

    async def revisions(self, before: int | None, limit: int) -> Revisions:
        """The newest first; what they changed is told by `revision`."""
        return await self._store.policy_revisions.list(before, min(max(limit, 1), MAX_REVISIONS))

    async def revision(self, number: int) -> Revision:
        """Raises NotFound POLICY_REVISION_NOT_FOUND."""
        return await self._store.policy_revisions.get(number)

    async def state_at(self, number: int) -> State:
        """All as it was after that revision, with the targets of now. Raises NotFound, Unavailable."""
        state = self.state
        if number == state.revision:
            return state
        last, undone = await self._store.policy_revisions.undo(number)
        if last != state.revision:
            await self.held.catch_up(last)
            return await self.state_at(number)
        was: dict[Key, Stored | None] = {**state.objects, **undone}
        objects = {key: stored for key, stored in was.items() if stored is not None}
        return await to_thread(book_state, number, objects, self.held.settings, self.held.targets, state)

    async def grants(self, *, rights: Rights) -> tuple[Grant, ...]:
        """By name. Raises Denied."""
        return self._grants.all(rights)

    async def get_grant(self, name: str, *, rights: Rights) -> Grant:
        """Raises Denied, NotFound GRANT_NOT_FOUND."""
        return self._grants.get(name, rights)

    async def write_grant(
        self,
        grant: Grant,
        *,
        actor: str,
        rights: Rights,
        if_match: str | None = None,
        must_be_new: bool = False,
        idempotency_key: str = "",
        origin: str = "",
    ) -> Grant:
        """Raises Denied, InvalidArgument (GRANT_INVALID, IDEMPOTENCY_KEY), AlreadyExists GRANT_EXISTS,
        FailedPrecondition."""
        await self._admit((), actor, rights, origin)
        return await self._grants.write(
            grant,
            Author(name=actor, origin=origin),
            rights,
            if_match=if_match,
            must_be_new=must_be_new,
            idempotency_key=idempotency_key,
        )

    async def delete_grant(
        self,
        name: str,
        *,
        actor: str,
        rights: Rights,
        if_match: str | None = None,
        idempotency_key: str = "",
        origin: str = "",
    ) -> Grant:
        """The grant as it was. Raises Denied, NotFound GRANT_NOT_FOUND, FailedPrecondition POLICY_CHANGED,
        InvalidArgument IDEMPOTENCY_KEY."""
        await self._admit((), actor, rights, origin)
        author = Author(name=actor, origin=origin)
        return await self._grants.delete(name, author, rights, if_match=if_match, idempotency_key=idempotency_key)

    async def rehearse_grant(
        self, name: str, after: Grant | None, *, rights: Rights, caller: str
    ) -> tuple[Grant, tuple[str, ...]]:
        """The grant, and in words what whom it names, and `caller`, would gain and lose by it; None for `after` deletes
        it. Raises Denied, InvalidArgument GRANT_INVALID, NotFound GRANT_NOT_FOUND."""
        return self._grants.rehearse(name, after, rights, caller=caller, admins=self.admins)

    async def get_invariants(self, *, rights: Rights) -> tuple[str, str]:
        """(text, etag); empty where there are none. Raises Denied."""
        return self._grants.invariants(rights)

    async def set_invariants(
        self,
        text: str,
        *,
        actor: str,
        rights: Rights,
        if_match: str | None = None,
        idempotency_key: str = "",
        dry_run: bool = False,
        origin: str = "",
    ) -> str:
        """Their etag. Raises Denied, InvalidArgument (INVARIANTS_INVALID, IDEMPOTENCY_KEY), InvariantBroken where they
        do not hold now, FailedPrecondition POLICY_CHANGED."""
        await self._admit((), actor, rights, origin)
        author = Author(name=actor, origin=origin)
        return await self._grants.set_invariants(
            text, author, rights, if_match=if_match, idempotency_key=idempotency_key, dry_run=dry_run
        )

    async def _undoing(self, number: int) -> Sequence[Change]:
        last, undone = await self._store.policy_revisions.undo(number)
        objects = self.state.objects
        if last != self.state.revision:
            raise Moved("policies were changed meanwhile")
        return [
            Change(key=key, body=None if was is None else was.body, owner="" if was is None else was.owner, force=True)
            for key, was in undone.items()
            if was is not None or key in objects
        ]

    async def _admit(self, changes: Sequence[Change], actor: str, rights: Rights, origin: str) -> None:
        """Rates first: who may not write is told so no faster than who may."""
        if not rights.exempt:
            seconds = self._rates.take(actor, 1, self._clock.monotonic())
            if seconds:
                raise Exhausted(
                    f"more than {self._rates.per_second:g} writes a second of one caller",
                    reason="RATE_LIMITED",
                    hint="write several objects at once, or come again after the time given",
                    retry_after_seconds=seconds,
                )
        await self._require(changes, actor, rights, origin)

    async def _require_seen(self, changes: Sequence[Change], actor: str, rights: Rights, origin: str) -> None:
        """What others wrote meanwhile is not named to who may not read it."""
        unseen = [change for change in changes if not rights.may_read(change.key.namespace)]
        if unseen:
            error = forbidden("undo what was written in namespaces that you may not read", rights.missing())
            await self._writing.refused(unseen, Author(name=actor, origin=origin), error)
            raise error

    async def _require(self, changes: Sequence[Change], actor: str, rights: Rights, origin: str) -> None:
        for change in changes:
            if not rights.may_write(change.key):
                error = forbidden(f"write {change.key}", rights.missing(write=change.key))
                await self._writing.refused(changes, Author(name=actor, origin=origin), error)
                raise error
