"""Whose pods run on which node of a cluster, as its API server says; remembered for some seconds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from ca.ports import Clock
from ca.runtime.kube import KubeClient, object_path
from ca.runtime.kube_cluster import text_at
from ca.runtime.kube_watch import with_query

FRESH_SECONDS = 5.0
"""So long a pod that was there is believed to be. One that was not is always asked for anew: it may just have come."""

MAX_REMEMBERED = 4_096
MAX_ACCOUNTS = 1_024
"""Service accounts of one namespace that are looked at on one node; kubelets run some hundred pods."""


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    accounts: frozenset[str]


class NodePods:
    """For one cluster."""

    def __init__(self, api: KubeClient, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[frozenset[str]]] = {}

    async def has(self, node: str, namespace: str, account: str) -> bool:
        """Whether a pod of that service account is on that node, and has not failed. Raises what the client raises."""
        key = (node, namespace)
        if self._remembers(key, account):
            return True
        if (
            before := self._asking.get(key)
        ) is not None:  # asked before this caller came: what it says is good news only
            await asyncio.wait({before})
            if self._remembers(key, account):
                return True
        return account in await self._ask(key)

    def _remembers(self, key: tuple[str, str], account: str) -> bool:
        seen = self._seen.get(key)
        return seen is not None and account in seen.accounts and self._clock.monotonic() - seen.at < FRESH_SECONDS

    async def _ask(self, key: tuple[str, str]) -> frozenset[str]:
        """Callers that wait for the same answer share one question."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._list(*key))
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(task)

    def _forget(self, key: tuple[str, str], done: asyncio.Task[frozenset[str]]) -> None:
        if self._asking.get(key) is done:
            del self._asking[key]
        if not done.cancelled():
            done.exception()  # whoever waited was told; perhaps nobody did any more

    async def _list(self, node: str, namespace: str) -> frozenset[str]:
        at = self._clock.monotonic()
        pods = object_path("/api/v1/namespaces", namespace, "pods")
        listing = await self._api.list(with_query(pods, fieldSelector=f"spec.nodeName={node}"))
        found = [text_at(pod, "spec", "serviceAccountName") for pod in listing.items if _counts(pod, node)]
        accounts = frozenset(found[:MAX_ACCOUNTS])
        self._seen[(node, namespace)] = _Seen(at, accounts)
        self._seen.move_to_end((node, namespace))
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return accounts


def _counts(pod: dict[str, object], node: str) -> bool:
    """As Istio counts: all but those that have failed. The API server chose by node; its answer is looked at again."""
    return text_at(pod, "spec", "nodeName") == node and text_at(pod, "status", "phase") != "Failed"
