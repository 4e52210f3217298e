"""What the kernel's records and a kubelet may say of a workload: others choose names in both."""

from __future__ import annotations

import json

from attestor.workload.container import Container, from_cgroups, from_mounts
from ca.errors import Denied, Unavailable
from ca.identity.selector import Selector
from ca.runtime.pod_list import parse_pods
from ca.runtime.pod_selectors import container_selectors, pod_selectors
from tests.fuzz.harness import Target, outcome
from tests.support.proc_trees import ID, OTHER, POD


def run_container(data: bytes) -> None:
    """The process's records, and after an empty line the agent's own."""
    text, _, own = data.decode("utf-8", "backslashreplace").partition("\n\n")
    for found in (
        outcome(from_cgroups, text, own, refusal=Denied),
        outcome(from_mounts, text, own, refusal=Denied),
    ):
        if found is not None:
            _check_container(found, text)


def _check_container(found: Container, text: str) -> None:
    assert found.container_id in text
    assert found.container_id in found.found_in
    assert found.pod_uid is None or found.pod_uid in text.replace("_", "-")
    assert len(found.container_id) == 64


def run_pods(data: bytes) -> None:
    pods = outcome(parse_pods, data, refusal=Unavailable)
    if pods is None:
        return
    assert json.loads(data)["kind"] == "PodList"
    for pod, status in pods.by_container.values():
        values = [*pod_selectors(pod), *container_selectors(status)]
        assert all(value.isascii() and value.isprintable() and Selector("k8s", value) for value in values)
    assert not pods.claimed_twice & (pods.by_uid.keys() | pods.by_container.keys())


_NAMES = (
    ID,
    OTHER,
    f"pod{POD}",
    "/../",
    ".scope",
    ".slice",
    "cri-containerd-",
    "0::/",
    " - cgroup2 cgroup rw",
    "libpod",
)
_FIELDS = ("metadata", "spec", "status", "labels", "containerStatuses", "containerID", "uid", "annotations", "items")
TARGETS = (
    Target(name="container", run=run_container, words=tuple(name.encode() for name in _NAMES)),
    Target(name="pods", run=run_pods, words=tuple(f'"{name}":'.encode() for name in _FIELDS)),
)
