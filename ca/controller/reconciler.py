"""Makes the server's entries those that the cluster asks for: at once after a change, and again after any doubt.

What stood on the server is known from one whole list and from our own changes since; any error, and every
`resync_seconds`, it is read again. Nobody acts before the cluster was seen whole, nor while another one leads.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from ca.controller.diff import Changes, diff
from ca.controller.entry_api import ALREADY_EXISTS, BATCH, NOT_FOUND, OK, EntryApi, Outcome
from ca.controller.entry_wire import pod_of
from ca.controller.guard import DeletionGuard
from ca.controller.render import NOTHING, Plan, Wanted
from ca.controller.world import STATIC, World
from ca.errors import BurgeeError, Unavailable
from ca.ports import Clock
from ca.proto.spire import types_pb2
from ca.runtime import log, metrics

FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
HELD_SECONDS = 5.0
"""How often what the guard refused is tried again."""
PLANS_AT_ONCE = 200
"""Then the event loop is let go for a moment."""

_log = log.get("controller")
_rounds = metrics.histogram(
    "controller_round_seconds",
    "From the changes of the cluster to the changed entries.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_operations = metrics.counter("controller_entry_operations", "Entries sent to the server.", ["operation", "outcome"])


@dataclass(slots=True)
class Survey:
    """What there is to do. `free` are deletions whose pod was seen to go, `guarded` the others."""

    changes: Changes = field(default_factory=Changes)
    free: list[str] = field(default_factory=list)
    guarded: list[str] = field(default_factory=list)
    guarded_groups: set[str] = field(default_factory=set)

    @property
    def deletions(self) -> int:
        return len(self.free) + len(self.guarded)


class Reconciler:
    """`run` until it is cancelled. `problem` is why it cannot, `rounds` how often it could."""

    def __init__(
        self,
        *,
        world: World,
        api: EntryApi,
        guard: DeletionGuard,
        clock: Clock,
        resync_seconds: float,
        ready: Callable[[], bool] = lambda: True,
        may_act: Callable[[], bool] = lambda: True,
        allowed: Callable[[], int] = lambda: 0,
        used_allowance: Callable[[], Awaitable[None]] | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.world = world
        self.problem: BurgeeError | None = None
        self.rounds = 0
        self.refused: dict[str, tuple[str, str]] = {}
        """Entry ID → who wants it, and the server's words."""
        self.foreign: dict[str, str] = {}
        """Entry ID → who wants what an entry of others provides."""
        self.guard = guard
        self._api = api
        self._clock = clock
        self._resync = resync_seconds
        self._ready = ready
        self._may_act = may_act
        self._allowed = allowed
        self._used_allowance = used_allowance
        self._done = done
        self._current: dict[str, types_pb2.Entry] | None = None
        self._groups: dict[str, set[str]] = defaultdict(set)
        self._held: set[str] = set()
        self._spent = False
        self._taken: set[str] = set()
        self._resync_at = 0.0

    @property
    def entries(self) -> int | None:
        """How many of ours the server has; None while that is not known."""
        return None if self._current is None else len(self._current)

    async def run(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        self._begin_anew()
        while True:
            await self._something_to_do()
            if not self._may_act():
                self._current = None  # whoever leads changes them meanwhile
                continue
            if not self._ready():
                continue
            try:
                await self.round()
                self.problem, backoff = None, FIRST_BACKOFF_SECONDS
            except BurgeeError as error:
                if self.problem is None or self.problem.reason != error.reason:
                    _log.warning("entries cannot be changed now", reason=error.reason, detail=error.detail)
                self.problem = error
                self._begin_anew()
                await self._clock.sleep(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
                self.world.wake.set()

    def _begin_anew(self) -> None:
        """What was taken up may have been left half done, and what the server has is not known."""
        self._current = None
        self.world.dirty |= self._taken

    async def round(self) -> None:
        """Does what there is to do. Raises what the server or the way to it reported.

        What comes first is sent while the rest is looked at.
        """
        began = self._clock.monotonic()
        found = Survey()
        sending: asyncio.Task[None] | None = None
        try:
            async for part in self._parts(found):
                if sending is not None:
                    await sending
                sending = asyncio.create_task(self._send_all(part))
            if sending is not None:
                await sending
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        await self._delete(found)
        self.rounds += 1
        if sending is not None or found.deletions:
            _rounds.observe(self._clock.monotonic() - began)
        self._done()

    async def survey(self) -> Survey:
        """What differs, and nothing is done about it."""
        found = Survey()
        async for part in self._parts(found):
            found.changes.add(part)
        return found

    async def _parts(self, found: Survey) -> AsyncIterator[Changes]:
        """What differs in the groups that changed, or in all of them when the server's entries were read again.

        In parts that are large enough to be sent. Deletions are collected in `found`.
        """
        dirty, self.world.dirty = self.world.dirty | self._held, set()
        self._taken = dirty
        groups = dirty
        if self._current is None or self._clock.monotonic() >= self._resync_at:
            await self._load()
            groups = dirty | self.world.plans.keys() | self._groups.keys() | {STATIC}
        if STATIC in dirty:
            groups |= self._plan_static()
        part = Changes()
        for count, group in enumerate(groups, start=1):
            plan = self.world.plan(group) if group in dirty else self.world.plans.get(group, NOTHING)
            part.add(self._compare(group, plan, found))
            if count % PLANS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if part.count >= BATCH:
                yield part
                part = Changes()
        if part.count:
            yield part

    def _compare(self, group: str, plan: Plan, found: Survey) -> Changes:
        static = self.world.plans.get(STATIC, NOTHING)
        current = self._current or {}
        ids = self._groups.get(group, set())
        if group == STATIC:
            ids = ids | (plan.wanted.keys() & current.keys())
        changes = diff(plan, {one: current[one] for one in ids}, static.wanted.keys() | static.kept)
        if group in self.world.gone:
            found.free += changes.delete
            if not changes.count:
                self.world.gone.discard(group)
        elif changes.delete:
            found.guarded += changes.delete
            found.guarded_groups.add(group)
        changes.delete = []
        return changes

    def _plan_static(self) -> set[str]:
        """Gives the groups of entries that were static ones."""
        before = self.world.plans.get(STATIC, NOTHING)
        after = self.world.plan(STATIC)
        current = self._current or {}
        return {pod_of(current[one]) for one in before.wanted.keys() - after.wanted.keys() if one in current}

    async def _load(self) -> None:
        self._current = await self._api.all()
        self._groups = defaultdict(set)
        for entry_id, message in self._current.items():
            self._groups[pod_of(message)].add(entry_id)
        self._resync_at = self._clock.monotonic() + self._resync

    async def _send_all(self, part: Changes) -> None:
        """Updates first: they may make room for what is created."""
        await self._send("update", part.update)
        await self._send("create", part.create)

    async def _send(self, operation: str, items: Sequence[tuple[types_pb2.Entry, Wanted]]) -> None:
        call = self._api.create if operation == "create" else self._api.update
        for start in range(0, len(items), BATCH):
            some = items[start : start + BATCH]
            self._still()
            outcomes = await call([message for message, _ in some])
            for (message, wanted), outcome in zip(some, outcomes, strict=True):
                self._note(operation, message, wanted, outcome)

    async def _delete(self, survey: Survey) -> None:
        guarded = self._permitted(survey)
        ids = [*survey.free, *guarded]
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            self._still()
            for entry_id, outcome in zip(some, await self._api.delete(some), strict=True):
                _operations.labels("delete", "ok" if outcome.code in (OK, NOT_FOUND) else "refused").inc()
                if outcome.code in (OK, NOT_FOUND):
                    self._forget(entry_id)
        self.guard.deleted(len(guarded))
        if ids:
            _log.info("entries deleted", count=len(ids))
        self._spent = self._spent or bool(guarded and self._allowance())
        if self._spent and self._used_allowance is not None:
            await self._used_allowance()
        self._spent = False

    def _allowance(self) -> int:
        """One that was used serves for nothing else, even while it cannot be taken off."""
        return 0 if self._spent else self._allowed()

    def _permitted(self, survey: Survey) -> list[str]:
        before = self.guard.held
        if self.guard.permits(len(survey.guarded), len(self._current or {}), allowed=self._allowance()):
            self._held = set()
            return survey.guarded
        self._held = survey.guarded_groups
        if self.guard.held != before:
            _log.error(
                "entries are not deleted, for they are too many at once",
                reason="DELETIONS_REFUSED",
                count=self.guard.held,
                of=len(self._current or {}),
                hint=held_hint(self.guard.held),
            )
        return []

    def _note(self, operation: str, message: types_pb2.Entry, wanted: Wanted, outcome: Outcome) -> None:
        entry_id = message.id
        self.refused.pop(wanted.entry.id, None)
        self.foreign.pop(wanted.entry.id, None)
        _operations.labels(operation, "ok" if outcome.code == OK else "refused").inc()
        if outcome.code == OK:
            if self._current is not None:
                self._current[entry_id] = message
                self._groups[pod_of(message)].add(entry_id)
            return
        if outcome.code == ALREADY_EXISTS and outcome.there and not self.world.settings.is_ours(outcome.there):
            self.foreign[wanted.entry.id] = wanted.owner
            return
        if outcome.code in (ALREADY_EXISTS, NOT_FOUND):
            raise Unavailable("the server's entries are others than we knew", reason="ENTRIES_CHANGED")
        self.refused[wanted.entry.id] = (wanted.owner, outcome.message)
        _log.warning("entry refused", reason="ENTRY_REFUSED", entry=entry_id, detail=outcome.message)

    def _forget(self, entry_id: str) -> None:
        message = None if self._current is None else self._current.pop(entry_id, None)
        if message is not None:
            group = self._groups[pod_of(message)]
            group.discard(entry_id)
            if not group:
                del self._groups[pod_of(message)]
                self.world.gone.discard(pod_of(message))

    def _still(self) -> None:
        if not self._may_act():
            raise Unavailable("another controller leads now", reason="NOT_LEADING")

    async def _something_to_do(self) -> None:
        """A change, or the time for the next look."""
        due = max(0.0, self._resync_at - self._clock.monotonic()) if self._current is not None else self._resync
        try:
            async with asyncio.timeout(min(due, HELD_SECONDS) if self._held else due):
                await self.world.wake.wait()
        except TimeoutError:
            pass
        self.world.wake.clear()


def held_hint(count: int) -> str:
    """How to go on."""
    return (
        f"if they are to go: `kubectl annotate lease NAME burgee/allow-deletions={count}` (the lease of this "
        "controller), or raise `deletion_guard` and send SIGHUP"
    )
