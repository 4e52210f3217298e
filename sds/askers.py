"""Callers who ask often: a connection is attested at its first question and followed like a stream from then on.

Its session is a subscription as an open stream has one: the caller is attested again at intervals, and it ends when the
process ends, becomes another, or has asked nothing for a while.
"""

from __future__ import annotations

import asyncio

from ca.errors import BurgeeError, Denied, Unavailable
from ca.ports import Clock
from sds.cache import Cache, Subscription
from sds.explain import no_identity
from sds.views import Content
from sds.workloads import Caller, Workloads

IDLE_SECONDS = 30.0


class Asker:
    """One connection. `ids` are the SPIFFE IDs that its process holds now, sorted."""

    def __init__(self, caller: Caller, subscription: Subscription, cache: Cache) -> None:
        self.caller = caller
        self.subscription = subscription
        self.used_at = 0.0
        self.memo: object = None
        """Whoever answers may keep here what holds while `content` is the same."""
        self._cache = cache
        self._content: Content | None = None
        self._ids: tuple[str, ...] = ()

    @property
    def content(self) -> Content:
        """What it may have now. Raises what ended the session."""
        self.subscription.check()
        return self._cache.content(self.subscription.view)

    @property
    def ids(self) -> tuple[str, ...]:
        """Raises what ended the session."""
        content = self.content
        if content is not self._content:
            self._content = content
            self._ids = tuple(sorted({str(entry.spiffe_id) for entry in content.entries}))
        return self._ids


class Askers:
    """Sessions by connection. `close` ends them."""

    def __init__(self, *, workloads: Workloads, cache: Cache, clock: Clock, idle_seconds: float = IDLE_SECONDS) -> None:
        self._workloads, self._cache, self._clock = workloads, cache, clock
        self._idle_seconds = idle_seconds
        self._known: dict[Caller, Asker] = {}
        self._starting: dict[Caller, asyncio.Task[Asker]] = {}
        self._following: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._known)

    async def of(self, caller: Caller) -> Asker:
        """The session of a connection. Raises what `Workloads.session` raises."""
        asker = self._known.get(caller)
        if asker is None or asker.subscription.ended:
            task = self._starting.get(caller)
            if task is None:
                task = self._starting[caller] = asyncio.create_task(self._start(caller))
                task.add_done_callback(lambda _: self._starting.pop(caller, None))
            asker = await asyncio.shield(task)
        asker.used_at = self._clock.monotonic()
        return asker

    async def close(self) -> None:
        """End every session."""
        for task in list(self._following):
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)

    async def _start(self, caller: Caller) -> Asker:
        ready: asyncio.Future[Asker] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._follow(caller, ready))
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return await ready

    async def _follow(self, caller: Caller, ready: asyncio.Future[Asker]) -> None:
        try:
            async with self._workloads.session(caller, needs_svid=False, patient=True) as subscription:
                asker = Asker(caller, subscription, self._cache)
                asker.used_at = self._clock.monotonic()
                self._known[caller] = asker
                try:
                    ready.set_result(asker)
                    await self._until_idle(asker)
                finally:
                    subscription.end(_over)
                    if self._known.get(caller) is asker:
                        del self._known[caller]
        except BurgeeError as error:
            if not ready.done():
                ready.set_exception(error)
        finally:
            if not ready.done():
                ready.set_exception(_over())

    async def _until_idle(self, asker: Asker) -> None:
        while not getattr(asker.caller, "closed", False):
            left = asker.used_at + self._idle_seconds - self._clock.monotonic()
            if left <= 0:
                return
            try:
                async with asyncio.timeout(min(left, 5.0)):
                    await asker.subscription.changed()
            except TimeoutError:
                continue


def _over() -> BurgeeError:
    return Unavailable("the session with this caller is over", reason="SESSION_OVER")


def target_of(ids: tuple[str, ...], wanted: str) -> str:
    """Whose policies decide: one of the caller's own identities, the only one where the proxy names none.

    Raises Denied.
    """
    if wanted:
        if wanted in ids:
            return wanted
        raise Denied(
            "the caller does not hold the identity that it asks for",
            reason="TARGET_NOT_HELD",
            hint="a proxy is answered about its own workload alone",
        )
    if not ids:
        raise no_identity()
    if len(ids) > 1:
        raise Denied(
            f"the caller holds {len(ids)} identities and does not say for which it asks",
            reason="TARGET_AMBIGUOUS",
            hint="name one when the proxy's configuration is generated (`--spiffe-id`)",
        )
    return ids[0]
