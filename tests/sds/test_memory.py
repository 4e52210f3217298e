"""What the agent remembers by one workload's choice is bounded for that workload, and its neighbours keep theirs."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from ca.errors import Exhausted
from ca.identity.selector import Selector
from ca.ports import Process
from sds.envoy_delta import DeltaStream
from sds.envoy_service import Inbox
from sds.envoy_stream import SdsStream
from sds.envoy_subscriber import Subscriber
from sds.idle import Idle
from sds.limits import LimitsConfig
from sds.memory import Memory
from sds.workloads import Workloads
from tests.sds.lab import WEB, Lab, Me, ended, entry, eventually, status_of
from tests.support.workload_client import SdsCall

MIB = 1 << 20
LIMITS = LimitsConfig(max_memory_bytes_per_workload=MIB)
HOSTILE, NEIGHBOUR = "hostile", "neighbour"
OWN = "spiffe://example.org"


# --- the books --------------------------------------------------------------------------------------------------------


def test_one_share_at_its_limit_leaves_another_its_own() -> None:
    memory = Memory(100)
    with memory.room(HOSTILE).charge() as hostile:
        hostile.set(100)
        with pytest.raises(Exhausted) as refused:
            hostile.set(101)
        assert refused.value.reason == "MEMORY_LIMIT"
        assert (hostile.size, memory.used(HOSTILE)) == (100, 100)
        with memory.room(NEIGHBOUR).charge() as neighbour:
            neighbour.set(100)
        hostile.set(1)
        hostile.set(100)
    assert memory.used(HOSTILE) == memory.used(NEIGHBOUR) == 0


def test_what_only_saves_time_gets_half_of_the_room() -> None:
    memory = Memory(100)
    assert memory.offer(HOSTILE, 50)
    assert not memory.offer(HOSTILE, 1)
    assert memory.offer(NEIGHBOUR, 50)
    with memory.room(HOSTILE).charge() as charge:
        charge.set(50)


def test_the_idle_of_whoever_has_most_goes_first() -> None:
    idle: Idle[int, str] = Idle(10)
    idle.put(-1, "theirs", NEIGHBOUR)
    for number in range(1000):
        idle.put(number, "ours", HOSTILE)
    assert len(idle) == 10
    assert idle.pop(-1) == "theirs"
    assert [key for key in range(1000) if idle.pop(key)] == list(range(991, 1000))
    idle.put(1, "a", HOSTILE)
    idle.put(1, "b", NEIGHBOUR)  # used by somebody else since
    assert (list(idle), idle.pop(1), idle.pop(1)) == (["b"], "b", None)


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def quiet_lab() -> AsyncIterator[Lab]:
    lab = Lab()
    yield lab
    await lab.keys.close()


async def test_ever_other_selectors_make_no_content_of_their_own_and_put_out_nobodys_view(quiet_lab: Lab) -> None:
    lab = quiet_lab
    lab.snapshot(entry("a"), federated=True)
    await lab.rotator.round()
    theirs = lab.cache.subscribe(frozenset({WEB}), needs_svid=True, share=NEIGHBOUR)
    made = lab.cache.content(theirs.view)
    lab.cache.unsubscribe(theirs)
    contents: set[int] = set()
    for number in range(2000):
        selectors = frozenset({WEB, Selector("unix", f"path:/tmp/{number}")})
        subscription = lab.cache.subscribe(selectors, needs_svid=True, share=HOSTILE)
        contents.add(id(lab.cache.content(subscription.view)))
        lab.cache.unsubscribe(subscription)
    assert contents == {id(made)}
    again = lab.cache.subscribe(frozenset({WEB}), needs_svid=True, share=NEIGHBOUR)
    assert again.view is theirs.view
    assert lab.cache.content(again.view) is made


async def test_views_with_other_entries_svids_or_bundles_share_nothing(quiet_lab: Lab) -> None:
    lab = quiet_lab
    api = Selector("unix", "user:api")
    lab.snapshot(entry("a"), entry("b", "", api))
    one = lab.cache.subscribe(frozenset({WEB}), needs_svid=False)
    two = lab.cache.subscribe(frozenset({api}), needs_svid=False)
    both = lab.cache.subscribe(frozenset({WEB, api}), needs_svid=False)
    assert len({id(lab.cache.content(s.view)) for s in (one, two, both)}) == 3
    before = lab.cache.content(one.view)
    await lab.rotator.round()
    issued = lab.cache.content(one.view)
    assert issued is not before
    lab.put(bundles=(lab.authority.bundle(lab.foreign),))
    assert lab.cache.content(one.view) is not issued


async def test_why_there_is_no_identity_is_told_for_each_kind_of_caller(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """They share one content, the empty one."""
    async with lab.client() as client:
        for name in ("x", "y", "x"):
            lab.selectors = frozenset({Selector("unix", f"user:{name}")})
            lab.workloads.close()
            assert await status_of(client.x509_svids()) == ("PERMISSION_DENIED", "no identity issued")
    assert "".join(capsys.readouterr()).count("no identity for a caller") == 2


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[Me]:
    """The hostile workload's process; the neighbour is this one."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield Me(pid=process.pid)
    process.kill()
    process.wait()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    lab.workloads = Workloads(
        attest=lab._attest,
        cache=lab.cache,
        clock=lab.clock,
        interval_seconds=3600,
        limits=LIMITS,
        share_of=lambda process: NEIGHBOUR if process.pid == os.getpid() else HOSTILE,
    )
    async with lab:
        await lab.issued(entry("a"))
        yield lab


def used(lab: Lab, share: str) -> int:
    return lab.workloads.memory.used(share)


@pytest.mark.parametrize("kind", ["sds", "delta"])
async def test_names_without_end_end_the_streams_of_who_asks_for_them(lab: Lab, child: Me, kind: str) -> None:
    """Each of them within the bounds of one stream, and each of a process that is attested and has an identity."""
    async with lab.client() as client:
        lab.caller = child
        calls: list[SdsCall] = []
        names = [f"{number:04}" + "n" * 100 for number in range(300)]
        for _ in range(6):
            calls.append(getattr(client, kind)())
            await calls[-1].ask("default", *names)
        reads = [asyncio.ensure_future(call.read()) for call in calls]
        done = await asyncio.gather(*reads, return_exceptions=True)
        refused = [end for end in done if isinstance(end, grpc.aio.AioRpcError)]
        assert 0 < len(refused) < 6
        assert {end.code() for end in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all("beyond its limit" in (end.details() or "") for end in refused)
        assert MIB / 3 < used(lab, HOSTILE) <= MIB
        lab.caller = Me()
        neighbour = getattr(client, kind)()
        await neighbour.ask("default", "ROOTCA")
        assert len((await asyncio.wait_for(neighbour.read(), 5)).resources) == 2
        for call in calls:
            call.call.cancel()
        await eventually(lambda: used(lab, HOSTILE) < 4096)  # the process itself is still remembered


async def test_every_spelling_of_a_name_is_answered_and_only_ours_is_kept(lab: Lab, child: Me) -> None:
    """Both are the same identity, so the hostile one fills what the neighbour's answers are made from: or tries to."""
    async with lab.client() as client:
        lab.caller = child
        view = lab.cache.subscribe(frozenset({WEB}), needs_svid=False).view
        content = lab.cache.content(view)
        call = client.sds()
        for first in range(40):
            names = [f"spiffe://{_spelled('example', first * 64 + n)}.org" for n in range(64)]
            await call.ask(*names, response_nonce=call.last.nonce)
            assert len((await call.read()).resources) == 64
        assert used(lab, HOSTILE) <= MIB
        assert {key[1] for key in content._made if isinstance(key, tuple) and key[0] != "version"} <= {OWN}
        assert sum(map(len, content._chosen.values())) <= MIB / 2
        lab.caller = Me()
        for _ in range(2):
            neighbour = client.sds()
            await neighbour.ask("default", "ROOTCA")
            assert len((await neighbour.read()).resources) == 2
        assert {key[:2] for key in content._made if isinstance(key, tuple)} >= {
            ("svid", "default"),
            ("bundle", "ROOTCA"),
        }
        kept = [key for key in content._chosen if key[1] == ("ROOTCA", "default")]
        assert len(kept) == 1, "in the neighbour's own room"
        assert used(lab, NEIGHBOUR) > 0


async def test_answers_are_given_back_with_the_content_that_they_are_of(lab: Lab, child: Me) -> None:
    async with lab.client() as client:
        lab.caller = child
        for number in range(20):
            call = client.sds()
            await call.ask("default", f"spiffe://{_spelled('example', number)}.org")
            await call.read()
            call.call.cancel()
        await eventually(lambda: lab.cache.streams() == 0)
        kept = used(lab, HOSTILE)
        assert kept > 20_000
        lab.put(bundles=(lab.authority.bundle(lab.foreign),))
        gc.collect()
        await eventually(lambda: used(lab, HOSTILE) < kept / 4)


async def test_requests_that_wait_are_counted(lab: Lab) -> None:
    """A client that reads none of its answers, so that nothing more is looked at, and goes on asking."""

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(200_000)

    subscription = lab.cache.subscribe(frozenset({WEB}), needs_svid=False, share=HOSTILE)
    with lab.workloads.memory.room(HOSTILE).charge() as waiting:
        inbox = Inbox(subscription, waiting, lab.pace)
        await asyncio.wait_for(inbox.fill(requests()), 2)
        assert (await ended(subscription)).reason == "MEMORY_LIMIT"
        assert used(lab, HOSTILE) == 5 * 200_000
        while inbox.next() is not None:
            assert not inbox.ended or used(lab, HOSTILE) == 0
        assert inbox.ended
        assert used(lab, HOSTILE) == 0


@pytest.mark.parametrize("stream", [SdsStream(), DeltaStream()], ids=["sds", "delta"])
def test_what_a_stream_holds_is_counted(stream: Subscriber) -> None:
    empty = stream.held_bytes()
    long = "t" * 10_000
    request: Any
    if isinstance(stream, SdsStream):
        request = discovery_pb2.DiscoveryRequest(resource_names=["n" * 1000], type_url=long)
    else:
        request = discovery_pb2.DeltaDiscoveryRequest(
            resource_names_subscribe=["n" * 1000], type_url=long, initial_resource_versions={"n" * 1000: long}
        )
    stream.take_in(request.SerializeToString(), datetime.now(UTC))
    grown = stream.held_bytes() - empty
    assert grown > 11_000 if isinstance(stream, SdsStream) else grown > 22_000


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def children() -> Iterator[list[Me]]:
    made = [
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    yield [Me(pid=process.pid) for process in made]
    for process in made:
        process.kill()
        process.wait()


async def test_processes_with_very_many_selectors_use_up_their_own_share(quiet_lab: Lab, children: list[Me]) -> None:
    quiet_lab.snapshot(entry("a"))
    many = 2000

    async def attest(process: Process) -> frozenset[Selector]:
        if process.pid == os.getpid():
            return frozenset({WEB})
        return frozenset(Selector("unix", f"supplementary_gid:{process.pid}{number}") for number in range(many))

    workloads = Workloads(
        attest=attest,
        cache=quiet_lab.cache,
        clock=quiet_lab.clock,
        interval_seconds=0.05,
        limits=LIMITS,
        share_of=lambda process: NEIGHBOUR if process.pid == os.getpid() else HOSTILE,
    )
    runner = asyncio.create_task(workloads.run())
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(workloads.session(child, needs_svid=False)) for child in children[:2]
        ]
        with pytest.raises(Exhausted) as refused:
            await stack.enter_async_context(workloads.session(children[2], needs_svid=False))
        assert refused.value.reason == "MEMORY_LIMIT"
        neighbour = await stack.enter_async_context(workloads.session(Me(), needs_svid=False))
        many = 4000  # at the next look there is room for one of them
        await eventually(lambda: one.ended or two.ended)
        assert (await ended(one if one.ended else two)).reason == "MEMORY_LIMIT"
        neighbour.check()
    runner.cancel()
    workloads.close()
    assert workloads.memory.used(HOSTILE) == workloads.memory.used(NEIGHBOUR) == 0


def _spelled(name: str, number: int) -> str:
    return "".join(c.upper() if number >> position & 1 else c for position, c in enumerate(name))
