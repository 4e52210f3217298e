from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ca.errors import Exhausted, Internal, Unauthenticated, Unavailable
from ca.identity.selector import Selector
from ca.ports import Process
from sds.limits import LimitsConfig
from sds.workloads import Workloads
from tests.sds.lab import API, WEB, Lab, Me, ended, entry, eventually


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()  # closes its pipe as well


@pytest.fixture
async def lab():
    lab = Lab(interval=0.05)
    lab.snapshot(entry("a"), entry("b", "", API))
    runner = asyncio.create_task(lab.workloads.run())
    yield lab
    runner.cancel()
    lab.workloads.close()


async def test_all_streams_of_a_process_share_one_attestation(lab: Lab):
    lab.workloads.again._interval = 3600

    async def stream() -> None:
        async with lab.workloads.session(Me(), needs_svid=False):
            await asyncio.sleep(0.05)

    await asyncio.gather(*(stream() for _ in range(100)))
    assert lab.attested <= 2
    assert len(lab.workloads) == 1


async def test_a_caller_that_exits_ends_its_streams(lab: Lab, child: subprocess.Popen[bytes]):
    caller = Me(pid=child.pid)
    async with lab.workloads.session(caller, needs_svid=False) as subscription:
        child.kill()
        gone = await ended(subscription)
    assert isinstance(gone, Unauthenticated)
    assert gone.reason == "CALLER_GONE"
    child.wait()
    assert len(lab.workloads) == 0
    with pytest.raises(Unauthenticated):
        async with lab.workloads.session(caller, needs_svid=False):
            pass


async def test_without_pidfds_the_interval_finds_out(
    lab: Lab, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
):
    def no_pidfds(pid: int) -> int:
        raise OSError("not there")

    monkeypatch.setattr(os, "pidfd_open", no_pidfds)
    async with lab.workloads.session(Me(pid=child.pid), needs_svid=False) as subscription:
        child.kill()
        assert isinstance(await ended(subscription), Unauthenticated)


async def test_a_process_that_becomes_another_program_gets_its_identities(lab: Lab):
    async with lab.workloads.session(Me(), needs_svid=False) as subscription:
        assert [e.id for e in lab.cache.content(subscription.view).entries] == ["a"]
        lab.selectors = frozenset({API})
        await eventually(lambda: [e.id for e in lab.cache.content(subscription.view).entries] == ["b"])
        await subscription.changed()


async def test_a_process_that_can_no_longer_be_attested_loses_its_streams(lab: Lab):
    async with lab.workloads.session(Me(), needs_svid=False) as subscription:
        lab.selectors = Unavailable("no attestor could tell")
        assert (await ended(subscription)).reason == "ATTESTATION_FAILED"


@pytest.mark.parametrize("fault", [Unavailable("cannot tell"), Internal("crashed")])
async def test_a_failed_attestation_is_unavailable_and_tells_the_caller_no_more(lab: Lab, fault: Exception):
    lab.selectors = fault  # type: ignore[assignment]
    with pytest.raises(Unavailable) as refused:
        async with lab.workloads.session(Me(), needs_svid=False):
            pass
    assert (refused.value.reason, refused.value.detail) == ("ATTESTATION_FAILED", "workload attestation failed")
    lab.selectors = frozenset({WEB})
    async with lab.workloads.session(Me(), needs_svid=False):
        pass


@pytest.mark.parametrize("caller", [Me(pid=0), Me(pid=None), Me(uid=None)])
async def test_an_invisible_caller_is_refused(lab: Lab, caller: Me):
    with pytest.raises(Unauthenticated) as refused:
        async with lab.workloads.session(caller, needs_svid=False):
            pass
    assert refused.value.reason == "CALLER_INVISIBLE"


async def test_other_credentials_of_one_process_are_attested_apart(lab: Lab):
    async with lab.workloads.session(Me(), needs_svid=False), lab.workloads.session(Me(uid=4242), needs_svid=False):
        assert len(lab.workloads) == 2
        assert lab.attested >= 2


async def test_a_dead_callers_pidfd_does_not_open_its_successors_door(lab: Lab, child: subprocess.Popen[bytes]):
    pidfd = os.pidfd_open(child.pid)
    child.kill()
    child.wait()
    try:
        async with lab.workloads.session(Me(), needs_svid=False):
            with pytest.raises(Unauthenticated):  # our own pid stands for a recycled one
                async with lab.workloads.session(Me(pidfd=pidfd), needs_svid=False):
                    pass
    finally:
        os.close(pidfd)


async def test_processes_and_their_descriptors_are_let_go_of(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sds.workloads.FRESH_SECONDS", 0.05)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with lab.workloads.session(Me(), needs_svid=False):
            pass
    assert len(lab.workloads) == 1
    await eventually(lambda: len(lab.workloads) == 0)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_few_processes_stay_pinned_after_their_calls_and_those_that_call_are_none_of_them(
    lab: Lab, children: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Their connections, by which open files are counted, may be gone: who comes and goes fast would take all files."""
    monkeypatch.setattr("sds.workloads.MAX_IDLE", 2)
    before = len(os.listdir("/proc/self/fd"))
    async with lab.workloads.session(Me(), needs_svid=False) as subscription:
        for pid in children:
            async with lab.workloads.session(Me(pid=pid), needs_svid=False):
                pass
        pinned = [known.process.pid for known in lab.workloads._known.values()]
        assert pinned == [os.getpid(), *children[-2:]], "the latest ones need not be attested again"
        assert len(os.listdir("/proc/self/fd")) - before <= 2 * 3
        assert not subscription.ended


class Crowd:
    """Two cgroups of one user: a hostile one whose attestations never end, and a neighbour."""

    def __init__(self, lab: Lab, limits: LimitsConfig, hostile: set[int]) -> None:
        self.begun: list[int] = []
        self.free = asyncio.Event()
        self.hostile = hostile
        self.workloads = Workloads(
            attest=self._attest,
            cache=lab.cache,
            clock=lab.clock,
            limits=limits,
            share_of=lambda process: "hostile" if process.pid in hostile else "neighbour",
        )

    async def _attest(self, process: Process) -> frozenset[Selector]:
        self.begun.append(process.pid)
        if process.pid in self.hostile:
            await self.free.wait()
        return frozenset({WEB})

    async def call(self, pid: int, hold: asyncio.Event | None = None) -> None:
        async with self.workloads.session(Me(pid=pid), needs_svid=False):
            if hold is not None:
                await hold.wait()


@pytest.fixture
def children() -> Iterator[list[int]]:
    made = [
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        for _ in range(6)
    ]
    yield [process.pid for process in made]
    for process in made:
        process.kill()
        process.wait()


async def test_a_cgroup_whose_attestations_hang_keeps_no_other_from_its_own(lab: Lab, children: list[int]):
    limits = LimitsConfig(max_attestations=3, max_attestations_per_workload=2)
    crowd = Crowd(lab, limits, set(children))
    calls = [asyncio.create_task(crowd.call(pid)) for pid in children]
    await eventually(lambda: len(crowd.begun) == 2)
    await asyncio.wait_for(crowd.call(os.getpid()), 2)  # the third place was left for somebody else
    assert len(crowd.begun) == 3
    crowd.free.set()
    await asyncio.gather(*calls)
    assert set(crowd.begun) == {*children, os.getpid()}
    crowd.workloads.close()


async def test_streams_beyond_the_limit_are_refused_to_that_workload_alone(lab: Lab, children: list[int]):
    crowd = Crowd(lab, LimitsConfig(max_streams_per_workload=2), set(children))
    crowd.free.set()
    hold = asyncio.Event()
    held = [asyncio.create_task(crowd.call(pid, hold)) for pid in children[:2]]
    await eventually(lambda: crowd.workloads._streams.taken("hostile") == 2)
    with pytest.raises(Exhausted) as refused:
        await crowd.call(children[2])  # another process of the same cgroup
    assert refused.value.reason == "STREAM_LIMIT"
    await crowd.call(os.getpid())
    hold.set()
    await asyncio.gather(*held)
    await crowd.call(children[2])
    crowd.workloads.close()
