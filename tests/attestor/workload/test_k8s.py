"""The k8s attestor: what it makes of the kubelet's answer, and what it does not believe."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attestor.workload.container import find_container
from attestor.workload.k8s import Config
from ca.errors import ConfigError, Denied, Unavailable
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from ca.runtime.pod_selectors import MAX_OF_A_KIND
from tests.attestor.processes import SLEEP, child, pinned
from tests.attestor.workload.k8s_node import HASTY, Node, in_pod, reason, tree, values
from tests.contracts.attestors import WorkloadSample
from tests.support.kubelet import LocalGate, StandInKubelet, pod, status
from tests.support.proc_trees import ID, OTHER, OTHER_POD, POD, STATIC, unified

NOT_A_CONTAINER = unified("/system.slice/app.service")


@cache
def _lasting() -> tuple[StandInKubelet, Path]:
    """A kubelet that stays, and a /proc tree of a process in its only container."""
    kubelet = StandInKubelet(lambda: [pod("web", status("main", ID), uid=POD)], LocalGate(agent="secret"))
    kubelet.__enter__()
    return kubelet, tree(Path(tempfile.mkdtemp(prefix="proc-")), in_pod())


def contract_sample() -> WorkloadSample:
    kubelet, proc = _lasting()
    config = kubelet.config(Path(tempfile.mkdtemp(prefix="kubelet-")), "secret")
    pace = {"poll_retry_interval_seconds": 0.02, "timeout_seconds": 10.0, "max_wait_seconds": 20.0}
    return WorkloadSample(config=config | pace, tree=proc)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    with made.kubelet:
        yield made
    made.close()


# What it finds


async def test_all_that_is_known_of_a_pod(node: Node) -> None:
    made = pod(
        "web-7d4b9",
        status("main", ID, "registry.test/web:1.4", "aa" * 32),
        status("proxy", OTHER, "registry.test/proxy:2", "bb" * 32),
        uid=POD,
        namespace="shop",
        account="web",
        labels={"app": "web", "app.kubernetes.io/part-of": "shop", "empty": ""},
        initContainerStatuses=[status("migrate", "11" * 32, "registry.test/migrate:3", "cc" * 32)],
        ephemeralContainerStatuses=[status("debug", "22" * 32, "registry.test/debug:4", "dd" * 32)],
    )
    made["metadata"]["ownerReferences"] = [
        {"kind": "ReplicaSet", "name": "web-7d4b9", "uid": "rs-uid", "apiVersion": "apps/v1"},
        {"kind": "Job", "name": "once", "uid": "job-uid"},
    ]
    node.pods = [pod("other", status("main", "33" * 32), uid=OTHER_POD), made]
    of_the_pod = {
        "ns:shop",
        "sa:web",
        "node-name:node-1",
        f"pod-uid:{POD}",
        "pod-name:web-7d4b9",
        "pod-image-count:2",
        "pod-init-image-count:1",
        "pod-image:registry.test/web:1.4",
        f"pod-image:registry.test/web@sha256:{'aa' * 32}",
        "pod-image:registry.test/proxy:2",
        f"pod-image:registry.test/proxy@sha256:{'bb' * 32}",
        "pod-init-image:registry.test/migrate:3",
        f"pod-init-image:registry.test/migrate@sha256:{'cc' * 32}",
        "pod-label:app:web",
        "pod-label:app.kubernetes.io/part-of:shop",
        "pod-label:empty:",
        "pod-owner:ReplicaSet:web-7d4b9",
        "pod-owner-uid:rs-uid",
        "pod-owner:Job:once",
        "pod-owner-uid:job-uid",
    }
    attestor = node.attestor()
    assert await values(attestor, node.process()) == of_the_pod | {
        "container-name:main",
        "container-image:registry.test/web:1.4",
        f"container-image:registry.test/web@sha256:{'aa' * 32}",
    }
    for container, name, digest in (("11", "migrate:3", "cc"), ("22", "debug:4", "dd")):
        assert await values(attestor, node.process(in_pod(container=container * 32))) == of_the_pod | {
            f"container-name:{name[:-2]}",
            f"container-image:registry.test/{name}",
            f"container-image:registry.test/{name[:-2]}@sha256:{digest * 32}",
        }
    without = await values(node.attestor(disable_container_selectors=True), node.process())
    assert without == of_the_pod


async def test_a_sidecar_is_the_restartable_init_container_that_it_is(node: Node) -> None:
    sidecar = status("proxy", OTHER, "registry.test/proxy:2") | {"started": True, "restartCount": 3}
    node.pods = [pod("web", status("main", ID), uid=POD, initContainerStatuses=[sidecar])]
    found = await values(node.attestor(), node.process(in_pod(container=OTHER)))
    assert {"container-name:proxy", "pod-init-image:registry.test/proxy:2", "pod-init-image-count:1"} <= found


async def test_dockers_form_of_a_digest_is_given_both_ways(node: Node) -> None:
    image = status("main", ID)
    image |= {"containerID": f"docker://{ID}", "imageID": "docker-pullable://registry.test/app@sha256:" + "ab" * 32}
    node.pods = [pod("web", image, uid=POD)]
    found = await values(node.attestor(), node.process())
    digest = f"registry.test/app@sha256:{'ab' * 32}"
    assert {f"container-image:{digest}", f"container-image:docker-pullable://{digest}"} <= found


@pytest.mark.parametrize("source", ["file", "http"])
async def test_a_static_pod_is_called_by_its_hash(node: Node, source: str) -> None:
    made = pod("etcd", status("etcd", ID), uid=POD, namespace="kube-system")
    made["metadata"]["annotations"] = {"kubernetes.io/config.hash": STATIC, "kubernetes.io/config.source": source}
    node.pods = [made]
    assert "pod-name:etcd" in await values(node.attestor(), node.process(in_pod(STATIC)))


async def test_what_runs_in_no_pod_has_no_selectors_and_costs_little(node: Node) -> None:
    attestor = node.attestor(cache_seconds=60.0)
    assert await values(attestor, node.process(NOT_A_CONTAINER)) == set()
    rootless = unified(f"/user.slice/user-1000.slice/user@1000.service/kubepods/pod{POD}/{ID}")
    assert await values(attestor, node.process(rootless)) == set()
    assert node.asked == 0
    for _ in range(5):
        assert await values(attestor, node.process(unified(f"/docker/{OTHER}"))) == set()
    assert node.asked == 1


async def test_of_very_many_labels_none_is_told(node: Node) -> None:
    few, many = ({f"k{n}": "v" for n in range(number)} for number in (MAX_OF_A_KIND, MAX_OF_A_KIND + 1))
    node.pods = [pod("a", status("main", ID), uid=POD, labels=few), pod("b", status("main", OTHER), labels=many)]
    attestor = node.attestor()
    labels = {v for v in await values(attestor, node.process()) if v.startswith("pod-label:")}
    assert len(labels) == MAX_OF_A_KIND
    with collecting() as notes:
        found = await values(attestor, node.process(in_pod(node.pods[1]["metadata"]["uid"], OTHER)))
    assert "pod-name:b" in found
    assert not any(v.startswith("pod-label:") for v in found)
    assert [note.value for note in notes if note.what == "k8s:pod-label"]


async def test_it_says_what_it_looked_at(node: Node) -> None:
    with collecting() as notes:
        await node.attestor().attest(node.process())
    said = dict(notes)
    assert said["container"].startswith(ID)
    assert "cgroup 0::/kubepods" in said["container"]
    assert said["pod"] == f"default/web, uid {POD}"
    assert not any("secret" in note.value for note in notes)


# What it does not believe


async def test_kernel_and_kubelet_must_mean_the_same_pod(node: Node) -> None:
    node.pods = [pod("evil", status("main", ID), uid=OTHER_POD)]
    with collecting() as notes, pytest.raises(Denied) as caught:
        await node.attestor().attest(node.process())
    assert caught.value.reason == "K8S_POD_MISMATCH"
    assert POD not in caught.value.detail
    assert any(POD in note.value and OTHER_POD in note.value for note in notes)


async def test_a_container_of_two_pods_is_of_neither(node: Node) -> None:
    node.pods = [pod("a", status("main", ID), uid=POD), pod("b", status("main", ID), uid=OTHER_POD)]
    assert await reason(node.attestor(), node.process()) == "K8S_POD_MISMATCH"


async def test_a_pod_cannot_call_itself_by_another_pods_uid(node: Node) -> None:
    """The annotation counts only on pods that the kubelet read from its own files."""
    evil = pod("evil", status("main", OTHER), uid=OTHER_POD)
    evil["metadata"]["annotations"] = {"kubernetes.io/config.hash": POD, "kubernetes.io/config.source": "api"}
    node.pods = [evil]
    attestor = node.attestor(**HASTY, disable_container_selectors=True)
    assert await reason(attestor, node.process()) == "K8S_POD_UNKNOWN"


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": {"a": 1}},
        {"labels": []},
        {"labels": {"a": "\x1b[2J"}},
        {"labels": {"a": "\u202e"}},
        {"uid": None},
        {"name": ["web"]},
        {"ownerReferences": {"kind": "x"}},
        {"ownerReferences": ["x"]},
        {"annotations": "x"},
    ],
)
async def test_a_pod_that_is_malformed_is_none_and_its_neighbours_are(node: Node, wrong: dict[str, Any]) -> None:
    bad = pod("bad", status("main", OTHER), uid=OTHER_POD)
    bad["metadata"] |= wrong
    node.pods = [bad, *node.pods]
    attestor = node.attestor()
    assert "pod-name:web" in await values(attestor, node.process())
    assert attestor.snapshots.last is not None
    assert set(attestor.snapshots.last.pods.by_uid) == {POD}
    assert attestor.snapshots.last.pods.malformed == 1


async def test_a_container_that_cannot_be_told_is_refused_before_the_kubelet_is_asked(node: Node) -> None:
    process = node.process(f"1:a:/docker/{ID}\n2:b:/docker/{OTHER}\n")
    assert await reason(node.attestor(), process) == "CONTAINER_AMBIGUOUS"
    assert node.asked == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kubelet_address": "https://node"},
        {"kubelet_address": "a/b"},
        {"kubelet_address": ""},
        {"kubelet_port": 0},
        {"client_cert_file": "/x"},
        {"client_key_file": "/x"},
        {"cache_seconds": -1},
        {"poll_retry_interval_seconds": 0},
        {"max_wait_seconds": 0},
        {"max_answer_bytes": 1},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        from_values(wrong, Config)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run the tests as root")
def test_a_cgroup_of_the_kernels_own(tmp_path: Path) -> None:
    """No tree of ours: the process is in such a cgroup indeed, wherever one can be made here."""
    root = next((path for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids")) if _makes(path)), None)
    if root is None:
        pytest.skip("needs a cgroup file system that can be written to")
    group = root / f"bg-test-{os.getpid()}" / f"pod{POD}" / ID
    group.mkdir(parents=True)
    try:
        with child([SLEEP, "60"]) as process, pinned(process.pid) as pin:
            (group / "cgroup.procs").write_text(str(process.pid))
            found = find_container(pin.proc)
        assert found is not None
        assert (found.pod_uid, found.container_id) == (POD, ID)
    finally:
        for directory in (group, group.parent, group.parent.parent):
            directory.rmdir()


def _makes(root: Path) -> bool:
    probe = root / f"bg-probe-{os.getpid()}"
    try:
        probe.mkdir()
        made = (probe / "cgroup.procs").exists()
        probe.rmdir()
    except OSError:
        return False
    return made


async def test_errors_are_of_the_family(node: Node) -> None:
    node.kubelet.body = b"[" * 100_000
    with pytest.raises(Unavailable):
        await node.attestor().attest(node.process())
