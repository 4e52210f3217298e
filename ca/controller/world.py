"""What the cluster looks like now, and what follows from it: told of changes, it knows which plans are out of date."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ca.controller.config import ControllerConfig
from ca.controller.render import NOTHING, Plan, Settings, Wanted, check_entry, plan_pod
from ca.controller.rules import Rule, read_rule, read_static
from ca.controller.values import Meta, Pod, Resource, Slice
from ca.errors import BurgeeError
from ca.identity.spiffe_id import SpiffeId

V = TypeVar("V")

STATIC = ""
"""The group of the static entries; the others are UIDs of pods."""


class World:
    """`pods`, `nodes` and so on are kept by mirrors through the methods named `…_changed`.

    `dirty` are groups whose plan must be made again, `gone` the pods that were seen to go. `wake` is set by changes.
    """

    def __init__(self, config: ControllerConfig) -> None:
        self.settings = settings_of(config)
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Meta] = {}
        self.node_specs: dict[str, Mapping[str, str]] = {}
        self.namespaces: dict[str, Meta] = {}
        self.resources: dict[tuple[str, str], Resource] = {}
        self.plans: dict[str, Plan] = {}
        self.dirty: set[str] = set()
        self.gone: set[str] = set()
        self.wake = asyncio.Event()
        self.mirror_pods = config.mirror_pods
        self.services_known: Callable[[], bool] = lambda: True
        self._class, self._classless = config.class_name or "", config.watch_classless
        self._ignored = [re.compile(pattern) for pattern in config.ignore_namespaces]
        self._on_node: dict[str, set[str]] = defaultdict(set)
        self._in_namespace: dict[str, set[str]] = defaultdict(set)
        self._services: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
        self._rules: list[Rule] = []

    # What is told

    def pod_changed(self, key: str, before: Pod | None, after: Pod | None, seen: bool) -> None:
        if before is not None:
            self._on_node[before.node].discard(before.uid)
            self._in_namespace[before.meta.namespace].discard(before.uid)
        if before is not None and (after is None or after.uid != before.uid):
            self.pods.pop(before.uid, None)
            if seen or after is not None:  # one of the same name is there: it is gone for sure
                self.gone.add(before.uid)
            self._touch([before.uid])
        if after is not None:
            self.pods[after.uid] = after
            self._on_node[after.node].add(after.uid)
            self._in_namespace[after.meta.namespace].add(after.uid)
            if after.ended:
                self.gone.add(after.uid)
            self._touch([after.uid])

    def node_changed(self, key: str, before: Meta | None, after: Meta | None, seen: bool) -> None:
        _put(self.nodes, key, after)
        self._touch(self._on_node.get(key, ()))
        if after is None and not self._on_node.get(key):
            self._on_node.pop(key, None)

    def node_spec_changed(
        self, key: str, before: Mapping[str, str] | None, after: Mapping[str, str] | None, seen: bool
    ) -> None:
        _put(self.node_specs, key, after)
        self._touch(self._on_node.get(key, ()))

    def namespace_changed(self, key: str, before: Meta | None, after: Meta | None, seen: bool) -> None:
        _put(self.namespaces, key, after)
        self._touch(self._in_namespace.get(key, ()))
        if after is None and not self._in_namespace.get(key):
            self._in_namespace.pop(key, None)

    def slice_changed(self, key: str, before: Slice | None, after: Slice | None, seen: bool) -> None:
        touched = (before.pods if before else frozenset()) | (after.pods if after else frozenset())
        for uid in touched:
            if after is not None and uid in after.pods:
                self._services[uid][key] = (after.namespace, after.service)
            else:
                self._services[uid].pop(key, None)
                if not self._services[uid]:
                    del self._services[uid]
        self._touch(uid for uid in touched if uid in self.pods)

    def resource_changed(self, key: str, before: Resource | None, after: Resource | None, seen: bool) -> None:
        one = after or before
        if one is None:
            return
        kind = one.kind
        if after is not None and self._is_mine(after):
            self.resources[kind, key] = after
        else:
            self.resources.pop((kind, key), None)
        if after is not None and after.same_spec(before):
            return  # its status was written, by us most likely
        if kind == "ClusterSPIFFEID":
            found = [read_rule(one) for one in self.of_kind(kind)]
            self._rules = sorted(found, key=lambda rule: rule.resource.rank)
            self.touch_all()
        elif kind == "ClusterStaticEntry":
            self._touch([STATIC])

    def touch_all(self) -> None:
        self._touch([STATIC, *self.pods, *self.plans])

    # What follows

    @property
    def rules(self) -> list[Rule]:
        """ClusterSPIFFEIDs that are ours to apply, by rank."""
        return self._rules

    @property
    def wants_services(self) -> bool:
        """Whether any rule asks for the names of services."""
        return any(rule.service_names for rule in self._rules)

    @property
    def wants_node_specs(self) -> bool:
        """Whether any rule asks for what only a whole node tells."""
        return any(rule.node_spec for rule in self._rules)

    def of_kind(self, kind: str) -> list[Resource]:
        return [one for (its, _), one in self.resources.items() if its == kind]

    def plan(self, group: str) -> Plan:
        """Makes it again."""
        if group == STATIC:
            found = self._plan_static()
        else:
            pod = self.pods.get(group)
            found = NOTHING if pod is None or not self._counts(pod) else self._plan_pod(pod)
        if found is NOTHING:
            self.plans.pop(group, None)
        else:
            self.plans[group] = found
        return found

    def _counts(self, pod: Pod) -> bool:
        return (self.mirror_pods or not pod.mirror) and not self.is_ignored(pod.meta.namespace)

    def is_ignored(self, namespace: str) -> bool:
        return any(pattern.fullmatch(namespace) for pattern in self._ignored)

    def _plan_pod(self, pod: Pod) -> Plan:
        return plan_pod(
            pod,
            self._rules,
            namespace=self.namespaces.get(pod.meta.namespace),
            node=self.nodes.get(pod.node),
            services=self._services_of(pod) if self.services_known() else None,
            settings=self.settings,
            node_spec=self.node_specs.get(pod.node),
        )

    def _services_of(self, pod: Pod) -> set[tuple[str, str]]:
        """Those of its own namespace: who may make slices in another names any pod there that they like."""
        found = self._services.get(pod.uid, {}).values()
        return {service for service in found if service[0] == pod.meta.namespace}

    def _plan_static(self) -> Plan:
        wanted: dict[str, Wanted] = {}
        failed: dict[str, BurgeeError] = {}
        masked: list[str] = []
        kept: set[str] = set()
        seen: set[object] = set()
        for resource in sorted(self.of_kind("ClusterStaticEntry"), key=lambda one: one.rank):
            entry_id = self.settings.entry_id(resource.uid)
            try:
                entry = read_static(resource, entry_id)
                check_entry(entry, self.settings.trust_domain)
            except BurgeeError as error:
                failed[resource.uid] = error
                kept.add(entry_id)  # what it was before it was made wrong stays
                continue
            key = (entry.spiffe_id, entry.parent_id, entry.selectors)
            if key in seen:
                masked.append(resource.uid)
            else:
                wanted[entry_id] = Wanted(entry, resource.uid)
            seen.add(key)
        return Plan(wanted, frozenset(), tuple(masked), failed, frozenset(kept))

    def _is_mine(self, resource: Resource) -> bool:
        named = resource.spec.get("className") or ""
        return named == self._class or (named == "" and self._classless)

    def _touch(self, groups: Iterable[str]) -> None:
        self.dirty.update(groups)
        if self.dirty:
            self.wake.set()


def settings_of(config: ControllerConfig) -> Settings:
    return Settings(
        trust_domain=config.domain,
        cluster=config.cluster,
        cluster_domain=config.cluster_domain,
        mark=config.mark,
        parent=None if config.parent_id is None else SpiffeId.parse(config.parent_id),
    )


def _put(kept: dict[str, V], key: str, value: V | None) -> None:
    if value is None:
        kept.pop(key, None)
    else:
        kept[key] = value
