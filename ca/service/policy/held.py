"""The book of policies in memory: one compiled revision, swapped as a whole, and in step with the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

from ca.errors import Unavailable
from ca.ports import Clock
from ca.runtime import log, metrics
from ca.runtime.health import Problem
from ca.runtime.threads import to_thread
from ca.service.follower import Applied
from ca.service.policy.candidates import Candidates, addresses_of, candidates
from ca.service.policy.compile import Settings, Targets, book_state
from ca.service.policy.gate import Holding
from ca.service.policy.targets import Made, all_targets, made_by
from ca.store.authorized import AuthorizedIndex
from ca.store.store import Store
from policy.book_values import Grant
from policy.problems import Refused
from policy.state import State

T = TypeVar("T")
logger = log.get("policy")

SETTLE_SECONDS = 0.2
RETRY_SECONDS = 1.0
SHARE = 10.0
"""What entries make is looked at again no sooner than so many times what it took the last time."""

_revision = metrics.gauge("policy_revision", "Revision of policies that is in force here.")
_objects = metrics.gauge("policy_objects", "Policies and Workload objects in force here.")
_rules = metrics.gauge("policy_rules", "Rules of AuthorizationPolicies in force here.")
_compiled = metrics.histogram(
    "policy_compile_seconds",
    "Time that it took to read and compile a revision.",
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0),
)


class Held:
    """`lock` is held by whoever makes the next state; reading needs none."""

    def __init__(self, *, store: Store, index: AuthorizedIndex, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._index = index
        self.settings = settings
        self._clock = clock
        self.lock = asyncio.Lock()
        self.grants: Mapping[str, Grant] = {}
        self.invariants = ""
        self.holding: Holding | None = None
        """The invariants that were checked last, and for what: not always what is in force."""
        self._state: State | None = None
        self._candidates: Candidates | None = None
        self._made: Made | None = None  # while there is nothing to be decided: of many entries it takes room
        self._unreadable = ""
        self._listeners: list[Callable[[], None]] = []
        self._changed = asyncio.Event()
        self._heard = asyncio.Event()
        self._news: set[str] = set()
        self._entries_moved = asyncio.Event()
        self._looking_took = 0.0

    @property
    def state(self) -> State:
        """What is in force. Raises Unavailable while there is nothing that could be read."""
        if self._state is None:
            raise self._cannot_be_read()
        return self._state

    @property
    def candidates(self) -> Candidates | None:
        """What agents are sent of it; None while there is nothing."""
        return self._candidates

    @property
    def addresses(self) -> frozenset[str]:
        """Where the key sets are that are needed."""
        return frozenset() if self._state is None else addresses_of(self._state)

    @property
    def targets(self) -> Targets:
        """Who can be called, by what entries make now."""
        return partial(all_targets, self._made or frozenset())

    async def know_targets(self) -> None:
        """Looks at the entries, unless that was done: somebody will ask for decisions."""
        if self._made is None:
            self._made = await self._look()

    def problem(self) -> Problem | None:
        """For the health report: the server's work goes on, with what could be read last."""
        if not self._unreadable:
            return None
        detail = f"policies cannot be read: {self._unreadable}"
        return Problem(reason="POLICY_UNREADABLE", detail=detail, hint="the last good ones hold")

    def on_changed(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after each swap."""
        self._listeners.append(listener)

    async def load(self) -> None:
        """Everything from the store. What cannot be read leaves what is in force as it is."""
        book = await self._store.policies.load()
        self.grants, self.invariants = book.grants, book.invariants
        if book.objects or self.settings.mesh.open_namespaces:
            self._made = await self._look()
        try:
            await self.compiled(lambda: book_state(book.number, book.objects, self.settings, self.targets, self._state))
        except Refused as error:
            self._unreadable = "; ".join(map(str, error.problems[:3]))
            logger.error("policies cannot be read", reason="POLICY_UNREADABLE", detail=self._unreadable)

    async def compiled(self, work: Callable[[], State]) -> None:
        """Makes a state beside the loop, and puts it in force."""
        state, pieces = await self.prepared(work)
        self.swap(state, pieces)

    async def prepared(self, work: Callable[[], State]) -> tuple[State, Candidates]:
        """Makes a state and what agents are sent of it, beside the loop."""
        before, begun = self._candidates, time.perf_counter()

        def both() -> tuple[State, Candidates]:
            state = work()
            return state, candidates(state, before)

        made = await to_thread(both)
        _compiled.observe(time.perf_counter() - begun)
        return made

    def swap(self, state: State, pieces: Candidates) -> None:
        """From now on this is in force."""
        self._state, self._candidates, self._unreadable = state, pieces, ""
        _revision.set(state.revision)
        _objects.set(len(state.objects))
        _rules.set(sum(len(policy.rules or ()) for policy in state.parsed.policies))
        self.tell()

    def tell(self) -> None:
        """Something of what agents are sent may be new."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener in self._listeners:
            listener()

    async def wait_changed(self, revision: int) -> int:
        """Returns the revision in force when it is above `revision`."""
        while self._state is None or self._state.revision <= revision:
            await self._changed.wait()
        return self._state.revision

    def on_applied(self, applied: Applied) -> None:
        """The follower saw changes; what they are to policies is looked at by `run` and `run_entries`."""
        self._news |= applied.policies | ({""} if applied.everything else set())
        if self._news:
            self._heard.set()
        if applied.entries or applied.everything:
            self._entries_moved.set()

    async def run(self) -> None:
        """Until cancelled: takes over what other servers wrote."""
        while True:
            await self._heard.wait()
            await self._surely(self.follow)

    async def run_entries(self) -> None:
        """Until cancelled: takes over what entries make of who can be called."""
        while True:
            await self._entries_moved.wait()
            await self._clock.sleep(max(SETTLE_SECONDS, SHARE * self._looking_took))
            await self._surely(self._look_at_entries)

    async def _surely(self, work: Callable[[], Awaitable[None]]) -> None:
        """A store that is away is no reason to end; what could not be done is done later."""
        try:
            await work()
        except Unavailable as error:
            logger.warning("cannot follow policies now", reason=error.reason, detail=error.detail)
            await self._clock.sleep(RETRY_SECONDS)

    async def follow(self) -> None:
        """Reads what is newer than what is in force."""
        self._heard.clear()
        news, self._news = self._news, set()
        try:
            async with self.lock:
                self.grants, self.invariants = await self._store.policies.rules()
                known = 0 if self._state is None else self._state.revision
                if any(name == "" or (name.isdecimal() and int(name) > known) for name in news):
                    await self.load()
        except BaseException:
            self._news |= news
            self._heard.set()
            raise

    async def catch_up(self, revision: int) -> None:
        """Returns when what is in force is no older than a revision that the store has. Raises Unavailable
        POLICY_UNREADABLE where that cannot be read."""
        self._news.add(str(revision))
        await self.follow()
        if self._unreadable:
            raise self._cannot_be_read()

    async def _look_at_entries(self) -> None:
        """Recompiles where entries make other targets than before."""
        self._entries_moved.clear()
        begun = time.perf_counter()
        if self._made is not None and (made := await self._look()) != self._made:
            async with self.lock:
                self._made, state = made, self._state
                if state is not None:
                    await self.compiled(
                        lambda: book_state(state.revision, state.objects, self.settings, self.targets, state)
                    )
        self._looking_took = time.perf_counter() - begun

    async def _look(self) -> Made:
        return await to_thread(made_by, self._index.all_entries())

    def _cannot_be_read(self) -> Unavailable:
        return Unavailable(
            f"policies cannot be read: {self._unreadable}",
            reason="POLICY_UNREADABLE",
            hint="was the store written by a newer version?",
        )
