"""The loop without cluster and server: what fails half-way is done again, and too much is not done at all."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from ca.controller.config import ControllerConfig, DeletionGuardConfig
from ca.controller.entry_api import ALREADY_EXISTS, OK, EntryApi, Outcome
from ca.controller.entry_wire import key_of
from ca.controller.guard import DeletionGuard
from ca.controller.reconciler import Reconciler
from ca.controller.status import statuses
from ca.controller.values import Meta, Pod, Resource, Slice
from ca.controller.world import World
from ca.errors import Unavailable
from ca.proto.spire import types_pb2
from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from tests.ca.controller.lab import until
from tests.support.clock import FakeClock

CONFIG = {"trust_domain": "example.org", "cluster": "demo", "server": {"admin_socket": "/none"}}


class FakeServer:
    """Entries by ID. `broken` calls to come fail; `asked` are those that were made."""

    def __init__(self) -> None:
        self.entries: dict[str, types_pb2.Entry] = {}
        self.broken = 0
        self.refuse = ""
        self.asked: list[tuple[str, int]] = []

    async def all(self) -> dict[str, types_pb2.Entry]:
        self._called("all", 0)
        return {key: _copy(value) for key, value in self.entries.items() if key.startswith("k8s.demo.")}

    async def create(self, entries: Sequence[types_pb2.Entry]) -> list[Outcome]:
        self._called("create", len(entries))
        return [self._create(one) for one in entries]

    async def update(self, entries: Sequence[types_pb2.Entry]) -> list[Outcome]:
        self._called("update", len(entries))
        self.entries |= {one.id: _copy(one) for one in entries}
        return [Outcome(OK)] * len(entries)

    async def delete(self, ids: Sequence[str]) -> list[Outcome]:
        self._called("delete", len(ids))
        for one in ids:
            self.entries.pop(one)
        return [Outcome(OK)] * len(ids)

    def _create(self, entry: types_pb2.Entry) -> Outcome:
        similar = next((one for one in self.entries.values() if key_of(one) == key_of(entry)), None)
        if similar is not None:
            return Outcome(ALREADY_EXISTS, "similar", similar.id)
        if self.refuse and self.refuse in entry.spiffe_id.path:
            return Outcome(3, "no such thing")
        self.entries[entry.id] = _copy(entry)
        return Outcome(OK)

    def _called(self, what: str, count: int) -> None:
        if self.broken:
            self.broken -= 1
            raise Unavailable("away", reason="UNAVAILABLE")
        self.asked.append((what, count))


def _copy(entry: types_pb2.Entry) -> types_pb2.Entry:
    copied = types_pb2.Entry()
    copied.CopyFrom(entry)
    return copied


class Rig:
    """A world that a test changes, and what the reconciler makes of it."""

    def __init__(self, **guard: Any) -> None:
        self.world = World(from_values(CONFIG, ControllerConfig))
        self.server = FakeServer()
        self.guard = DeletionGuard(from_values(guard, DeletionGuardConfig), SystemClock())
        self.leading = True
        self.allowance = 0
        self.reconciler = Reconciler(
            world=self.world,
            api=cast(EntryApi, self.server),
            guard=self.guard,
            clock=SystemClock(),
            resync_seconds=3600,
            may_act=lambda: self.leading,
            allowed=lambda: self.allowance,
            used_allowance=self._used,
        )
        self.world.namespace_changed("a", None, Meta("a", "ns", {}, {}), True)
        self.world.node_changed("n1", None, Meta("n1", "node", {}, {}), True)

    def rule(self, uid: str = "r1", **spec: Any) -> Resource:
        before = self.world.resources.get(("ClusterSPIFFEID", uid))
        given = {"spiffeIDTemplate": "spiffe://example.org/" + uid + "/{{ .PodMeta.Name }}"} | spec
        made = Resource("ClusterSPIFFEID", uid, uid, 1, f"2026-{uid}", given, {})
        self.world.resource_changed(uid, before, made, True)
        return made

    def drop(self, resource: Resource) -> None:
        self.world.resource_changed(resource.name, resource, None, True)

    def pod(self, name: str, *, labels: dict[str, str] | None = None) -> Pod:
        pod = Pod(Meta(name, f"uid-{name}", labels or {}, {}, "a"), {"NodeName": "n1"}, False)
        self.world.pod_changed(f"a/{name}", self.world.pods.get(pod.uid), pod, True)
        return pod

    def lose(self, pod: Pod, *, seen: bool) -> None:
        self.world.pod_changed(f"a/{pod.meta.name}", pod, None, seen)

    @property
    def paths(self) -> list[str]:
        return sorted(one.spiffe_id.path for one in self.server.entries.values())

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reconciler.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _used(self) -> None:
        self.allowance = 0


async def test_changes_that_come_together_are_one_call() -> None:
    rig = Rig()
    rig.rule()
    pods = [rig.pod(f"p{number}") for number in range(50)]
    async with rig.run():
        await until(lambda: len(rig.paths) == 50)
        assert rig.server.asked == [("all", 0), ("create", 50)]
        for pod in pods:
            rig.lose(pod, seen=True)
        await until(lambda: not rig.paths)
        assert rig.server.asked[2:] == [("delete", 50)]


@pytest.mark.parametrize("broken", [1, 2, 3])
async def test_what_failed_is_done_again(broken: int) -> None:
    rig = Rig()
    rig.rule()
    rig.pod("a")
    async with rig.run():
        await until(lambda: rig.paths == ["/r1/a"])
        rig.server.broken = broken
        rig.pod("b")
        rig.lose(rig.world.pods["uid-a"], seen=True)
        await until(lambda: rig.paths == ["/r1/b"])
        rig.rule("r2")
        await until(lambda: rig.paths == ["/r1/b", "/r2/b"])
        assert rig.reconciler.problem is None


async def test_nobody_acts_who_does_not_lead() -> None:
    rig = Rig()
    rig.rule()
    rig.pod("a")
    rig.leading = False
    async with rig.run():
        await asyncio.sleep(0.05)
        assert rig.server.asked == []
        rig.leading = True
        rig.world.wake.set()
        await until(lambda: rig.paths == ["/r1/a"])
        rig.leading = False
        rig.pod("b")
        await asyncio.sleep(0.05)
        assert rig.paths == ["/r1/a"]
        rig.server.entries.clear()  # by whoever led meanwhile
        rig.leading = True
        rig.world.wake.set()
        await until(lambda: rig.paths == ["/r1/a", "/r1/b"])


async def test_pods_that_a_list_no_longer_has_are_guarded_and_those_seen_to_go_are_not() -> None:
    rig = Rig(entries=3, share=0.1)
    rig.rule()
    pods = [rig.pod(f"p{number}") for number in range(10)]
    async with rig.run():
        await until(lambda: len(rig.paths) == 10)
        for pod in pods[:4]:
            rig.lose(pod, seen=False)
        rig.pod("new")
        await until(lambda: rig.guard.held == 4)
        assert len(rig.paths) == 11, "what is new does not wait"
        for pod in pods[4:8]:
            rig.lose(pod, seen=True)
        await until(lambda: len(rig.paths) == 7)
        assert rig.guard.held == 4
        rig.allowance = 4
        rig.world.wake.set()
        await until(lambda: len(rig.paths) == 3)
        assert (rig.guard.held, rig.allowance) == (0, 0)


async def test_leftovers_of_a_cluster_that_looks_empty_stay() -> None:
    rig = Rig(entries=3, share=0.1)
    rig.rule()
    for number in range(10):
        rig.pod(f"p{number}")
    async with rig.run():
        await until(lambda: len(rig.paths) == 10)
    other = Rig(entries=3, share=0.1)  # a kubeconfig that leads elsewhere
    other.server = rig.server
    other.reconciler._api = cast(EntryApi, rig.server)
    async with other.run():
        other.world.touch_all()
        await until(lambda: other.guard.held == 10)
        assert len(rig.paths) == 10


async def test_refused_and_foreign_entries_are_told_of() -> None:
    rig = Rig()
    rig.server.refuse = "/r2/"
    pod = rig.pod("a")
    rig.rule("r1")
    rig.rule("r2")
    plan = rig.world.plan(pod.uid)
    theirs = next(one.entry for one in plan.wanted.values() if one.owner == "r1")
    rig.server.entries["by-hand"] = types_pb2.Entry(
        id="by-hand",
        spiffe_id=types_pb2.SPIFFEID(trust_domain="example.org", path=theirs.spiffe_id.path),
        parent_id=types_pb2.SPIFFEID(trust_domain="example.org", path=theirs.parent_id.path),
        selectors=[types_pb2.Selector(type="k8s", value="pod-uid:uid-a")],
    )
    async with rig.run():
        await until(lambda: rig.reconciler.refused)
        await until(lambda: rig.reconciler.foreign)
    assert [*rig.server.entries] == ["by-hand"]
    told = {one.uid: (status, wrong) for one, status, wrong in statuses(rig.reconciler, SystemClock().now())}
    assert told["r1"][0]["stats"]["entriesMasked"] == 1
    assert told["r2"][0]["stats"]["entryFailures"] == 1
    assert told["r2"][1] == "EntryRefused: pod a/a: no such thing"


async def test_a_static_entry_for_a_pod_is_no_pods_entry() -> None:
    """Its selector names a pod; only the object that made it takes it away."""
    rig = Rig()
    spec = {
        "spiffeID": "spiffe://example.org/static",
        "parentID": "spiffe://example.org/p",
        "selectors": ["k8s:pod-uid:uid-a"],
    }
    static = Resource("ClusterStaticEntry", "s", "s", 1, "", spec, {})
    rig.world.resource_changed("s", None, static, True)
    rig.rule()
    pod = rig.pod("a")
    async with rig.run():
        await until(lambda: rig.paths == ["/r1/a", "/static"])
        rig.lose(pod, seen=True)
        await until(lambda: rig.paths == ["/static"])
        rig.world.resource_changed("s", static, None, True)
        await until(lambda: not rig.paths)


def test_objects_of_another_class_are_not_ours() -> None:
    def chosen(name: str | None, *, mine: str | None = None, classless: bool = False) -> bool:
        options = {"class_name": mine, "watch_classless": classless}
        world = World(from_values(CONFIG | options, ControllerConfig))
        spec = {"spiffeIDTemplate": "spiffe://example.org/x"} | ({} if name is None else {"className": name})
        world.resource_changed("r", None, Resource("ClusterSPIFFEID", "r", "r", 1, "", spec, {}), True)
        return bool(world.rules)

    assert (chosen(None), chosen("b"), chosen("")) == (True, False, True)
    assert (chosen(None, mine="b"), chosen("b", mine="b"), chosen("c", mine="b")) == (False, True, False)
    assert chosen(None, mine="b", classless=True)


def test_names_of_services_come_and_go_with_their_slices() -> None:
    rig = Rig()
    rig.rule(autoPopulateDNSNames=True)
    pod = rig.pod("a")

    def names() -> int:
        return sum(len(one.entry.dns_names) for one in rig.world.plan(pod.uid).wanted.values())

    first, second = Slice("a", "web", frozenset({pod.uid})), Slice("a", "web", frozenset({pod.uid, "other"}))
    rig.world.slice_changed("a/web-1", None, first, True)
    rig.world.slice_changed("a/web-2", None, second, True)
    assert names() == 4
    rig.world.slice_changed("a/web-1", first, None, True)
    assert names() == 4
    rig.world.slice_changed("a/web-2", second, Slice("a", "web", frozenset({"other"})), True)
    assert names() == 0


async def test_the_guard_counts_over_its_window() -> None:
    clock = FakeClock()
    guard = DeletionGuard(from_values({"entries": 10, "share": 0.1, "window_seconds": 60}, DeletionGuardConfig), clock)
    assert guard.permits(10, 50)
    guard.deleted(10)
    assert not guard.permits(1, 40)
    assert guard.held == 1
    assert guard.permits(5, 1000), "a tenth of a thousand"
    assert guard.permits(40, 40, allowed=40)
    assert not guard.permits(41, 41, allowed=40)
    await clock.advance(61)
    assert guard.permits(10, 40)
    assert not guard.permits(11, 40)
    off = DeletionGuard(from_values({"share": 1}, DeletionGuardConfig), clock)
    assert off.permits(10**6, 1)


def test_what_changes_at_a_node_or_a_namespace_is_planned_anew_for_its_pods() -> None:
    rig = Rig()
    rig.rule(
        spiffeIDTemplate="spiffe://example.org/{{ .NodeMeta.Labels.zone }}",
        namespaceSelector={"matchLabels": {"team": "x"}},
    )
    waiting = Pod(Meta("p", "uid-p", {}, {}, "a"), {}, False)
    bound = Pod(waiting.meta, {"NodeName": "n1"}, False)
    rig.world.pod_changed("a/p", None, waiting, True)
    rig.world.pod_changed("a/p", waiting, bound, True)

    def ids() -> list[str]:
        return [str(one.entry.spiffe_id) for one in rig.world.plan("uid-p").wanted.values()]

    nodes = [Meta("n1", "node", {}, {}), Meta("n1", "node", {"zone": "b"}, {})]
    spaces = [Meta("a", "ns", {}, {}), Meta("a", "ns", {"team": "x"}, {})]
    for change, values in ((rig.world.namespace_changed, spaces), (rig.world.node_changed, nodes)):
        rig.world.dirty.clear()
        change(values[0].name, *values, True)
        assert rig.world.dirty == {"uid-p"}
    assert ids() == ["spiffe://example.org/b"]
    rig.world.pod_changed("a/p", bound, None, True)
    rig.world.dirty.clear()
    rig.world.node_changed("n1", nodes[1], None, True)
    assert not rig.world.dirty


def test_marks_of_two_classes_differ() -> None:
    def mark(**options: Any) -> str:
        return from_values(CONFIG | options, ControllerConfig).mark

    assert mark() == "k8s.demo."
    assert mark(class_name="a/b c") == "k8s-a-b-c-0af99a60.demo."
    assert mark(class_name="a-b") == "k8s-a-b.demo."
    assert mark(entry_id_prefix="x") == "x.demo."
    assert str(uuid.UUID(int=0)) not in mark()
