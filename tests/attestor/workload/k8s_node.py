"""A node whose kubelet and pods a test makes up, and processes that are said to be in its containers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from attestor.workload.container import Container, find_container
from attestor.workload.k8s import Config, K8sAttestor
from ca.errors import BurgeeError
from ca.ports import Process
from ca.runtime.config import from_values
from sds.workload_share import share_name
from tests.attestor.processes import Pinned, pinned
from tests.support.kubelet import LocalGate, Object, StandInKubelet, pod, status
from tests.support.proc_trees import ID, POD, Layout, unified

FAST = {
    "poll_retry_interval_seconds": 0.02,
    "max_wait_seconds": 20.0,
    "timeout_seconds": 10.0,
    "cache_seconds": 0.0,
    "stale_seconds": 0.0,
}
HASTY = {**FAST, "max_wait_seconds": 1.0}
"""Where nobody comes who is waited for."""


def in_pod(pod_uid: str = POD, container: str = ID) -> str:
    return unified(f"/kubepods/burstable/pod{pod_uid}/{container}")


def tree(directory: Path, cgroup: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return Layout(name="", cgroup=cgroup).write(directory)


class Node:
    """A kubelet whose `pods` a test changes, and processes that are said to be in containers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pods: list[Object] = [pod("web", status("main", ID), uid=POD)]
        self.gate = LocalGate(agent="secret")
        self.kubelet = StandInKubelet(lambda: self.pods, self.gate)
        self.now = 1000.0
        self._files = ExitStack()
        self._processes = 0

    def attestor(self, **options: Any) -> K8sAttestor:
        config = self.kubelet.config(self.directory / "agent", "secret")
        return K8sAttestor(from_values({**config, **FAST, **options}, Config))

    def slow(self, **options: Any) -> K8sAttestor:
        """One for which time passes only as `now` is set."""
        config = {**self.kubelet.config(self.directory / "agent", "secret"), **FAST, "stale_seconds": 60.0, **options}
        return K8sAttestor(from_values(config, Config), monotonic=lambda: self.now)

    def process(self, cgroup: str | None = None) -> Pinned:
        self._processes += 1
        directory = tree(self.directory / f"proc-{self._processes}", in_pod() if cgroup is None else cgroup)
        return self._files.enter_context(pinned(os.getpid(), directory))

    @property
    def asked(self) -> int:
        return len(self.kubelet.requests)

    def close(self) -> None:
        self._files.close()


async def values(attestor: K8sAttestor, process: Pinned) -> set[str]:
    return {selector.value for selector in await attestor.attest(process)}


async def reason(attestor: K8sAttestor, process: Pinned) -> str:
    with pytest.raises(BurgeeError) as caught:
        await attestor.attest(process)
    return caught.value.reason


class Trees:
    """Processes that are said to be in containers: a tree of ours stands for each one's /proc directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._of: dict[int, Path] = {}

    def put(self, pid: int, cgroup: str) -> None:
        self._of[pid] = tree(self._directory / f"proc-{pid}", cgroup)

    def share(self, process: Process) -> str:
        return share_name((self._of[process.pid] / "cgroup").read_text(), process.uid)

    def find(self, proc: int) -> Container | None:
        pid = int(Path(os.readlink(f"/proc/self/fd/{proc}")).name)
        descriptor = os.open(self._of[pid], os.O_RDONLY | os.O_DIRECTORY)
        try:
            return find_container(descriptor, own_cgroups="0::/system.slice/burgee-agent.service\n")
        finally:
            os.close(descriptor)


async def until(condition: Callable[[], Any]) -> None:
    """Polls for at most half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.005)
