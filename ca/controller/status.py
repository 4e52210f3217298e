"""Says in the objects themselves what became of them: statistics, conditions, and an event where something is wrong."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ca.controller.reconciler import Reconciler
from ca.controller.render import NOTHING
from ca.controller.values import Resource
from ca.controller.world import STATIC, World
from ca.errors import BurgeeError, NotFound
from ca.ports import Clock
from ca.runtime import log
from ca.runtime.kube import KubeClient, object_path
from ca.runtime.kube_watch import Object

GROUP = "/apis/spire.spiffe.io/v1alpha1"
PLURALS = {
    "ClusterSPIFFEID": "clusterspiffeids",
    "ClusterStaticEntry": "clusterstaticentries",
    "ClusterFederatedTrustDomain": "clusterfederatedtrustdomains",
}
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
MAX_MESSAGE_BYTES = 1000
PACE_SECONDS = 0.5
"""The least time between two looks: a status is for people."""
_FAILURES_SHOWN = 3
_log = log.get("status")


class StatusWriter:
    """`poke` after a change; `run` writes what differs. A status that cannot be written is tried again."""

    def __init__(
        self,
        *,
        client: KubeClient,
        reconciler: Reconciler,
        clock: Clock,
        identity: str,
        may_act: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._reconciler = reconciler
        self._world = reconciler.world
        self._clock = clock
        self._identity = identity
        self._may_act = may_act
        self._wake = asyncio.Event()
        self._told: dict[str, str] = {}

    def poke(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._may_act() and not await self._write_all():
                self._wake.set()
            await self._clock.sleep(PACE_SECONDS)

    async def _write_all(self) -> bool:
        """Whether all of it could be written."""
        whole = True
        for resource, status, problem in statuses(self._reconciler, datetime.now(UTC)):
            if resource.status != status:
                whole &= await self._write(resource, status)
            if problem and self._told.get(resource.uid) != problem:
                self._told[resource.uid] = problem
                await self._tell(resource, problem)
            elif not problem:
                self._told.pop(resource.uid, None)
        return whole

    async def _write(self, resource: Resource, status: Object) -> bool:
        path = object_path(f"{GROUP}/{PLURALS[resource.kind]}", resource.name, "status")
        try:
            await self._client.patch(path, {"metadata": {"uid": resource.uid}, "status": status})
        except NotFound:
            return True
        except BurgeeError as error:
            _log.warning("status not written", kind=resource.kind, name=resource.name, reason=error.reason)
            return error.reason in ("KUBE_CONFLICT", "KUBE_INVALID")  # another object of that name by now
        return True

    async def _tell(self, resource: Resource, problem: str) -> None:
        """An event of `kubectl describe`; none is worth more than one try."""
        reason, _, note = problem.partition(": ")
        now = datetime.now(UTC)
        digest = hashlib.sha256(f"{resource.uid}{problem}{now.timestamp()}".encode()).hexdigest()[:16]
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{resource.name[:230]}.{digest}", "namespace": "default"},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "burgee-controller",
            "reportingInstance": self._identity[:128],
            "action": "Reconcile",
            "reason": reason,
            "type": "Warning",
            "note": note,
            "regarding": {
                "apiVersion": GROUP.removeprefix("/apis/"),
                "kind": resource.kind,
                "name": resource.name,
                "uid": resource.uid,
            },
        }
        try:
            await self._client.create(EVENTS, event)
        except BurgeeError as error:
            _log.info("event not written", kind=resource.kind, name=resource.name, reason=error.reason)


def statuses(reconciler: Reconciler, now: datetime) -> list[tuple[Resource, Object, str]]:
    """Each object of ours, its status as it ought to be, and what is wrong with it (`Reason: sentence`) or nothing."""
    world = reconciler.world
    counts = _counts(reconciler)
    return [
        *(_spiffe_id(world, rule.resource, rule.problem, counts, now) for rule in world.rules),
        *(_static(world, one, counts, now) for one in world.of_kind("ClusterStaticEntry")),
        *(_federated(one, now) for one in world.of_kind("ClusterFederatedTrustDomain")),
    ]


class _Counts:
    """By the UID of the object: what its pods came to, and the first failures in words."""

    def __init__(self) -> None:
        self.by: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.words: dict[str, list[str]] = {}

    def add(self, owner: str, name: str, words: str = "") -> None:
        self.by[owner][name] += 1
        if words and len(said := self.words.setdefault(owner, [])) < _FAILURES_SHOWN and words not in said:
            said.append(words)


def _counts(reconciler: Reconciler) -> _Counts:
    counts = _Counts()
    world = reconciler.world
    for group, plan in world.plans.items():
        pod = world.pods.get(group)
        name = f"pod {pod.meta.namespace}/{pod.meta.name}: " if pod is not None else ""
        for owner in plan.selected:
            counts.add(owner, "podsSelected")
        for owner in plan.masked:
            counts.add(owner, "entriesMasked")
        for owner, error in plan.failed.items():
            counts.add(owner, "podEntryRenderFailures", name + error.detail)
        for entry_id, wanted in plan.wanted.items():
            if entry_id in reconciler.foreign:
                counts.add(wanted.owner, "entriesMasked")
                continue
            counts.add(wanted.owner, "entriesToSet")
            if entry_id in reconciler.refused:
                counts.add(wanted.owner, "entryFailures", f"{name}{reconciler.refused[entry_id][1]}")
    return counts


def _spiffe_id(
    world: World, resource: Resource, problem: BurgeeError | None, counts: _Counts, now: datetime
) -> tuple[Resource, Object, str]:
    rule = next(one for one in world.rules if one.uid == resource.uid)
    chosen = [one.name for one in world.namespaces.values() if rule.namespaces.matches(one.labels)]
    found = counts.by.get(resource.uid, Counter())
    stats = {
        "namespacesSelected": len(chosen) if problem is None else 0,
        "namespacesIgnored": sum(world.is_ignored(name) for name in chosen) if problem is None else 0,
        **{name: found[name] for name in ("podsSelected", "podEntryRenderFailures", "entriesMasked")},
        **{name: found[name] for name in ("entriesToSet", "entryFailures")},
    }
    words = "; ".join(counts.words.get(resource.uid, ()))
    if problem is not None:
        wrong = f"Invalid: {problem.detail}; what it led to before stays as it is"
    elif found["podEntryRenderFailures"]:
        wrong = f"RenderFailed: {words}"
    elif found["entryFailures"]:
        wrong = f"EntryRefused: {words}"
    else:
        wrong = ""
    return resource, {"stats": stats, **_ready(resource, wrong, now)}, wrong


def _static(world: World, resource: Resource, counts: _Counts, now: datetime) -> tuple[Resource, Object, str]:
    plan = world.plans.get(STATIC, NOTHING)
    found = counts.by.get(resource.uid, Counter())
    failed = plan.failed.get(resource.uid)
    refused = bool(found["entryFailures"])
    wrong = ""
    if failed is not None:
        wrong = f"Invalid: {failed.detail}; what it led to before stays as it is"
    elif refused:
        wrong = f"EntryRefused: {'; '.join(counts.words.get(resource.uid, ()))}"
    status = {
        "rendered": failed is None,
        "masked": bool(found["entriesMasked"]),
        "set": bool(found["entriesToSet"]) and not refused,
        **_ready(resource, wrong, now),
    }
    return resource, status, wrong


def _federated(resource: Resource, now: datetime) -> tuple[Resource, Object, str]:
    said = "this server does not federate yet: the trust domain's bundle is not fetched"
    condition = _condition(resource, "FederationNotEnabled", "True", "NotBuilt", said, now)
    return resource, {"conditions": [condition]}, f"FederationNotEnabled: {said}"


def _ready(resource: Resource, wrong: str, now: datetime) -> Mapping[str, Any]:
    reason, _, message = wrong.partition(": ")
    state = ("False", reason, message) if wrong else ("True", "Applied", "every entry is there")
    return {"conditions": [_condition(resource, "Ready", *state, now)]}


def _condition(resource: Resource, kind: str, status: str, reason: str, message: str, now: datetime) -> Object:
    """`lastTransitionTime` stays while the status does."""
    given = resource.status.get("conditions")
    known = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    before = next((one for one in known if one.get("type") == kind), {})
    since = before.get("lastTransitionTime") if before.get("status") == status else None
    return {
        "type": kind,
        "status": status,
        "observedGeneration": resource.generation,
        "lastTransitionTime": since or now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "reason": reason,
        "message": message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore"),
    }
