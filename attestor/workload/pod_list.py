"""What a kubelet says of its node's pods: the few fields that count, out of a PodList (core/v1) in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ca.errors import Unavailable

CONFIG_HASH, CONFIG_SOURCE = "kubernetes.io/config.hash", "kubernetes.io/config.source"
"""Annotations of a static pod: what the kubelet calls it in its cgroup, and where it read it. The kubelet itself sets
the second on every pod: `api` on those whose author might have written the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """One container as the runtime runs it; `container_id` is empty until it does. `image_id` has the digest."""

    name: str
    container_id: str
    image: str
    image_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """An owner reference."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod. Restartable init containers (sidecars) are in `init_containers`, as Kubernetes has them."""

    uid: str
    config_hash: str
    name: str
    namespace: str
    service_account: str
    node_name: str
    labels: tuple[tuple[str, str], ...]
    owners: tuple[Owner, ...]
    containers: tuple[ContainerStatus, ...]
    init_containers: tuple[ContainerStatus, ...]
    ephemeral_containers: tuple[ContainerStatus, ...]

    def all_containers(self) -> Iterator[ContainerStatus]:
        """Of all three kinds."""
        yield from self.containers
        yield from self.init_containers
        yield from self.ephemeral_containers


@dataclass(frozen=True, kw_only=True)
class Pods:
    """Pods by UID (and what static pods are called in cgroups), and by the ids of their containers.

    What two pods claim belongs to neither: it is in `claimed_twice` alone. `malformed` counts pods that are none.
    """

    by_uid: Mapping[str, Pod]
    by_container: Mapping[str, tuple[Pod, ContainerStatus]]
    claimed_twice: frozenset[str]
    malformed: int = 0


class _Malformed(ValueError):
    pass


def parse_pods(body: bytes) -> Pods:
    """`body` is the answer to GET /pods. Raises Unavailable (KUBELET_ANSWER) when it is no list of pods."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _no_list() from error
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or answer.get("kind") != "PodList" or not isinstance(items, list | None):
        raise _no_list()
    pods: list[Pod] = []
    for item in items or ():
        try:
            pods.append(_pod(item))
        except _Malformed:
            continue
    return _indexed(pods, malformed=len(items or ()) - len(pods))


def _no_list() -> Unavailable:
    return Unavailable("the kubelet's answer is no list of pods", reason="KUBELET_ANSWER")


def _indexed(pods: list[Pod], malformed: int) -> Pods:
    by_uid: dict[str, Pod] = {}
    by_container: dict[str, tuple[Pod, ContainerStatus]] = {}
    twice: set[str] = set()
    for pod in pods:
        for name in {pod.uid, pod.config_hash} - {""}:
            if name in by_uid:
                twice.add(name)
            by_uid[name] = pod
        for status in pod.all_containers():
            if status.container_id in by_container:
                twice.add(status.container_id)
            elif status.container_id:
                by_container[status.container_id] = (pod, status)
    for claimed in twice:
        by_uid.pop(claimed, None)
        by_container.pop(claimed, None)
    return Pods(by_uid=by_uid, by_container=by_container, claimed_twice=frozenset(twice), malformed=malformed)


def _pod(item: Any) -> Pod:
    whole = _mapping(item)
    metadata, spec, status = (_mapping(whole.get(name)) for name in ("metadata", "spec", "status"))
    pod = Pod(
        uid=_text(metadata, "uid"),
        config_hash=_config_hash(_mapping(metadata.get("annotations"))),
        name=_text(metadata, "name"),
        namespace=_text(metadata, "namespace"),
        service_account=_text(spec, "serviceAccountName"),
        node_name=_text(spec, "nodeName"),
        labels=tuple((_plain(key), _plain(value)) for key, value in _mapping(metadata.get("labels")).items()),
        owners=tuple(_owner(owner) for owner in _list(metadata.get("ownerReferences"))),
        containers=_statuses(status, "containerStatuses"),
        init_containers=_statuses(status, "initContainerStatuses"),
        ephemeral_containers=_statuses(status, "ephemeralContainerStatuses"),
    )
    if not (pod.uid and pod.name and pod.namespace):
        raise _Malformed("a pod without uid, name or namespace")
    return pod


def _config_hash(annotations: Mapping[str, Any]) -> str:
    return _text(annotations, CONFIG_HASH) if annotations.get(CONFIG_SOURCE) in ("file", "http") else ""


def _owner(item: Any) -> Owner:
    owner = _mapping(item)
    return Owner(kind=_text(owner, "kind"), name=_text(owner, "name"), uid=_text(owner, "uid"))


def _statuses(status: Mapping[str, Any], name: str) -> tuple[ContainerStatus, ...]:
    return tuple(_status(_mapping(item)) for item in _list(status.get(name)))


def _status(item: Mapping[str, Any]) -> ContainerStatus:
    """`containerID` is `<runtime>://<id>`."""
    return ContainerStatus(
        name=_text(item, "name"),
        container_id=_text(item, "containerID").rpartition("://")[2],
        image=_text(item, "image"),
        image_id=_text(item, "imageID"),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """Absent and null are empty, as Kubernetes reads them."""
    if not isinstance(value, dict | None):
        raise _Malformed("no object")
    return value or {}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | None):
        raise _Malformed("no list")
    return value or []


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return "" if value is None else _plain(value)


def _plain(value: Any) -> str:
    """What becomes a selector is printable ASCII, as every name, label and image of Kubernetes is."""
    if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
        raise _Malformed("no plain text")
    return value
