"""What this agent holds for its workloads: entries, bundles, X.509-SVIDs, and who waits for a change of which of them.

Callers with the same selectors share one `View`; views that match the same entries share one `Content`, and so one set
of serialized responses, so that nobody makes the agent keep more of them by having ever other selectors. A view lives
while somebody subscribes to it; a few idle ones are kept, so that the next call of the same workload finds its bytes
made.
All methods run on the event loop's thread and none of them waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from weakref import WeakValueDictionary

from ca.errors import BurgeeError, Unavailable
from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock
from sds.entries import EntryIndex
from sds.feed import Change, Snapshot
from sds.gone import GoneEntries
from sds.idle import Idle
from sds.views import BundleForms, Content, WorkloadSvid, build
from sds.waiting import sleep_or

MANY_CHANGES = 64
"""From this many changed entries on, every live view is looked at anew instead of asking which are affected."""


class View:
    """Callers with one set of selectors. `settled`: every SVID is here, or has been waited for long enough.
    `explained`: the log says why they have no identity."""

    __slots__ = ("content", "deadline", "explained", "selectors", "settled", "subscribers", "waited_for")

    def __init__(self, selectors: frozenset[Selector]) -> None:
        self.selectors = selectors
        self.content: Content | None = None
        self.subscribers: set[Subscription] = set()
        self.settled = False
        self.explained = False
        self.deadline: float | None = None
        self.waited_for: frozenset[str] = frozenset()


class Subscription:
    """One stream's part in a view. `first`: is told of a change before the others (roots go before leaves). `share`:
    whose room it takes."""

    __slots__ = ("_error", "_event", "first", "needs_svid", "share", "view")

    def __init__(self, view: View, *, needs_svid: bool, share: str) -> None:
        self.view = view
        self.needs_svid = needs_svid
        self.share = share
        self.first = not needs_svid
        self._event = asyncio.Event()
        self._error: Callable[[], BurgeeError] | None = None

    def wake(self) -> None:
        self._event.set()

    def end(self, error: Callable[[], BurgeeError]) -> None:
        """Make the next (or present) wait raise; the first reason given stays."""
        if self._error is None:
            self._error = error
        self._event.set()

    @property
    def ended(self) -> bool:
        """Whether it was ended: `check` raises."""
        return self._error is not None

    def check(self) -> None:
        """Raises the error that ended this subscription, if one did."""
        if self._error is not None:
            raise self._error()

    async def changed(self) -> None:
        """Return after the next change, at once if there was one meanwhile; raises what ended the subscription."""
        await self._event.wait()
        self._event.clear()
        self.check()


class Cache:
    """See the module. `on_change` is called after entries, bundles or SVIDs changed; `on_demand` when a new view may
    want SVIDs that are not here. `patience_seconds`: how long a caller with several identities waits for the last.
    `not_ready` says why callers cannot be answered yet."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        *,
        clock: Clock,
        patience_seconds: float = 5.0,
        idle_views: int = 256,
        not_ready: Callable[[], BurgeeError] | None = None,
    ) -> None:
        self.trust_domain = trust_domain
        self.synced = False
        self._starting = not_ready or starting
        self.not_ready = self._starting
        self.on_change: list[Callable[[], None]] = []
        self.on_demand: list[Callable[[], None]] = []
        self._clock = clock
        self._patience = patience_seconds
        self._seen = clock.now()
        self._index = EntryIndex()
        self.gone = GoneEntries()
        self._bundles: dict[str, BundleForms] = {}
        self._svids: dict[str, WorkloadSvid] = {}
        self._became_ready = asyncio.Event()
        self._sooner = asyncio.Event()
        self._live: dict[frozenset[Selector], View] = {}
        self._idle: Idle[frozenset[Selector], View] = Idle(idle_views)
        self._contents: WeakValueDictionary[tuple[tuple[int, ...], ...], Content] = WeakValueDictionary()

    # --- what is here -------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether callers can be answered at all: the own trust bundle and a full set of entries are known."""
        return self.synced and self.trust_domain.name in self._bundles

    async def wait_ready(self, timeout_seconds: float = 10.0) -> None:
        """Until callers can be answered; raises Unavailable (AGENT_STARTING) when that takes longer."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._became_ready.wait()
        except TimeoutError:
            raise self.not_ready() from None

    def entries(self) -> list[RegistrationEntry]:
        return list(self._index.all())

    def entry(self, entry_id: str) -> RegistrationEntry | None:
        return self._index.get(entry_id)

    def matching(self, selectors: frozenset[Selector]) -> tuple[RegistrationEntry, ...]:
        """What callers with these selectors have earned, as of now."""
        return self._index.matching(selectors, self._clock.now())

    def bundles(self) -> list[TrustBundle]:
        return [forms.bundle for forms in self._bundles.values()]

    def bundle_forms(self) -> list[BundleForms]:
        """All bundles, the own first, then by name."""
        return sorted(self._bundles.values(), key=lambda f: (f.trust_domain != self.trust_domain, f.trust_domain.name))

    def bundle(self, trust_domain: TrustDomain) -> TrustBundle | None:
        forms = self._bundles.get(trust_domain.name)
        return forms.bundle if forms else None

    def svids(self) -> list[WorkloadSvid]:
        return list(self._svids.values())

    def svid(self, entry_id: str) -> WorkloadSvid | None:
        return self._svids.get(entry_id)

    def next_expiry(self) -> datetime | None:
        """When the first of the SVIDs that still hold ends."""
        now = self._clock.now()
        return min((svid.not_after for svid in self._svids.values() if svid.not_after > now), default=None)

    def streams(self) -> int:
        return sum(len(view.subscribers) for view in self._live.values())

    def in_use(self) -> set[str]:
        """Entries whose X.509-SVID somebody is subscribed to."""
        return {
            entry.id
            for view in self._live.values()
            if any(subscription.needs_svid for subscription in view.subscribers)
            for entry in self.content(view).entries
        }

    # --- who wants it -------------------------------------------------------------------------------------------

    def subscribe(self, selectors: frozenset[Selector], *, needs_svid: bool, share: str = "") -> Subscription:
        """Join the view of these selectors, for a workload of this share.

        Raises Unavailable while the agent initialises (Endpoint App. A, E26).
        """
        if not self.ready:
            raise self.not_ready()
        subscription = Subscription(self._enter(selectors), needs_svid=needs_svid, share=share)
        self._join(subscription)
        return subscription

    def move(self, subscription: Subscription, selectors: frozenset[Selector]) -> None:
        """The caller turned out to have other selectors: serve it from their view from now on."""
        self.unsubscribe(subscription)
        subscription.view = self._enter(selectors)
        self._join(subscription)
        subscription.wake()

    def unsubscribe(self, subscription: Subscription) -> None:
        view = subscription.view
        view.subscribers.discard(subscription)
        if not view.subscribers and self._live.pop(view.selectors, None) is not None:
            self._idle.put(view.selectors, view, subscription.share)

    def content(self, view: View) -> Content:
        """The view's content as of now: never with an SVID or entry that has expired meanwhile."""
        content = view.content
        if content is None or content.valid_until <= self._clock.now():
            self._refresh(view)
            content = view.content
        if content is None:
            raise self.not_ready()
        return content

    def _enter(self, selectors: frozenset[Selector]) -> View:
        view = self._live.get(selectors) or self._idle.pop(selectors) or View(selectors)
        self._live[selectors] = view
        return view

    def _join(self, subscription: Subscription) -> None:
        view = subscription.view
        view.subscribers.add(subscription)
        content = self.content(view)
        if subscription.needs_svid and not content.complete:
            self._settle(view, content, again=view.settled and not content.svids)
            for callback in self.on_demand:
                callback()

    # --- changes ------------------------------------------------------------------------------------------------

    def apply(self, update: Snapshot | Change) -> None:
        """Take over what the server sent (a snapshot is everything) and tell the streams that it concerns."""
        changed = self._apply_entries(update)
        bundles_changed = self._apply_bundles(update)
        first = not self.synced
        self.synced = True
        if self.ready:
            self._became_ready.set()
            self.not_ready = self._starting
        if changed or bundles_changed or first:
            self._after(changed, everything=bundles_changed or first)

    def put_svids(self, svids: Iterable[WorkloadSvid]) -> None:
        """Take over SVIDs; one whose entry has gone or changed its SPIFFE ID meanwhile is dropped."""
        changed: dict[str, list[RegistrationEntry]] = {}
        for svid in svids:
            entry = self._index.get(svid.entry_id)
            if entry is not None and entry.spiffe_id == svid.spiffe_id:
                self._svids[svid.entry_id] = svid
                changed[svid.entry_id] = [entry]
        if changed:
            self._after(changed)

    def drop_svids(self, entry_ids: Iterable[str]) -> None:
        """Forget SVIDs, e.g. those that nobody uses."""
        dropped: dict[str, list[RegistrationEntry]] = {
            entry_id: [] for entry_id in entry_ids if self._svids.pop(entry_id, None) is not None
        }
        if dropped:
            self._after(dropped)

    def clear(self, error: Callable[[], BurgeeError]) -> None:
        """Forget everything; `error` ends every stream and answers every call until the next snapshot."""
        self.not_ready = error
        subscriptions = [subscription for view in self._live.values() for subscription in view.subscribers]
        self._index, self._bundles, self._svids = EntryIndex(), {}, {}
        self.gone.clear()
        self.synced = False
        self._became_ready.clear()
        self._idle.clear()
        for view in self._live.values():
            view.content = None
        for subscription in subscriptions:
            subscription.end(error)
        self._after({})

    async def run(self) -> None:
        """Do what time alone causes, when it is time, for ever."""
        while True:
            self._sooner.clear()
            await sleep_or(self._clock, self.tick(), self._sooner)

    def tick(self) -> float:
        """Do what time alone causes; returns in how many seconds (at most 5) it wants to be called again."""
        now, mono = self._clock.now(), self._clock.monotonic()
        wait = 5.0
        if now < self._seen:  # the wall clock was set back: what had expired is valid again
            for view in (*self._live.values(), *self._idle):
                view.content = None
        self._seen = now
        for view in list(self._live.values()):
            content = view.content
            overdue = view.deadline is not None and view.deadline <= mono
            if content is None or overdue or content.valid_until <= now:
                self._refresh(view)
                content = view.content
            if view.deadline is not None:
                wait = min(wait, view.deadline - mono)
            if content is not None:
                wait = min(wait, (content.valid_until - now).total_seconds())
        return max(wait, 0.001)

    def _apply_entries(self, update: Snapshot | Change) -> dict[str, list[RegistrationEntry]]:
        """Entry id → the entry before and after, for those that changed."""
        if isinstance(update, Snapshot):
            removed = {entry.id for entry in self._index.all()} - {entry.id for entry in update.entries}
        else:
            removed = set(update.removed_entries)
        changed: dict[str, list[RegistrationEntry]] = {}
        for entry_id in removed:
            before = self._index.get(entry_id)
            if before is not None and self._index.remove(entry_id):
                self._svids.pop(entry_id, None)
                self.gone.put(before, self._clock.now())
                changed[entry_id] = [before]
        for entry in update.entries:
            before = self._index.get(entry.id)
            if self._index.put(entry):
                changed[entry.id] = [entry] if before is None else [before, entry]
                if before is not None and before.spiffe_id != entry.spiffe_id:
                    self._svids.pop(entry.id, None)
        return changed

    def _apply_bundles(self, update: Snapshot | Change) -> bool:
        changed = False
        if isinstance(update, Snapshot):
            gone = self._bundles.keys() - {bundle.trust_domain.name for bundle in update.bundles}
        else:
            gone = {domain.name for domain in update.removed_bundles}
        for name in gone - {self.trust_domain.name}:
            changed |= self._bundles.pop(name, None) is not None
        for bundle in update.bundles:
            known = self._bundles.get(bundle.trust_domain.name)
            if known is None or known.bundle != bundle:
                self._bundles[bundle.trust_domain.name] = BundleForms(bundle)
                changed = True
        return changed

    def _after(self, changed: dict[str, list[RegistrationEntry]], *, everything: bool = False) -> None:
        for idle in self._idle:
            idle.content = None
        everything = everything or len(changed) >= MANY_CHANGES
        for view in list(self._live.values()):
            if everything or _concerns(view, changed):
                self._refresh(view)
        for callback in self.on_change:
            callback()

    def _refresh(self, view: View) -> None:
        own = self._bundles.get(self.trust_domain.name)
        if own is None:
            return
        now = self._clock.now()
        entries = self._index.matching(view.selectors, now)
        content = self._shared(build(entries, self._svids, own, self._bundles, now))
        settled = view.settled
        self._settle(view, content)
        if content.same_as(view.content):
            content = view.content or content  # keep the encodings that are made
        changed = content is not view.content or settled != view.settled
        if content is not view.content:
            view.explained = False
        view.content = content
        if changed:
            for subscription in sorted(view.subscribers, key=lambda s: not s.first):
                subscription.wake()

    def _shared(self, content: Content) -> Content:
        """The one that another view has already, if they are the same."""
        return self._contents.setdefault(content.key, content)

    def _settle(self, view: View, content: Content, *, again: bool = False) -> None:
        """Decide whether to wait for SVIDs that are not here yet: once for each, `patience_seconds` long."""
        here = {entry.id for entry, _ in content.svids}
        missing = frozenset(entry.id for entry in content.entries if entry.id not in here)
        mono = self._clock.monotonic()
        if not missing:
            view.deadline = None
        elif again or missing - view.waited_for:
            view.deadline = mono + self._patience
        elif view.deadline is not None and view.deadline <= mono:
            view.deadline = None
        view.waited_for = missing
        self._sooner.set()
        view.settled = view.deadline is None


def starting() -> Unavailable:
    """Endpoint App. A (E26): the agent initialises; the caller may come again."""
    return Unavailable("the agent is starting", reason="AGENT_STARTING", hint="try again in a moment")


def _concerns(view: View, changed: dict[str, list[RegistrationEntry]]) -> bool:
    if view.content is None or any(entry.id in changed for entry in view.content.entries):
        return True
    return any(entry.selectors <= view.selectors for entries in changed.values() for entry in entries)
