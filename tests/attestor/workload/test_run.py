"""Asking all workload attestors: each outcome is kept, and none can take the others' away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from attestor.workload.run import AttestationRefused, attest_all
from ca.errors import BurgeeError, Unauthenticated, Unavailable
from ca.identity.selector import Selector
from ca.ports import Process
from ca.runtime.notes import note
from ca.runtime.threads import to_thread
from tests.attestor.processes import Pinned, pinned


class Says:
    """Answers with these selectors, or raises."""

    def __init__(self, *selectors: str, error: Exception | None = None) -> None:
        self._selectors = frozenset(Selector.parse(s) for s in selectors)
        self._error = error

    async def attest(self, process: Process) -> frozenset[Selector]:
        if self._error:
            raise self._error
        return self._selectors


class Hangs:
    async def attest(self, process: Process) -> frozenset[Selector]:
        await asyncio.Event().wait()
        return frozenset()


class Slow:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def attest(self, process: Process) -> frozenset[Selector]:
        await asyncio.sleep(self._seconds)
        return frozenset({Selector("slow", "1")})


class Deaf:
    """Goes on when it is told to stop."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.told = 0

    async def attest(self, process: Process) -> frozenset[Selector]:
        while not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                self.told += 1
        return frozenset({Selector("deaf", "1")})


class Notes:
    """Notes its own name, from a thread as well, and what it saw of the notes of others: nothing."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self._name = name
        self._error = error

    async def attest(self, process: Process) -> frozenset[Selector]:
        note("name", self._name)
        await to_thread(note, "thread", self._name)
        if self._error:
            raise self._error
        return frozenset()


@pytest.fixture
def process() -> Iterator[Pinned]:
    with pinned(os.getpid()) as pin:
        yield pin


async def test_findings_are_put_together(process: Pinned) -> None:
    found = await attest_all({"a": Says("a:1", "a:2"), "b": Says("b:1"), "c": Says()}, process)
    assert {str(s) for s in found.selectors} == {"a:1", "a:2", "b:1"}
    assert [(o.attestor, len(o.selectors), o.error) for o in found.outcomes] == [
        ("a", 2, None),
        ("b", 1, None),
        ("c", 0, None),
    ]


async def test_some_failing_is_tolerated_and_kept(process: Pinned) -> None:
    failing = {
        "down": Says(error=Unavailable("socket is gone", reason="DOWN")),
        "slow": Hangs(),
        "broken": Says(error=ZeroDivisionError()),
        "a": Says("a:1"),
    }
    found = await attest_all(failing, process, timeout_seconds=0.05)
    reasons = {o.attestor: o.error.reason for o in found.outcomes if o.error}
    assert reasons == {"down": "DOWN", "slow": "ATTESTOR_TIMEOUT", "broken": "ATTESTOR_CRASHED"}
    assert {str(s) for s in found.selectors} == {"a:1"}


async def test_all_failing_is_unavailable(process: Pinned) -> None:
    with pytest.raises(Unavailable) as caught:
        await attest_all({"a": Says(error=Unavailable("x")), "b": Says(error=ValueError())}, process)
    assert caught.value.detail == "workload attestation failed"
    assert caught.value.reason == "WORKLOAD_ATTESTATION_FAILED"


async def test_an_attestor_vouches_for_its_own_type_only(process: Pinned) -> None:
    found = await attest_all({"a": Says("a:1", "unix:uid:0"), "unix": Says("unix:uid:1")}, process)
    assert {str(s) for s in found.selectors} == {"unix:uid:1"}
    (error,) = [o.error for o in found.outcomes if o.error]
    assert error.reason == "ATTESTOR_FOREIGN_SELECTOR"


@pytest.mark.parametrize("check", [1, 2])
async def test_a_caller_that_has_gone_gets_nothing(process: Pinned, check: int) -> None:
    process.dies_at_check = check
    with pytest.raises(Unauthenticated):
        await attest_all({"a": Says("a:1")}, process)


async def test_a_caller_that_goes_while_it_is_looked_at(process: Pinned) -> None:
    with pytest.raises(BurgeeError) as caught:
        await attest_all({"a": Says(error=Unauthenticated("gone", reason="CALLER_GONE")), "b": Says("b:1")}, process)
    assert caught.value.reason == "CALLER_GONE"


async def test_what_each_notes_and_takes_is_kept_with_its_outcome(process: Pinned) -> None:
    failing = Notes("b", Unavailable("down", reason="DOWN"))
    found = await attest_all({"a": Notes("a"), "b": failing, "slow": Hangs()}, process, deadlines={"slow": 0.05})
    a, b, slow = found.outcomes
    assert [(n.what, n.value) for n in a.notes] == [("name", "a"), ("thread", "a")]
    assert [(n.what, n.value) for n in b.notes] == [("name", "b"), ("thread", "b")]
    assert slow.notes == ()
    assert slow.seconds >= 0.05 > 0 < a.seconds


async def test_each_attestor_has_its_own_deadline(process: Pinned) -> None:
    """The others answer in their own time, and one that does not heed its end is not waited for."""
    deaf = Deaf()
    found = await attest_all({"deaf": deaf, "slow": Slow(0.2)}, process, deadlines={"deaf": 0.05, "slow": 30})
    assert {o.attestor: o.error.reason for o in found.outcomes if o.error} == {"deaf": "ATTESTOR_TIMEOUT"}
    assert {str(s) for s in found.selectors} == {"slow:1"}
    await asyncio.sleep(0)
    assert deaf.told == 1
    deaf.free.set()


async def test_when_none_could_tell_it_is_known_what_each_met(process: Pinned) -> None:
    with pytest.raises(AttestationRefused) as caught:
        await attest_all({"a": Says(error=Unavailable("x", reason="X")), "b": Hangs()}, process, timeout_seconds=0.05)
    assert [o.error.reason for o in caught.value.outcomes if o.error] == ["X", "ATTESTOR_TIMEOUT"]


async def test_nobody_goes_on_once_the_caller_is_known_to_have_gone(process: Pinned) -> None:
    gone, ended = Says(error=Unauthenticated("gone", reason="CALLER_GONE")), asyncio.Event()

    class Long:
        async def attest(self, process: Process) -> frozenset[Selector]:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return frozenset()

    with pytest.raises(Unauthenticated):
        await attest_all({"long": Long(), "a": gone}, process)
    await asyncio.wait_for(ended.wait(), 5)
