"""Who leads, of several that could: the holder of a Lease (coordination.k8s.io) that it renews while it lives.

Clocks of two machines need not agree: a Lease has expired when it was not renewed for its duration as *we* saw it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ca.errors import AlreadyExists, BurgeeError, FailedPrecondition, NotFound
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.kube import KubeClient, object_path
from ca.runtime.kube_watch import Object

_API = "/apis/coordination.k8s.io/v1/namespaces"
MAX_DURATION_SECONDS = 3600.0
_log = log.get("lease")


class LeaderElection:
    """`run` campaigns until it is cancelled. `leading` is true only while nobody else can be leading.

    Renewed every `renew_seconds`; given up by itself when that fails for `duration_seconds` less two of them. `changed`
    is called when `leading` or the Lease's `annotations` did.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        duration_seconds: float = 15.0,
        renew_seconds: float = 2.0,
        changed: Callable[[bool], None] = lambda leading: None,
    ) -> None:
        self.identity = identity
        self.annotations: dict[str, str] = {}
        self.holder = ""
        self.problem: BurgeeError | None = None
        self._client = client
        self._leases = object_path(_API, namespace, "leases")
        self._path = object_path(self._leases, name)
        self._meta = {"name": name, "namespace": namespace}
        self._clock = clock
        self._duration = duration_seconds
        self._renew = renew_seconds
        self._changed = changed
        self._until = float("-inf")
        self._told = False
        self._seen: tuple[Any, ...] = ()
        self._seen_at = float("-inf")
        self._held_for = duration_seconds

    @property
    def leading(self) -> bool:
        return self._clock.monotonic() < self._until

    async def run(self) -> None:
        try:
            while True:
                await self._try()
                await self._clock.sleep(self._renew)
        finally:
            await asyncio.shield(self._release())

    async def forget_annotation(self, name: str) -> None:
        """Takes it off the Lease. Raises as KubeClient.patch."""
        await self._client.patch(self._path, {"metadata": {"annotations": {name: None}}})
        self.annotations.pop(name, None)

    async def _try(self) -> None:
        asked = self._clock.monotonic()
        try:
            held = await self._held()
            self.problem = None
        except (AlreadyExists, FailedPrecondition):
            held = False  # somebody was faster
        except BurgeeError as error:
            if self.problem is None or self.problem.reason != error.reason:
                _log.warning("cannot hold the lease", reason=error.reason, detail=error.detail)
            self.problem, held = error, None
        if held:
            self._until = asked + self._duration - 2 * self._renew
        elif held is False:
            self._until = float("-inf")
        self._tell()

    async def _held(self) -> bool:
        try:
            lease = await self._client.get(self._path)
        except NotFound:
            self._note(await self._client.create(self._leases, self._body({}, 0)))
            return True
        self._note(lease)
        spec = _mapping(lease, "spec")
        mine = self.holder == self.identity
        if not mine and self.holder and not self._expired():
            return False
        changes = _number(spec, "leaseTransitions") + (not mine)
        self._note(await self._client.update(self._path, self._body(lease, changes, keep=mine)))
        return True

    def _note(self, lease: Object) -> None:
        spec = _mapping(lease, "spec")
        holder = spec.get("holderIdentity")
        self.holder = holder if isinstance(holder, str) else ""
        self._held_for = min(max(self._duration, _number(spec, "leaseDurationSeconds")), MAX_DURATION_SECONDS)
        found = _mapping(_mapping(lease, "metadata"), "annotations")
        annotations = {name: text for name, text in found.items() if isinstance(text, str)}
        if annotations != self.annotations:
            self.annotations = annotations
            self._changed(self.leading)
        seen = (self.holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock.monotonic()

    def _expired(self) -> bool:
        """By its holder's word, where that is longer than ours: it may be configured otherwise."""
        return self._clock.monotonic() - self._seen_at >= self._held_for

    def _body(self, lease: Object, transitions: int, *, keep: bool = False) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = _mapping(lease, "spec")
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "acquireTime": before.get("acquireTime", now) if keep else now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
        meta = _mapping(lease, "metadata") or self._meta
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}

    def _tell(self) -> None:
        if self.leading is not self._told:
            self._told = self.leading
            _log.info("leading" if self._told else "not leading", holder=self.holder, identity=self.identity)
            self._changed(self._told)

    async def _release(self) -> None:
        """Whoever waits need not wait for the end of it."""
        was, self._until = self.leading, float("-inf")
        self._tell()
        if not was:
            return
        try:
            async with asyncio.timeout(self._renew):
                lease = await self._client.get(self._path)
                if _mapping(lease, "spec").get("holderIdentity") == self.identity:
                    lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._client.update(self._path, lease)
        except (BurgeeError, TimeoutError):
            pass  # it expires by itself


def _mapping(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _number(value: Mapping[str, Any], key: str) -> int:
    found = value.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0
