"""Selectors of a pod and of one of its containers, as SPIRE has them."""

from __future__ import annotations

from collections.abc import Iterable

from ca.runtime.notes import note
from ca.runtime.pod_list import ContainerStatus, Pod

MAX_OF_A_KIND = 256
"""Of a pod with more labels, owners or images none of that kind is told: whoever writes pods must not fill the agent's
memory, and part of them would be a guess at which count."""

_PULLABLE = "docker-pullable://"


def standing_selectors(pod: Pod) -> list[str]:
    """What is certain of the pod before anything in it runs, without the type."""
    owners = [owner for owner in pod.owners if owner.kind and owner.name and owner.uid]
    return [
        *_given("ns", pod.namespace),
        *_given("sa", pod.service_account),
        *_given("node-name", pod.node_name),
        *_given("pod-uid", pod.uid),
        *_given("pod-name", pod.name),
        *_few("pod-label", (f"pod-label:{key}:{value}" for key, value in pod.labels)),
        *_few("pod-owner", (f"pod-owner:{owner.kind}:{owner.name}" for owner in owners)),
        *_few("pod-owner-uid", (f"pod-owner-uid:{owner.uid}" for owner in owners)),
    ]


def pod_selectors(pod: Pod) -> list[str]:
    """What holds for every process in the pod, without the type."""
    return [
        *standing_selectors(pod),
        f"pod-image-count:{len(pod.containers)}",
        f"pod-init-image-count:{len(pod.init_containers)}",
        *_few("pod-image", (f"pod-image:{image}" for image in _images(pod.containers))),
        *_few("pod-init-image", (f"pod-init-image:{image}" for image in _images(pod.init_containers))),
    ]


def container_selectors(status: ContainerStatus) -> list[str]:
    """What holds for the processes of this container alone."""
    return [*_given("container-name", status.name), *(f"container-image:{image}" for image in _images([status]))]


def _images(statuses: Iterable[ContainerStatus]) -> list[str]:
    """By name and by digest: what the pod asked for, and what the runtime found. Docker's form of the latter twice,
    with its prefix as SPIRE has it, and without it as every other runtime has it."""
    names = (name for status in statuses for name in (status.image, status.image_id))
    found = (form for name in names for form in (name, name.removeprefix(_PULLABLE)))
    return [name for name in dict.fromkeys(found) if name]


def _given(kind: str, value: str) -> list[str]:
    return [f"{kind}:{value}"] if value else []


def _few(kind: str, values: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys(values))
    if len(found) <= MAX_OF_A_KIND:
        return found
    note(f"k8s:{kind}", f"withheld: the pod has {len(found)}, more than {MAX_OF_A_KIND}")
    return []
