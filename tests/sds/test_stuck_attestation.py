"""Attestations that hang in a thread, as on a mount whose server is gone, have their workload's places and no more."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from attestor.workload.run import attest_all
from ca.errors import Exhausted, Unavailable
from ca.identity.selector import Selector
from ca.ports import Process
from ca.runtime.threads import to_thread
from sds.limits import LimitsConfig
from sds.workloads import Workloads
from tests.sds.lab import WEB, Lab, Me, entry, eventually

EACH = 2
LIMITS = LimitsConfig(max_attestations=3, max_attestations_per_workload=EACH)


class Hanging:
    """A workload attestor that blocks on the files of some processes until they are let go."""

    def __init__(self, hostile: list[int]) -> None:
        self.hostile = set(hostile)
        self.go = threading.Event()
        self.begun: list[int] = []
        self.running = 0

    async def attest(self, process: Process) -> frozenset[Selector]:
        return await to_thread(self._look, process.pid)

    def _look(self, pid: int) -> frozenset[Selector]:
        if pid in self.hostile:
            self.begun.append(pid)
            self.running += 1
            self.go.wait(60)
            self.running -= 1
        return frozenset({WEB})


@pytest.fixture
def children() -> Iterator[list[int]]:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    made = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(6)]
    yield [process.pid for process in made]
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def attestor(children: list[int]) -> Iterator[Hanging]:
    hanging = Hanging(children)
    yield hanging
    hanging.go.set()


@pytest.fixture
async def workloads(attestor: Hanging) -> AsyncIterator[Workloads]:
    async def attest(process: Process) -> frozenset[Selector]:
        return (await attest_all({WEB.type: attestor}, process, timeout_seconds=0.1)).selectors

    async with Lab() as lab:
        await lab.issued(entry("a"))
        made = Workloads(
            attest=attest,
            cache=lab.cache,
            clock=lab.clock,
            limits=LIMITS,
            share_of=lambda process: "hostile" if process.pid in attestor.hostile else "neighbour",
        )
        yield made
        made.close()


async def call(workloads: Workloads, pid: int) -> str:
    """The reason with which a call of this process is refused, or an empty string."""
    try:
        async with workloads.session(Me(pid=pid), needs_svid=False):
            return ""
    except (Unavailable, Exhausted) as error:
        return error.reason


async def test_a_workload_has_as_many_threads_that_hang_as_attestations(
    workloads: Workloads, attestor: Hanging, children: list[int]
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    calls = await asyncio.gather(*(call(workloads, pid) for pid in children))
    assert calls.count("ATTESTATION_FAILED") == EACH
    assert calls.count("ATTESTATION_STUCK") == len(children) - EACH
    for pid in children:
        assert await asyncio.wait_for(call(workloads, pid), 1) == "ATTESTATION_STUCK"
    assert len(attestor.begun) == attestor.running == EACH
    # A neighbour has all the places that are for all, and the pool has its thread.
    for _ in range(3):
        assert await asyncio.wait_for(call(workloads, os.getpid()), 1) == ""
    assert await asyncio.wait_for(asyncio.to_thread(os.getpid), 1) == os.getpid()
    attestor.go.set()
    await eventually(lambda: workloads._turns.stuck("hostile") == 0)
    assert {await call(workloads, pid) for pid in children} == {""}


async def test_one_process_whose_file_hangs_takes_one_place(
    workloads: Workloads, attestor: Hanging, children: list[int]
) -> None:
    assert await call(workloads, children[0]) == "ATTESTATION_FAILED"
    for _ in range(3):
        assert await call(workloads, children[0]) == "ATTESTATION_STUCK"
    assert attestor.begun == [children[0]]
    attestor.hostile.discard(children[1])
    workloads._share_of = lambda process: "hostile"
    assert await call(workloads, children[1]) == ""  # another process of the same workload
