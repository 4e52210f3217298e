from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ca.errors import Internal, Unauthenticated, Unavailable
from tests.sds.lab import API, WEB, Lab, Me, ended, entry, eventually


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
async def lab():
    lab = Lab(interval=0.05)
    lab.snapshot(entry("a"), entry("b", "", API))
    runner = asyncio.create_task(lab.workloads.run())
    yield lab
    runner.cancel()
    lab.workloads.close()


async def test_all_streams_of_a_process_share_one_attestation(lab: Lab):
    lab.workloads._interval = 3600

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
