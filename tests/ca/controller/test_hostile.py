"""What tenants, nodes and an API server that is not what it should be can do to each other's identities: nothing."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from ca.controller.config import ControllerConfig
from ca.controller.pod_certificate_api import PodCertificateApi
from ca.controller.pod_certificate_pod import NODE_FRESH_SECONDS, PodFinder
from ca.controller.pod_certificate_request import Request, read_request
from ca.controller.pod_certificates import PER_POD, PodCertificates
from ca.controller.pod_certificates_config import PodCertificatesConfig
from ca.controller.values import MAX_ANNOTATION_CHARACTERS, Object, Slice, read_pod, read_slice
from ca.errors import Denied, NotFound, Unavailable
from ca.identity.selector import Selector
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from ca.runtime.kube import KubeClient
from tests.ca.controller.lab import until
from tests.ca.controller.test_reconciler import CONFIG, Rig
from tests.support.clock import FakeClock

MIRROR = "kubernetes.io/config.mirror"


def api_pod(name: str = "p", *, uid: str = "u", namespace: str = "a", **annotations: str) -> Object:
    return {
        "metadata": {"name": name, "uid": uid, "namespace": namespace, "annotations": annotations},
        "spec": {
            "nodeName": "n1",
            "serviceAccountName": "default",
            "volumes": [{"projected": {"sources": [{"podCertificate": {"signerName": "s"}}]}}],
        },
        "status": {"phase": "Running"},
    }


def request(pod: str = "p", *, name: str = "r", uid: str = "u", node_uid: str = "node") -> Request:
    spec = {"podName": pod, "podUID": uid, "serviceAccountName": "default", "nodeName": "n1", "nodeUID": node_uid}
    found = read_request(
        {
            "metadata": {"namespace": "a", "name": name, "uid": name},
            "spec": {"signerName": "s", "maxExpirationSeconds": 3600, **spec},
        },
        "s",
    )
    assert found is not None
    return found


# A tenant's EndpointSlice names any pod that it likes.


def test_a_service_of_another_namespace_names_no_pod_of_this_one() -> None:
    """Nor can it make an entry that is none, by names that are none."""
    rig = Rig()
    rig.rule(autoPopulateDNSNames=True)
    pod = rig.pod("a")
    rig.world.slice_changed("evil/x", None, Slice("evil", "not_a_name", frozenset({pod.uid})), True)
    rig.world.slice_changed("evil/y", None, Slice("evil", "payments", frozenset({pod.uid})), True)
    plan = rig.world.plan(pod.uid)
    assert not plan.failed
    assert [one.entry.dns_names for one in plan.wanted.values()] == [()]
    rig.world.slice_changed("a/x", None, Slice("a", "web", frozenset({pod.uid})), True)
    (wanted,) = rig.world.plan(pod.uid).wanted.values()
    assert wanted.entry.dns_names[0] == "web"


# A node makes a mirror pod with the labels that it likes, in the namespace that it likes.


@pytest.mark.parametrize("value", ["0123abcd", "x" * 5000, ""])
def test_a_pod_that_a_kubelet_made_has_no_identity(value: str) -> None:
    pod = read_pod(api_pod(**{MIRROR: value}))
    assert pod is not None
    rig = Rig()
    rig.rule()
    rig.world.pod_changed("a/p", None, pod, True)
    assert not rig.world.plan(pod.uid).wanted
    rig.world.mirror_pods = True
    assert rig.world.plan(pod.uid).wanted


# One pod asks for a thousand certificates.


class SlowApi:
    """Signs for nobody, and counts who waits."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = asyncio.Event()

    async def issue(self, request: Request, selectors: frozenset[Selector]) -> Any:
        self.asked.append(request.pod_name)
        await self.open.wait()
        raise Unavailable("away", reason="UNAVAILABLE")


class Pods:
    """Whatever pod is asked for is there; nodes have `uids`."""

    def __init__(self) -> None:
        self.uids = {"n1": "node"}
        self.paths: list[str] = []

    async def get(self, path: str) -> Object:
        self.paths.append(path)
        name = path.rpartition("/")[2]
        if "/nodes/" not in path:
            return api_pod(name)
        if name not in self.uids:
            raise NotFound("none", reason="KUBE_NOT_FOUND")
        return {"metadata": {"name": name, "uid": self.uids[name]}}


async def test_a_pod_with_a_thousand_volumes_keeps_no_other_pod_of_its_node_waiting() -> None:
    api = SlowApi()
    made = PodCertificates(
        config=from_values({"signer_name": "s.test/x", "at_once": 32}, PodCertificatesConfig),
        kube=cast(KubeClient, Pods()),
        api=cast(PodCertificateApi, api),
        clock=SystemClock(),
        may_act=lambda: True,
    )
    made._pods = PodFinder(cast(KubeClient, Pods()), "s", SystemClock())
    try:
        for number in range(1000):
            _seen(made, request("greedy", name=f"r{number}"))
        _seen(made, request("modest", name="one"))
        await until(lambda: "modest" in api.asked)
        assert api.asked.count("greedy") <= PER_POD
    finally:
        for task in [*made._tasks.values()]:
            task.cancel()
        await asyncio.gather(*made._tasks.values(), return_exceptions=True)


def _seen(made: PodCertificates, asked: Request) -> None:
    key = f"{asked.namespace}/{asked.name}"
    made.mirror.items[key] = asked
    made._changed(key, None, asked, True)


# A node that was deleted is no node.


async def test_a_node_that_was_deleted_is_denied_soon() -> None:
    pods, clock = Pods(), FakeClock()
    finder = PodFinder(cast(KubeClient, pods), "s", clock)
    for _ in range(3):
        await finder.selectors(request())
    assert sum("/nodes/" in path for path in pods.paths) == 1
    del pods.uids["n1"]
    await clock.advance(NODE_FRESH_SECONDS)
    with pytest.raises(Denied) as refused:
        await finder.selectors(request())
    assert refused.value.reason == "K8S_NODE_UNKNOWN"


# A tenant makes objects as large as they can be.


def test_of_many_annotations_the_short_ones_are_kept() -> None:
    """Ten thousand such pods must fit into memory."""
    many = {f"long-{number}": "x" * 2000 for number in range(500)}
    pod = read_pod(api_pod(**many, id="short", tier="gold"))
    assert pod is not None
    kept = pod.meta.annotations
    assert (kept["id"], kept["tier"]) == ("short", "gold")
    assert sum(len(name) + len(value) for name, value in kept.items()) <= MAX_ANNOTATION_CHARACTERS


def test_a_pod_with_more_labels_than_anybody_has_is_nobody() -> None:
    """None of them is left out: a selector could ask that one is not there."""
    value = api_pod()
    value["metadata"]["labels"] = {f"label-{number}": "x" * 60 for number in range(100)}
    pod = read_pod(value)
    assert pod is not None
    assert len(pod.meta.labels) == 100
    value["metadata"]["labels"] |= {f"more-{number}": "x" * 60 for number in range(1000)}
    assert read_pod(value) is None


# An API server answers with what no object is.


@pytest.mark.parametrize("odd", [5, 1.5, True, "x", ["x"], {"a": 1}])
def test_values_of_any_type_are_read(odd: Any) -> None:
    meta = {"name": "n", "namespace": "a", "uid": "u", "labels": {"kubernetes.io/service-name": "s"}}
    assert read_slice({"metadata": meta, "endpoints": odd}) is None
    read_request({"metadata": meta, "spec": {"signerName": "s"}, "status": {"conditions": odd}}, "s")


# What administrators may overlook.


async def test_an_allowance_is_used_once_even_if_it_cannot_be_taken_back_at_once() -> None:
    rig = Rig(entries=0, share=0.0)
    rig.rule()
    pods = [rig.pod(f"p{number}") for number in range(6)]
    broken = True

    async def used() -> None:
        if broken:
            raise Unavailable("the lease cannot be written", reason="HTTP_UNREACHABLE")
        rig.allowance = 0

    rig.reconciler._used_allowance = used
    async with rig.run():
        await until(lambda: len(rig.paths) == 6)
        rig.allowance = 3
        for pod in pods[:3]:
            rig.lose(pod, seen=False)
        await until(lambda: len(rig.paths) == 3)
        for pod in pods[3:]:
            rig.lose(pod, seen=False)
        await until(lambda: rig.guard.held == 3)
        broken = False
        await until(lambda: rig.allowance == 0)
    assert len(rig.paths) == 3


@pytest.mark.parametrize(("one", "other"), [("team.a", "team-a"), ("x" * 60 + "1", "x" * 60 + "2")])
def test_marks_of_classes_that_look_alike_differ(one: str, other: str) -> None:
    """Two controllers with one mark would delete each other's entries."""
    marks = {from_values(CONFIG | {"class_name": name}, ControllerConfig).mark for name in (one, other)}
    assert len(marks) == 2
