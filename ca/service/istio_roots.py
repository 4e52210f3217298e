"""Keeps the trust bundle where Istio's proxies look for it: ConfigMap `istio-ca-root-cert` of each namespace.

Only what carries our mark is ever changed (`ca.publish.kube_copy`). One of another owner is left alone, and said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from ca.errors import BurgeeError, NotFound
from ca.identity.bundle import TrustBundle
from ca.identity.bundle_pem import format_pem
from ca.publish.kube_copy import LABELS, KubeCopy
from ca.runtime import log, metrics
from ca.runtime.health import Problem
from ca.runtime.istio_config import ALL_NAMESPACES
from ca.runtime.kube import KubeClient, object_path
from ca.runtime.kube_cluster import text_at
from ca.runtime.kube_watch import version_of, with_query
from ca.service.trust import Trust

NAME = "istio-ca-root-cert"
KEY = "root-cert.pem"
FOREIGN = "PUBLISH_FOREIGN"
OUR_LABELS = {**LABELS, "istio.io/config": "true"}

EVERY_SECONDS = 5.0
"""A new namespace has its ConfigMap so soon; pods that came before it wait for their volume."""

AT_ONCE = 8

logger = log.get("istio-roots")

_held = metrics.gauge("istio_root_config_maps", "ConfigMaps that hold the trust bundle for Istio.", ["cluster"])

Object = Mapping[str, Any]


class RootConfigMaps:
    """Of one cluster."""

    def __init__(self, *, cluster: str, api: KubeClient, namespaces: tuple[str, ...], trust: Trust) -> None:
        self._cluster = cluster
        self._api = api
        self._everywhere = ALL_NAMESPACES in namespaces
        self._namespaces = namespaces
        self._trust = trust
        self._changed = asyncio.Event()
        self._faults: dict[str, BurgeeError] = {}
        self._text = ""
        self._kept: dict[str, str] = {}  # by namespace, the version of the one that holds this text
        self._there: dict[str, str] = {}  # the version of the one that was listed last
        self._foreign: dict[str, tuple[str, BurgeeError]] = {}  # the version of one that is somebody else's
        trust.on_change(self._on_change)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            await self.publish()
            try:
                await asyncio.wait_for(self._changed.wait(), EVERY_SECONDS)
            except TimeoutError:
                pass

    async def publish(self) -> None:
        """Looks at every namespace now. What fails is shown by `check` and tried again; it stops no other namespace."""
        try:
            text = format_pem(self._trust.own)
            if text != self._text:
                self._text = text
                self._kept.clear()
            namespaces, good = await self._found()
        except BurgeeError as error:
            self._tell({"": error})
            return
        turns = asyncio.Semaphore(AT_ONCE)
        done = await asyncio.gather(*(self._keep(namespace, text, turns) for namespace in namespaces))
        self._tell(
            {name: found for name, found in zip(namespaces, done, strict=True) if isinstance(found, BurgeeError)}
        )
        _held.labels(self._cluster).set(good + sum(found is True for found in done))

    def check(self) -> Problem | None:
        """For ca.runtime.health: a warning."""
        if not self._faults:
            return None
        namespace, error = min(self._faults.items(), key=lambda item: item[0])
        where = f"in {len(self._faults)} namespaces, such as `{namespace}`" if namespace else "anywhere"
        return Problem(
            reason=error.reason,
            detail=f"the trust bundle cannot be kept in cluster `{self._cluster}` {where}: {error.detail}",
            hint=error.hint or "proxies that start there may not find it",
        )

    async def _found(self) -> tuple[list[str], int]:
        """The namespaces whose ConfigMap is to be looked at, and in how many others it is as we left it.

        Of all of them only the versions are listed: what tenants put beside our key may be large.
        """
        if not self._everywhere:
            return list(self._namespaces), 0
        spaces = await self._api.list("/api/v1/namespaces")
        named = with_query("/api/v1/configmaps", fieldSelector=f"metadata.name={NAME}")
        maps = await self._api.list(named, metadata_only=True)
        self._there = {text_at(one, "metadata", "namespace"): version_of(one) for one in maps.items}
        good = {name for name, version in self._there.items() if self._kept.get(name) == version}
        names = [text_at(one, "metadata", "name") for one in spaces.items if not _ends(one)]
        return [name for name in names if name not in good], len(good.intersection(names))

    async def _keep(self, namespace: str, text: str, turns: asyncio.Semaphore) -> bool | BurgeeError:
        """Whether it holds the bundle; False for a namespace that is not there (yet, or any more)."""
        copy = KubeCopy(
            self._api,
            collection=object_path("/api/v1/namespaces", namespace, "configmaps"),
            name=NAME,
            head={"apiVersion": "v1", "kind": "ConfigMap"},
            trust_domain=self._trust.trust_domain,
            where=f"ConfigMap `{namespace}/{NAME}`",
        )
        before = self._there.get(namespace, "")
        version, foreign = self._foreign.get(namespace, ("", None))
        if foreign is not None and version == before:
            return foreign  # nobody touched it
        async with turns:
            self._kept.pop(namespace, None)
            self._foreign.pop(namespace, None)
            try:
                if await copy.keep({"data": {KEY: text}}, OUR_LABELS):
                    logger.info("trust bundle published", cluster=self._cluster, namespace=namespace)
            except NotFound:
                return False
            except BurgeeError as error:
                if before and error.reason == FOREIGN:
                    self._foreign[namespace] = before, error
                return error
            self._kept[namespace] = copy.version
        return True

    def _tell(self, faults: dict[str, BurgeeError]) -> None:
        """To the log once for each namespace and reason."""
        for namespace in _news(faults, self._faults):
            error = faults[namespace]
            logger.warning(
                "the trust bundle cannot be kept",
                cluster=self._cluster,
                namespace=namespace,
                reason=error.reason,
                detail=error.detail,
            )
        self._faults = faults

    def _on_change(self, bundle: TrustBundle) -> None:
        if bundle.trust_domain == self._trust.trust_domain:
            self._changed.set()


def _news(now: Mapping[str, BurgeeError], before: Mapping[str, BurgeeError]) -> Iterable[str]:
    return (name for name in sorted(now) if name not in before or before[name].reason != now[name].reason)


def _ends(namespace: Object) -> bool:
    """Nothing can be made in it any more."""
    return text_at(namespace, "status", "phase") == "Terminating"
