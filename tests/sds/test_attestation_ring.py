"""What the agent remembers of attestations and refusals: exact, bounded, and found by what the caller was told."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from typing import Any

import pytest

from attestor.workload.run import Attestation, AttestationRefused, Outcome, attest_all
from ca.errors import Denied, Unauthenticated, Unavailable
from ca.identity.selector import Selector
from ca.ports import Process
from ca.runtime import log
from ca.runtime.notes import Note
from ca.runtime.ring import Bounds
from sds.attestation_ring import AttestationRing, Attested, Refused, telling
from sds.explain import no_identity
from sds.peer import PinnedProcess
from sds.workloads import Workloads
from tests.sds.lab import WEB, Lab, Me, entry
from tests.support.clock import FakeClock

KUBELET = Unavailable("kubelet refused", reason="KUBELET_UNREACHABLE", hint="start it")


@pytest.fixture
def process() -> Any:
    pinned = PinnedProcess.pin(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
    yield pinned
    pinned.close()


def outcome(name: str = "unix", error: Unavailable | None = None, note: str = "") -> Outcome:
    notes = (Note("looked at", note),) if note else ()
    selectors = frozenset() if error else frozenset({Selector(name, "uid:1")})
    return Outcome(attestor=name, selectors=selectors, error=error, seconds=0.001, notes=notes)


def attested(ring: AttestationRing, process: PinnedProcess, *selectors: Selector, share: str = "me") -> Attested:
    with ring.attesting(process, share) as record:
        record.selectors = frozenset(selectors)
    return record


async def test_every_attestors_outcome_is_kept_of_success_and_of_failure(process: PinnedProcess) -> None:
    ring = AttestationRing(FakeClock())
    outcomes = (outcome(note="status"), outcome("k8s", KUBELET))

    async def some(_: Process) -> Attestation:
        return Attestation(selectors=frozenset({WEB}), outcomes=outcomes)

    async def none(_: Process) -> Attestation:
        raise AttestationRefused(outcomes[1:])

    with ring.attesting(process, "me") as first:
        first.selectors = await telling(some)(process)
    assert (first.outcomes, first.selectors, first.error) == (outcomes, frozenset({WEB}), None)
    with pytest.raises(AttestationRefused), ring.attesting(process, "me") as second:
        await telling(none)(process)
    assert second.outcomes == outcomes[1:]
    assert second.error is not None
    assert second.error.reason == "WORKLOAD_ATTESTATION_FAILED"
    assert ring.of(os.getpid()) == [second, first]


class Answer(bytearray):
    """Such as can be asked whether anybody holds it."""


async def test_what_was_in_hand_when_something_failed_is_not_kept(process: PinnedProcess) -> None:
    ring, holding = AttestationRing(FakeClock()), [Answer(4)]
    held = weakref.ref(holding[0])

    class Failing:
        async def attest(self, _: Process) -> frozenset[Selector]:
            answer = holding.pop()
            raise Unavailable(f"{len(answer)} bytes that are no answer", reason="KUBELET_ANSWER")

    async def call() -> None:
        try:
            with ring.attesting(process, "me") as record:
                await telling(lambda process: attest_all({"k8s": Failing()}, process))(process)
        except AttestationRefused as error:
            ring.refused(error, pid=process.pid, uid=0, gid=0, share="me", attested=record)

    await call()
    await asyncio.sleep(0)
    gc.collect()
    assert held() is None
    attested, refused = sorted(ring.of(process.pid), key=lambda record: isinstance(record, Refused))
    assert isinstance(attested, Attested)
    assert isinstance(refused, Refused)
    assert attested.outcomes[0].error is not None
    assert attested.outcomes[0].error.reason == "KUBELET_ANSWER"
    for kept in (attested.error, refused.error):
        assert isinstance(kept, AttestationRefused)
        assert kept.__traceback__ is None


async def test_one_that_is_given_up_is_kept_as_cut_off(process: PinnedProcess) -> None:
    ring = AttestationRing(FakeClock())

    async def hang() -> None:
        with ring.attesting(process, "me"):
            await asyncio.sleep(60)

    task = asyncio.create_task(hang())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (record,) = ring.of(os.getpid())
    assert isinstance(record, Attested)
    assert record.error is not None
    assert "CancelledError" in record.error.detail


async def test_the_same_again_is_counted_and_takes_no_room(process: PinnedProcess) -> None:
    clock = FakeClock()
    ring = AttestationRing(clock)
    first = attested(ring, process, WEB)
    for _ in range(5):
        await clock.advance(10)
        attested(ring, process, WEB)
    assert len(ring) == 1
    assert (first.again, first.last_at) == (5, clock.now())
    attested(ring, process)
    assert len(ring) == 2, "other selectors are news"


def test_one_workload_does_not_push_out_what_is_known_of_others(process: PinnedProcess) -> None:
    ring = AttestationRing(FakeClock(), total=Bounds(items=20, bytes=10**6), each=Bounds(items=15, bytes=10**6))
    attested(ring, process, WEB, share="quiet")
    for _ in range(100):
        ring.refused(no_identity(), pid=7, uid=1, gid=1, share="noisy")
    assert len(ring) == 16
    assert [record.share for record in ring.of(os.getpid())] == ["quiet"]
    for number in range(100):
        ring.refused(no_identity(), pid=number + 100, uid=number, gid=1, share="other")
    assert [record.share for record in ring.of(os.getpid())] == ["quiet"]
    assert len(ring) == 20


def test_notes_without_end_stay_within_the_bytes(process: PinnedProcess) -> None:
    ring = AttestationRing(FakeClock())
    many = tuple(Note("what", f"{number}" * 100) for number in range(64))
    for number in range(2000):
        with ring.attesting(process, f"s{number % 50}") as record:
            record.outcomes = ()
            record.selectors = frozenset({Selector("unix", f"uid:{number}"), *(Selector("x", n.value) for n in many)})
    assert ring.used_bytes <= 1 << 20


def test_what_went_is_counted_anew(process: PinnedProcess) -> None:
    ring = AttestationRing(FakeClock(), total=Bounds(items=2, bytes=10**6), each=Bounds(items=2, bytes=10**6))
    first = attested(ring, process, WEB)
    for _ in range(2):
        ring.refused(no_identity(), pid=7, uid=1, gid=1, share="me")
    assert not first.kept
    attested(ring, process, WEB)
    assert first.again == 0
    assert len(ring.of(os.getpid())) == 1


class TestRefusals:
    """Through the sessions in which calls are refused."""

    async def test_a_refusal_leads_to_what_was_known(self) -> None:
        lab = Lab()
        lab.snapshot(entry("a"))
        lab.selectors = frozenset({Selector("unix", "user:nobody")})
        told = log.new_request_id()
        with pytest.raises(Denied):
            async with lab.workloads.session(Me(), needs_svid=False):
                raise no_identity()
        refused = lab.workloads.ring.by_id(told)
        assert refused is not None
        assert (refused.error.reason, refused.pid) == ("NO_IDENTITY", os.getpid())
        assert refused.attested is not None
        assert refused.attested.selectors == lab.selectors
        assert lab.workloads.ring.by_id("") is None
        assert lab.workloads.ring.by_id("00000000-1") is None
        lab.workloads.close()

    async def test_a_failed_attestation_is_what_was_known(self) -> None:
        lab = Lab()
        lab.snapshot(entry("a"))
        lab.selectors = Unavailable("no")
        told = log.new_request_id()
        with pytest.raises(Unavailable):
            async with lab.workloads.session(Me(), needs_svid=False):
                pass
        refused = lab.workloads.ring.by_id(told)
        assert refused is not None
        assert refused.error.reason == "ATTESTATION_FAILED"
        assert refused.attested is not None
        assert refused.attested.error is not None
        lab.workloads.close()

    async def test_who_cannot_be_found_is_remembered_by_what_the_socket_said(self) -> None:
        lab = Lab()
        lab.snapshot()
        told = log.new_request_id()
        with pytest.raises(Unauthenticated):
            async with lab.workloads.session(Me(pid=0), needs_svid=False):
                pass
        refused = lab.workloads.ring.by_id(told)
        assert refused is not None
        assert (refused.error.reason, refused.attested) == ("CALLER_INVISIBLE", None)

    async def test_a_call_that_is_answered_leaves_no_refusal(self) -> None:
        lab = Lab()
        lab.snapshot(entry("a"))
        async with lab.workloads.session(Me(), needs_svid=False):
            pass
        assert not [record for record in lab.workloads.ring.of(os.getpid()) if isinstance(record, Refused)]
        lab.workloads.close()

    async def test_looking_on_an_administrators_behalf_is_fresh_and_no_refusal(self) -> None:
        lab = Lab()
        lab.snapshot(entry("a"))
        workloads: Workloads = lab.workloads
        async with workloads.session(Me(), needs_svid=False):
            pass
        found, error = await workloads.look_anew(Me())
        assert lab.attested == 2, "whatever was found a moment ago"
        assert error is None
        assert found is not None
        assert found.selectors == frozenset({WEB})
        lab.selectors = Unavailable("no")
        found, error = await workloads.look_anew(Me())
        assert error is not None
        assert error.reason == "ATTESTATION_FAILED"
        assert found is not None
        assert found.error is not None
        assert not [record for record in workloads.ring.of(os.getpid()) if isinstance(record, Refused)]
        workloads.close()
