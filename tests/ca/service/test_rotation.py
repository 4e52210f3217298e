"""Authorities over time: made once, published before they sign, taken up again, replaced and pruned on schedule."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import rmtree

import pytest

from ca.authority.state import AuthorityState
from ca.errors import Unavailable
from ca.identity.bundle import TrustBundle
from ca.keys.disk import DiskKeyManager
from ca.keys.memory import MemoryKeyManager
from ca.ports import KeyManager, KeyType, Signer
from tests.ca.service.rotation_lab import TD, TTL, Bench


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="bg-"))
    yield path
    rmtree(path, ignore_errors=True)


@asynccontextmanager
async def started(directory: Path, keys: KeyManager) -> AsyncIterator[Bench]:
    bench = Bench(directory, keys)
    await bench.start()
    try:
        yield bench
    finally:
        await bench.stop()


@pytest.fixture
async def bench(directory: Path) -> AsyncIterator[Bench]:
    async with started(directory, DiskKeyManager(directory / "keys")) as bench:
        yield bench


async def test_a_first_start_publishes_both_authorities_at_once_and_signs_with_them(bench: Bench) -> None:
    assert ([bench.signing[0]], [bench.signing[1]]) == (bench.roots, bench.kids)
    assert bench.bundle.sequence_number == 1
    assert {a.status for a in bench.authority.authorities} == {AuthorityState.ACTIVE}
    assert bench.authority.check() is None
    (record,) = await bench.store.issuance.find(authority=bench.roots[0])
    assert record.kind == "ca"


async def test_a_restart_takes_up_what_is_there(bench: Bench) -> None:
    before, bundle = bench.signing, bench.bundle
    await bench.restart()
    assert (bench.signing, bench.bundle) == (before, bundle)
    assert len(await bench.keys.list()) == 2


async def test_memory_keys_make_a_new_root_and_leave_the_old_one_believed(directory: Path) -> None:
    async with started(directory, MemoryKeyManager()) as bench:
        before = bench.signing
        bench.keys = MemoryKeyManager()
        await bench.restart()
        assert bench.signing != before
        assert bench.roots == [before[0], bench.signing[0]]
        assert bench.kids == [before[1], bench.signing[1]]
        await bench.after(TTL + 61)
        assert before[0] not in bench.roots


async def test_a_life_of_authorities(bench: Bench) -> None:
    first = bench.signing
    await bench.after(TTL / 2 - 5)
    assert len(bench.roots) == 1
    await bench.after(10)  # half of its life is over: the next one is published, and does not sign yet
    assert len(bench.roots) == len(bench.kids) == 2
    assert bench.signing == first
    assert bench.bundle.sequence_number == 2
    await bench.after(TTL / 3 - 10)
    assert bench.signing == first
    await bench.after(10)  # a sixth is left: the next one signs, the old one is still believed
    second = bench.signing
    assert second == (bench.roots[1], bench.kids[1])
    assert bench.bundle.sequence_number == 2
    await bench.after(TTL / 6 + 70)
    assert first[0] not in bench.roots
    assert first[1] not in bench.kids
    assert len(await bench.keys.list()) == 2 * len(bench.roots)
    assert bench.authority.journal.keys == ()
    await bench.restart()
    assert bench.signing == second


async def test_sleeping_through_everything(bench: Bench) -> None:
    first = bench.signing
    bench.clock.jump(10 * TTL)
    with pytest.raises(Unavailable) as caught:
        bench.authority.x509()
    assert caught.value.reason == "NO_ACTIVE_AUTHORITY"
    problem = bench.authority.check()
    assert problem is not None
    await bench.authority.tick()
    assert bench.signing != first
    assert bench.roots == [bench.signing[0]]


async def test_an_authority_that_was_stored_and_not_published_is_published_at_the_next_start(bench: Bench) -> None:
    bundle = bench.bundle
    await bench.store.bundles.update(TD, lambda _: TrustBundle(trust_domain=TD))  # what a crash in between leaves
    await bench.restart()
    assert bench.bundle.x509_authorities == bundle.x509_authorities
    assert bench.bundle.jwt_authorities == bundle.jwt_authorities


async def test_the_background_task_keeps_the_schedule(bench: Bench) -> None:
    task = asyncio.ensure_future(bench.authority.run())
    try:
        async with asyncio.timeout(20):
            while len(bench.roots) < 2:
                await bench.clock.advance(60)
                await asyncio.sleep(0.005)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


class AwayKeys(MemoryKeyManager):
    """As keys that are elsewhere: out of reach for a while."""

    away = False
    tries = 0

    async def generate(self, key_id: str, key_type: KeyType) -> Signer:
        if self.away:
            self.tries += 1
            raise Unavailable("vault is sealed", reason="VAULT_SEALED")
        return await super().generate(key_id, key_type)


async def test_keys_out_of_reach_when_the_next_authority_is_due_are_asked_again_and_nothing_fails(
    tmp_path: Path,
) -> None:
    """Not at every turn of the loop, and soon after they are back."""
    keys = AwayKeys()
    bench = Bench(tmp_path, keys)
    await bench.start()
    task = asyncio.create_task(bench.authority.run())
    await asyncio.sleep(0)
    keys.away = True
    seconds = int(TTL * 0.6)
    for _ in range(seconds // 10):
        await bench.clock.advance(10)
        await asyncio.sleep(0.01)
    assert not task.done()
    assert 10 < keys.tries < TTL * 0.1
    assert bench.authority.check() is None, "the active ones sign"
    problem = bench.authority.warning()
    assert problem is not None
    assert (problem.reason, problem.detail) == (
        "VAULT_SEALED",
        "no new x509 authority can be made: vault is sealed; this server can sign until 2026-01-01T01:00:00Z",
    )
    keys.away = False
    for _ in range(10):
        await bench.clock.advance(1)
        await asyncio.sleep(0.05)
    assert {a.status for a in bench.authority.authorities} == {AuthorityState.ACTIVE, AuthorityState.PREPARED}
    assert bench.authority.warning() is None
    assert bench.authority.journal.keys == (), "keys that were noted and could not be made are forgotten"
    task.cancel()
    await asyncio.wait([task])
    await bench.stop()
