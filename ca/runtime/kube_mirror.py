"""What the API server has at a path, kept as of now: a list, then a watch, then both again for as long as it takes.

What was known stays until a whole new list replaces it: an API server that is away, or that answers half, takes
nothing away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from ca.errors import BurgeeError, Unavailable
from ca.ports import Clock
from ca.runtime import log, metrics
from ca.runtime.kube import KubeClient
from ca.runtime.kube_watch import Listing, Object, version_of

V = TypeVar("V")

FIRST_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 5.0
_log = log.get("kube")
_lists = metrics.counter("kube_lists", "Whole lists that were read from a Kubernetes API server.", ["what"])


class Mirror(Generic[V]):
    """`read` makes a value of an object, or None for one that is left out. `what` names it in logs (`pods`).

    `changed(key, before, after, seen)` is called for each difference, at once; `seen` says that a watch told of it, and
    not that two lists differ. `run` never returns and raises nothing: `problem` is what is wrong now.
    """

    def __init__(
        self,
        client: KubeClient,
        path: str,
        read: Callable[[Object], V | None],
        *,
        what: str,
        clock: Clock,
        changed: Callable[[str, V | None, V | None, bool], None],
        metadata_only: bool = False,
    ) -> None:
        self.items: dict[str, V] = {}
        self.synced = False
        self.problem: BurgeeError | None = None
        self.on_synced: Callable[[], None] = lambda: None
        self.what = what
        self._client = client
        self._path = path
        self._read = read
        self._clock = clock
        self._changed = changed
        self._metadata_only = metadata_only
        self._said = ""
        self._version = ""
        self._progress = False

    async def run(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            self._progress = False
            try:
                if not self._version:
                    self._replace(await self._client.list(self._path, metadata_only=self._metadata_only))
                await self._follow()
                await self._clock.sleep(FIRST_BACKOFF_SECONDS)
                continue
            except BurgeeError as error:
                if error.reason != "HTTP_UNREACHABLE":
                    self._version = ""  # what was refused or garbled is begun anew; what broke off goes on
                if error.reason == "KUBE_GONE" and self._progress:
                    continue
                self._complain(error)
            backoff = FIRST_BACKOFF_SECONDS if self._progress else min(backoff * 2, MAX_BACKOFF_SECONDS)
            await self._clock.sleep(backoff * (0.5 + random.random()))  # noqa: S311 - no secret

    async def _follow(self) -> None:
        """One watch, until the API server ends it or an error does."""
        watching = self._client.watch(self._path, self._version, metadata_only=self._metadata_only, opened=self._well)
        async with aclosing(watching) as events:
            async for kind, value in events:
                self._version = version_of(value)
                self._progress = True
                if kind != "BOOKMARK":
                    self._take(key_of(value), None if kind == "DELETED" else self._read(value))
        self._progress = True

    def _well(self) -> None:
        self.problem, self._said = None, ""

    def _take(self, key: str, value: V | None) -> None:
        before = self.items.get(key)
        if value is None:
            self.items.pop(key, None)
        else:
            self.items[key] = value
        self._differ(key, before, value, seen=True)

    def _replace(self, listing: Listing) -> None:
        """Everything as of one moment."""
        found: dict[str, V] = {}
        for item in listing.items:
            value = self._read(item)
            if value is not None:
                found[key_of(item)] = value
        before, self.items = self.items, found
        for key in before.keys() | found.keys():
            self._differ(key, before.get(key), found.get(key), seen=False)
        _lists.labels(self.what).inc()
        self._well()
        if not self.synced:
            self.synced = True
            _log.info("following", what=self.what, count=len(found))
        self._version = listing.resource_version
        self.on_synced()

    def _differ(self, key: str, before: V | None, after: V | None, *, seen: bool) -> None:
        if before != after:
            self._changed(key, before, after, seen)

    def _complain(self, error: BurgeeError) -> None:
        self.problem = error
        if error.reason != self._said:
            self._said = error.reason
            _log.warning("cannot follow", what=self.what, reason=error.reason, detail=error.detail)


def key_of(value: Object) -> str:
    """`namespace/name`, or the name alone of what has no namespace. Raises Unavailable KUBE_ANSWER."""
    meta = value.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or not isinstance(name, str) or not name:
        raise Unavailable("a Kubernetes API answered with an object without a name", reason="KUBE_ANSWER")
    namespace = meta.get("namespace")
    return f"{namespace}/{name}" if namespace else name
