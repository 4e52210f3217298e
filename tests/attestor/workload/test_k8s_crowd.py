"""Two hundred pods that start within a second on one node, through the agent's own queue, cache and subscriptions."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestor.workload.k8s import Config, K8sAttestor
from attestor.workload.run import attest_all
from ca.identity.selector import Selector
from ca.ports import Process
from ca.runtime.config import from_values
from sds.workloads import Workloads
from tests.attestor.processes import SLEEP
from tests.attestor.workload.k8s_node import Trees, in_pod
from tests.sds.lab import Lab, Me, entry, eventually
from tests.support.kubelet import LocalGate, Object, StandInKubelet, pod, status

PODS = 200
SECONDS = 3.0


def uid_of(n: int) -> str:
    return f"c0ffee00-0000-4000-8000-{n:012d}"


@contextmanager
def sleepers(number: int) -> Iterator[list[int]]:
    processes = [subprocess.Popen([SLEEP, "120"]) for _ in range(number)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab() as lab:
        yield lab


async def test_the_kubelet_is_asked_three_times_and_all_have_their_svids(lab: Lab, tmp_path: Path) -> None:
    running: list[Object] = []
    trees = Trees(tmp_path)
    loop = asyncio.get_running_loop()
    entries = [entry(f"app-{n}", "", Selector("k8s", f"pod-name:app-{n}")) for n in range(PODS)]
    lab.snapshot(*entries)
    await eventually(lambda: all(lab.cache.svid(e.id) for e in entries), seconds=60)
    with sleepers(PODS) as pids, StandInKubelet(lambda: list(running), LocalGate(agent="secret")) as kubelet:
        config = kubelet.config(tmp_path, "secret") | {"max_wait_seconds": 30.0, "timeout_seconds": 30.0}
        attestor = K8sAttestor(from_values(config, Config), find=trees.find)

        async def attest(process: Process) -> frozenset[Selector]:
            return (await attest_all({"k8s": attestor}, process, timeout_seconds=60)).selectors

        workloads = Workloads(attest=attest, cache=lab.cache, clock=lab.clock, share_of=trees.share)

        async def start(n: int) -> str:
            await asyncio.sleep(began + n / PODS - loop.time())
            running.append(pod(f"app-{n}", status("main", f"{n:064x}"), uid=uid_of(n)))
            async with workloads.session(Me(pid=pids[n]), needs_svid=True) as subscription:
                (mine,) = lab.cache.content(subscription.view).entries
                assert lab.cache.svid(mine.id) is not None
                return mine.id

        for n, pid in enumerate(pids):
            trees.put(pid, in_pod(uid_of(n), f"{n:064x}"))
        began = loop.time()
        found = await asyncio.gather(*(start(n) for n in range(PODS)))
        took = loop.time() - began
        workloads.close()
        assert found == [f"app-{n}" for n in range(PODS)]
        assert len(kubelet.requests) <= 3
        assert took <= SECONDS * 5
        print(
            f"{PODS} pods: the kubelet was asked {len(kubelet.requests)} times, all had their SVIDs after {took:.2f} s"
        )
