"""One write, from what somebody wants to a revision that is in force."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ca.errors import AlreadyExists, BurgeeError, Denied, InvalidArgument, Unavailable
from ca.ports import Clock
from ca.runtime import log, metrics
from ca.runtime.threads import to_thread
from ca.service.policy import gate
from ca.service.policy.answers import Answers, check_key
from ca.service.policy.author_share import check_share, limits_of
from ca.service.policy.candidates import Candidates, candidates
from ca.service.policy.compile import Draft, draft
from ca.service.policy.grants import Rights
from ca.service.policy.held import Held
from ca.service.policy.records import Author, named, record, written
from ca.service.policy.refusals import changed, invalid
from ca.service.rates import TokenBuckets
from ca.store.policies import ANSWERED, Answer, Moved
from ca.store.store import Store
from policy.book_values import Change, Outcome, Revision
from policy.state import State

ATTEMPTS = 20
REHEARSALS = 2
"""Dry runs at once; they do not keep anybody from writing."""
MAX_NOTE_CHARACTERS = 1024
REFUSALS_PER_SECOND, REFUSALS_AT_ONCE = 5.0, 50.0
"""On record; whoever may not write must not be able to fill the store either."""

logger = log.get("policy")
_rejected = metrics.counter("policy_writes_rejected", "Writes of policies that were refused, by reason.", ["reason"])

Make = Callable[[], Awaitable[Sequence[Change]]]
"""The changes that are wanted, by what is in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One write. `request` is a digest of all that was asked for."""

    author: Author
    rights: Rights
    request: bytes
    note: str = ""
    dry_run: bool = False
    idempotency_key: str = ""
    expected_revision: int | None = None
    call: str = "policy write"


class Writing:
    """Writes of one server go one after another; that of another server in between makes one start anew."""

    def __init__(self, *, store: Store, held: Held, clock: Clock, server: str) -> None:
        self._store = store
        self._held = held
        self._clock = clock
        self._server = server
        self._answers = Answers(store=store, clock=clock)
        self._rehearsals = asyncio.Semaphore(REHEARSALS)
        self._refusals = TokenBuckets(
            per_second=REFUSALS_PER_SECOND, burst_seconds=REFUSALS_AT_ONCE / REFUSALS_PER_SECOND
        )

    async def write(self, make: Make, wanted: Wanted) -> Outcome:
        """See PolicyBook.write."""
        try:
            _check(wanted)
            return await self._write(make, wanted)
        except BurgeeError as error:
            _rejected.labels(error.reason).inc()
            raise

    async def refused(self, changes: Sequence[Change], author: Author, error: Denied) -> None:
        """Puts on record who wanted to write what and may not. A store that is away loses the record, and not the
        refusal."""
        _rejected.labels(error.reason).inc()
        if self._refusals.take("", 1, self._clock.monotonic()):
            return
        made = record(
            author,
            named(change.key for change in changes),
            call="policy write",
            server=self._server,
            at=self._clock.now(),
            code=error.code.value,
            reason=error.reason,
        )
        try:
            await self._store.audit.append(made)
        except Unavailable:
            logger.error("refused write could not be recorded", reason="AUDIT_UNAVAILABLE")

    async def _write(self, make: Make, wanted: Wanted) -> Outcome:
        for _ in range(ATTEMPTS):
            async with self._rehearsals if wanted.dry_run else self._held.lock:
                done = await self._once(make, wanted)
            if done is not None:
                return done
            await self._held.catch_up(self._held.state.revision + 1)
        raise Unavailable(
            "policies are written by others all the time", reason="POLICY_BUSY", hint="the same write may succeed later"
        )

    async def _once(self, make: Make, wanted: Wanted) -> Outcome | None:
        """None where somebody else wrote meanwhile."""
        answer = self._answer(wanted)
        if answer is not None and (again := await self._again(answer)) is not None:
            return again
        state, invariants = self._held.state, self._held.invariants
        if wanted.expected_revision not in (None, state.revision):
            raise changed(f"the book, at revision {wanted.expected_revision} then and {state.revision} now,")
        try:
            changes = await make()
        except Moved:
            return None
        await self._held.know_targets()
        made, pieces = await to_thread(self._draft, changes, state, invariants, self._held.candidates, wanted.rights)
        if wanted.dry_run:
            return await to_thread(_rehearsed, made, state, wanted)
        try:
            if not made.steps:
                await self._answers.remember(answer)
                return Outcome(revision=None, objects=made.objects, warnings=made.warnings)
            return await self._commit(made, pieces, wanted, invariants, answer)
        except Moved:
            return None
        except AlreadyExists as error:
            if error.reason != ANSWERED:
                raise
            return None

    def _draft(
        self, changes: Sequence[Change], state: State, invariants: str, before: Candidates | None, rights: Rights
    ) -> tuple[Draft, Candidates | None]:
        settings = self._held.settings
        made = draft(changes, state, settings, self._held.targets)
        if not made.steps:
            return made, None
        pieces = candidates(made.state, before)
        if pieces.size > max(settings.limits.max_bytes, 0 if before is None else before.size):
            most = settings.limits.max_bytes
            raise invalid(made.steps[0].key, "P002", f"{pieces.size:,} bytes of policies, and at most {most:,} may be")
        if not rights.is_admin:
            check_share(made, pieces, state, before, rights.writes, limits_of(settings.limits))
        gate.check_invariants(invariants, made.state, self._held.holding)
        return made, pieces

    async def _commit(
        self, made: Draft, pieces: Candidates | None, wanted: Wanted, invariants: str, answer: Answer | None
    ) -> Outcome:
        now, number = self._clock.now(), made.state.revision
        revision = Revision(
            number=number,
            at=now,
            actor=wanted.author.name,
            note=wanted.note,
            changes=tuple(step.changed for step in made.steps),
            count=len(made.steps),
        )
        told = partial(written, made.steps, number, wanted.author, call=wanted.call, server=self._server, at=now)
        await self._store.policies.write(
            made.steps,
            revision,
            invariants=invariants,
            record=await to_thread(told),
            answer=None if answer is None else replace(answer, number=number),
        )
        if pieces is not None:
            self._held.holding = gate.Holding(invariants, made.state.snapshot)
            self._held.swap(made.state, pieces)
        logger.info("policies were written", revision=number, objects=len(made.steps), actor=wanted.author.name)
        return Outcome(revision=revision, changed=revision.count, objects=made.objects, warnings=made.warnings)

    def _answer(self, wanted: Wanted) -> Answer | None:
        if wanted.dry_run:
            return None
        return self._answers.asked(wanted.author, wanted.idempotency_key, wanted.request)

    async def _again(self, answer: Answer) -> Outcome | None:
        """What the same write was answered before."""
        known = await self._answers.known(answer)
        if known is None:
            return None
        if known.number is None:
            return Outcome(revision=None)
        revisions = self._store.policy_revisions
        revision = await revisions.get(known.number)
        return Outcome(revision=revision, changed=revision.count, objects=await revisions.made(known.number))


def _rehearsed(made: Draft, state: State, wanted: Wanted) -> Outcome:
    return Outcome(
        revision=None,
        changed=len(made.steps),
        objects=made.objects,
        warnings=made.warnings,
        findings=gate.findings(state, made.state, (step.key for step in made.steps), wanted.rights),
        difference=gate.difference(state, made.state),
    )


def request_digest(changes: Sequence[Change], note: str, expected_revision: int | None) -> bytes:
    """The same for the same request."""
    digest = hashlib.sha256()
    for change in changes:
        asked = [change.if_match, change.must_be_new, change.owner, change.force]
        digest.update(_bytes([str(change.key), change.body, asked]))
    digest.update(_bytes([note, expected_revision]))
    return digest.digest()


def _bytes(value: object) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True)
    except (ValueError, TypeError, RecursionError):
        return b"?"  # which no write comes of
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _check(wanted: Wanted) -> None:
    if len(wanted.note) > MAX_NOTE_CHARACTERS or not wanted.note.replace("\n", " ").replace("\t", " ").isprintable():
        raise InvalidArgument(
            f"a note is printable text of at most {MAX_NOTE_CHARACTERS:,} characters", reason="POLICY_NOTE"
        )
    check_key(wanted.idempotency_key)
