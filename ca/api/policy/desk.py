"""What the routes share: who asks, what it may, and how a write is made of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Annotated

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from ca.api.access import current_caller
from ca.api.audit import Actor
from ca.api.limits import RATE_REFUSED
from ca.api.policy.bodies import Body, located
from ca.api.policy.conditions import idempotency_key
from ca.api.policy.etags import quoted
from ca.api.policy.models import LINE, NAME, NAMESPACE
from ca.api.policy.parts import PolicyParts
from ca.api.policy.refusals import MAX_FAULTS, Fault, Faulty
from ca.api.policy.told import outcome_document
from ca.api.policy.web import Route, large_answer
from ca.errors import Denied, Exhausted, Unavailable
from ca.runtime import decision_reader
from ca.service.policy.grants import Rights
from ca.service.policy.refusals import PolicyInvalid, forbidden
from ca.service.rates import TokenBuckets
from policy.book_values import Change, Key, Outcome, Role, Stored
from policy.state import State

DryRun = Annotated[bool, Query(description="Say what the write would do, and do nothing.")]
Note = Annotated[str, Query(max_length=500, pattern=LINE, description="Why; kept with the revision.")]
Limit = Annotated[int, Query(ge=1, le=500, description="Items of a page, at most.")]
Cursor = Annotated[str, Query(max_length=4096, description="Where the page begins: `next` of the one before.")]
NamePath = Annotated[str, Path(pattern=NAME, max_length=253)]
NamespacePath = Annotated[str, Path(pattern=NAMESPACE, max_length=63)]
NumberPath = Annotated[int, Path(ge=0, le=2**53, description="A revision.")]
RevisionQuery = Annotated[int | None, Query(ge=0, le=2**53, description="A revision; without it the newest.")]

IDEMPOTENT = "Idempotency-Key"
ASKS_TO_WRITE = {
    IDEMPOTENT: "The same key with the same request gets the same answer again, and writes once.",
}


PAST_COST = 10
"""What a revision that is past counts against the caller's rate besides: all of it is read and compiled."""
AT_ONCE = 2
"""Searches of the decision log, or among targets; past revisions are made one after the other. Who waits for a turn
keeps no thread from others."""

_route: ContextVar[Route] = ContextVar("burgee_policy_route")


class Desk:
    """For the call that runs now."""

    def __init__(self, parts: PolicyParts) -> None:
        self.parts = parts
        self.book = parts.book
        limits = parts.book.held.settings.limits
        self._rates = TokenBuckets(
            per_second=limits.questions_per_second_per_caller, burst_seconds=limits.burst_seconds
        )
        self._searching, self._going_back = asyncio.Semaphore(AT_ONCE), asyncio.Lock()
        self._past: tuple[State, State] | None = None
        """The revision in force, and the last that was made anew beside it."""

    async def enter(self, route: Route) -> None:
        """Before anything of a call is looked at. Raises Exhausted (429); writes have a rate of their own."""
        _route.set(route)
        if not route.writes:
            self._charge(route.cost)

    def _charge(self, cost: float) -> None:
        """Raises Exhausted (429)."""
        if self.rights.exempt:
            return
        seconds = self._rates.take(self.author()["actor"], cost, self.parts.clock.monotonic())
        if seconds:
            RATE_REFUSED.labels("policy").inc()
            raise Exhausted(
                f"more than {self._rates.per_second:g} questions a second of one caller",
                reason="RATE_LIMITED",
                hint="come again after the time given; `policy.limits` of the server's configuration says how much",
                retry_after_seconds=seconds,
            )

    @property
    def rights(self) -> Rights:
        """Of the caller."""
        return self.book.rights_of(current_caller())

    def author(self) -> dict[str, str]:
        """The caller, as revisions and the audit log name it."""
        actor = Actor.of(current_caller().peer)
        return {"actor": actor.name, "origin": actor.origin}

    async def reader(self, namespace: str | None = None) -> Rights:
        """Of a caller who may read the namespace; without one, anything at all. Raises Denied."""
        rights = self.rights
        if namespace is None and not rights.any:
            raise await self._refused(forbidden("read policies", "a grant of any role"))
        if namespace is not None and not rights.may_read(namespace):
            error = forbidden(f"read policies of namespace `{namespace}`", rights.missing(read=namespace))
            raise await self._refused(error)
        return rights

    async def writer(self, key: Key) -> Rights:
        """Of a caller who may write the object. Raises Denied before anything is said of it."""
        rights = self.rights
        if not rights.may_write(key):
            raise await self._refused(forbidden(f"write {key}", rights.missing(write=key)))
        return rights

    async def admin(self, what: str) -> Rights:
        """Raises Denied unless the caller is an admin."""
        rights = self.rights
        if not rights.is_admin:
            raise await self._refused(forbidden(what, rights.missing()))
        return rights

    def reads_target(self, state: State, target: str, rights: Rights) -> bool:
        """Whether the caller may read the namespaces of all workloads with that ID; whether there is any is for those
        to know who may read everything."""
        namespaces = {one.namespace for one in state.snapshot.targets.get(target, ())}
        return rights.reads_all or (bool(namespaces) and all(map(rights.may_read, namespaces)))

    async def require_target(self, state: State, target: str, rights: Rights) -> None:
        """Raises Denied unless the caller `reads_target`."""
        if not self.reads_target(state, target, rights):
            error = forbidden(f"ask about `{target}`", f"a grant as `{Role.READER}` for its namespace")
            raise await self._refused(error)

    async def _refused(self, error: Denied) -> Denied:
        """The refusal, on record."""
        route = _route.get()
        await self.parts.auditor.denied(f"{route.verb} {route.tier}", current_caller().peer, error)
        return error

    async def found(self, query: decision_reader.Query) -> decision_reader.Page:
        """Of the decision log. Raises Unavailable."""
        kept = self.parts.decisions
        if kept is None:
            return decision_reader.Page((), True, 0, 0)
        try:
            async with self._searching:
                await asyncio.to_thread(kept.flush)
                return await asyncio.to_thread(decision_reader.find, kept.directory, query)
        except OSError as error:
            raise Unavailable("the decision log cannot be read now", reason="DECISION_LOG") from error

    async def state(self, revision: int | None) -> State:
        """The newest, or that of a revision. Raises NotFound, Exhausted."""
        if revision in (None, self.book.state.revision):
            return self.book.state
        if (known := self._made(revision)) is not None:
            return known
        self._charge(PAST_COST)
        async with self._going_back:
            if (known := self._made(revision)) is not None:
                return known
            now = self.book.state
            made = await self.book.state_at(revision)
            self._past = now, made
            return made

    def _made(self, revision: int) -> State | None:
        """A past revision, if it was made with the targets of now."""
        if self._past is None or self._past[0] is not self.book.state or self._past[1].revision != revision:
            return None
        return self._past[1]

    async def write(
        self,
        request: Request,
        changes: Sequence[Change],
        *,
        body: Body | None = None,
        below: Sequence[str] = ("",),
        note: str = "",
        dry_run: bool = False,
        expected_revision: int | None = None,
        created: bool = False,
    ) -> Response:
        """Writes by the rights of now, when the body is here, and tells what came of it. `below` are the pointers in
        the body to the objects of the changes."""
        try:
            outcome = await self.book.write(
                changes,
                rights=self.rights,
                **self.author(),
                note=note,
                dry_run=dry_run,
                idempotency_key=idempotency_key(request),
                expected_revision=expected_revision,
            )
        except PolicyInvalid as error:
            places = {str(change.key): pointer for change, pointer in zip(changes, below, strict=False)}
            raise await invalid_at(error, places, body) from None
        return await _told(outcome, dry_run=dry_run, created=created)

    async def change(
        self,
        request: Request,
        key: Key,
        make: Callable[[Stored], Change],
        *,
        digest: bytes,
        note: str,
        dry_run: bool,
    ) -> Response:
        """Makes one change of what is there, and tells what came of it; `digest` is of all that was asked for."""
        try:
            outcome = await self.book.change(
                key,
                make,
                request=digest,
                rights=self.rights,
                note=note,
                dry_run=dry_run,
                idempotency_key=idempotency_key(request),
                **self.author(),
            )
        except PolicyInvalid as error:
            raise await invalid_at(error, {}, None) from None
        return await _told(outcome, dry_run=dry_run, created=False)

    async def roll_back(
        self, request: Request, number: int, *, note: str, dry_run: bool, expected_revision: int | None
    ) -> Response:
        """Goes back to a revision, and tells what came of it."""
        outcome = await self.book.rollback(
            number,
            rights=self.rights,
            **self.author(),
            note=note,
            dry_run=dry_run,
            idempotency_key=idempotency_key(request),
            expected_revision=expected_revision,
        )
        return await _told(outcome, dry_run=dry_run, created=False)


async def _told(outcome: Outcome, *, dry_run: bool, created: bool) -> Response:
    headers = {}
    if len(outcome.objects) == 1 and not dry_run:
        headers["ETag"] = quoted(outcome.objects[0].etag)
    status = 201 if created and not dry_run else 200
    return await large_answer(outcome_document(outcome, dry_run=dry_run), status=status, headers=headers)


async def invalid_at(error: PolicyInvalid, places: Mapping[str, str], body: Body | None) -> Faulty:
    """The same refusal, with pointers, lines and columns of the body that was sent; `places` are the pointers to
    objects in it, by their keys."""
    faults = [
        Fault(code=one.code, detail=one.message, pointer=places.get(one.origin.source, "") + one.pointer, hint=one.hint)
        for one in error.problems[:MAX_FAULTS]
    ]
    found = Faulty(error.detail, faults, reason=error.reason, hint=error.hint)
    return found if body is None else await located(body, found)
