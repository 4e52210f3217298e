"""Keys that a killed server left behind go; keys that anything refers to, new ones and foreign ones stay."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from ca.errors import Unavailable
from ca.keys.disk import DiskKeyManager
from ca.keys.memory import MemoryKeyManager
from ca.ports import KeyType
from ca.runtime.server_config import StoreConfig
from ca.service import leftover_keys
from ca.service.leftover_keys import LAPSED, SETTLED_SECONDS, STORE_EPOCH, LeftoverKeys
from ca.service.leftover_keys import leftover_keys as leftovers_of
from ca.store.store import Store
from tests.ca.service.rotation_lab import TTL, Bench
from tests.support.clock import FakeClock
from tests.support.server import eventually, running_server

AGE = timedelta(seconds=2 * TTL) + LAPSED


def age_file(file: Path, made: datetime) -> None:
    os.utime(file, (made.timestamp(), made.timestamp()))


async def cannot(*_: object) -> None:
    raise Unavailable("the store is away", reason="STORE_UNAVAILABLE")


async def test_keys_without_an_authority_go_when_the_start_has_settled(tmp_path: Path) -> None:
    keys = DiskKeyManager(tmp_path / "keys")
    bench = Bench(tmp_path, keys)
    await bench.start()
    # As a server left them that was killed in between, before each key was noted ahead of its making.
    orphans = {"x509-00000000000000bb", "jwt-00000000000000bb"}
    for key_id in orphans:
        await keys.generate(key_id, KeyType.EC_P256)
        age_file(tmp_path / "keys" / f"{key_id}.pem", bench.clock.now() - AGE)
    await bench.stop()

    (tmp_path / "keys" / "somebody-elses.pem").touch()
    await bench.start()
    leftovers = LeftoverKeys(keys=keys, store=bench.store, clock=bench.clock, older_than=AGE)
    await leftovers.note()
    own = set(await keys.list()) - orphans
    await keys.generate("x509-00000000000000aa", KeyType.EC_P256)
    running = asyncio.create_task(leftovers.run())
    await asyncio.sleep(0)
    await bench.clock.advance(SETTLED_SECONDS - 1)
    assert orphans < set(await keys.list())
    await bench.clock.advance(1)
    await asyncio.wait_for(running, 5)
    assert set(await keys.list()) == own | {"x509-00000000000000aa"}
    assert "somebody-elses" in own
    await bench.restart()
    assert bench.authority.check() is None, "authorities have kept theirs"
    await bench.stop()


async def test_a_store_that_cannot_be_read_costs_no_key(tmp_path: Path) -> None:
    keys = DiskKeyManager(tmp_path / "keys")
    bench = Bench(tmp_path, keys)
    await bench.start()
    leftovers = LeftoverKeys(keys=keys, store=bench.store, clock=bench.clock, older_than=timedelta())
    await leftovers.note()
    before = await keys.list()
    bench.store.authorities.list = cannot  # type: ignore[method-assign,assignment]
    with pytest.raises(Unavailable):
        await leftovers.dispose()
    assert await keys.list() == before
    await bench.stop()


async def test_a_store_that_names_none_of_the_keys_is_another_one_and_costs_no_key(tmp_path: Path) -> None:
    """Somebody configured the wrong database; with the right one again the server needs its keys."""
    keys = DiskKeyManager(tmp_path / "keys")
    bench = Bench(tmp_path, keys)
    await bench.start()
    other = await Store.open(f"sqlite:///{tmp_path / 'other.sqlite'}", clock=bench.clock)
    leftovers = LeftoverKeys(keys=keys, store=other, clock=bench.clock, older_than=timedelta())
    await leftovers.note()
    before = await keys.list()
    assert await leftovers.dispose() == []
    assert await keys.list() == before
    assert before
    await other.close()
    await bench.stop()


async def test_an_older_store_that_was_restored_costs_no_key_that_the_newer_one_needs(tmp_path: Path) -> None:
    """With the newer store again, or another copy of this server, the server goes on."""
    keys = DiskKeyManager(tmp_path / "keys")
    bench = Bench(tmp_path, keys)
    await bench.start()
    newer = "x509-00000000000000aa"
    await keys.generate(newer, KeyType.EC_P256)
    file = tmp_path / "keys" / f"{newer}.pem"
    made = leftovers_of(keys, own=True, store=bench.store, clock=bench.clock, ca_ttl_seconds=TTL)
    assert made is not None
    await made.note()
    age_file(file, bench.clock.now() - AGE + timedelta(hours=1))
    assert await made.dispose() == []
    age_file(file, bench.clock.now() - AGE)
    assert await made.dispose() == [newer]
    await bench.stop()


@pytest.mark.parametrize("confirmed", [False, True])
async def test_with_another_store_no_key_goes_however_old_until_the_change_is_confirmed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, confirmed: bool
) -> None:
    """Started twice with the wrong store, a server has authorities there too: that alone proves nothing."""
    monkeypatch.setattr(leftover_keys, "SETTLED_SECONDS", 0.1)
    async with running_server() as server:
        directory = server.config.data_dir / "keys"
        right = {key.removesuffix(".pem") for key in os.listdir(directory)}
        for key_id in right:
            age_file(directory / f"{key_id}.pem", datetime.now(UTC) - timedelta(days=4000))
        other = StoreConfig(url=f"sqlite+aiosqlite:///{tmp_path / 'other.sqlite3'}")
        server.config = server.config.model_copy(update={"store": other})
        if confirmed:
            (server.config.data_dir / STORE_EPOCH).unlink()
        keys = DiskKeyManager(directory)
        store = await Store.open(server.config.store_url, clock=FakeClock())
        await store.close()
        await server.restart()
        await server.restart()

        async def gone() -> bool:
            return right.isdisjoint(await keys.list())

        if confirmed:
            await eventually(gone)
        else:
            await asyncio.sleep(0.5)
            assert right <= set(await keys.list())
        assert server.server.authority.check() is None


class DatedKeys(MemoryKeyManager):
    """As if they were elsewhere, with a date each."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.dates: dict[str, datetime] = {}

    async def made_at(self, key_id: str) -> datetime | None:
        return self.dates.get(key_id)


async def test_keys_that_a_copy_of_this_server_could_use_go_when_what_they_signed_has_lapsed(tmp_path: Path) -> None:
    keys = DatedKeys()
    bench = Bench(tmp_path, keys)
    await bench.start()
    young, old, undated = (f"x509-00000000000000{end}" for end in ("aa", "bb", "cc"))
    for key_id in (young, old, undated):
        await keys.generate(key_id, KeyType.EC_P256)
    keys.dates = {young: bench.clock.now() - AGE + timedelta(hours=1), old: bench.clock.now() - AGE}
    made = leftovers_of(keys, own=False, store=bench.store, clock=bench.clock, ca_ttl_seconds=TTL)
    assert made is not None
    await made.note()
    assert await made.dispose() == [old]
    bench.clock.jump(3600)
    assert await made.dispose() == [young]
    assert undated in await keys.list()
    assert len(await keys.list()) == 3, "authorities have kept theirs"
    await bench.stop()


def test_keys_without_dates_and_those_in_a_shared_place_are_left_alone(tmp_path: Path) -> None:
    nowhere = cast(Store, None)
    for keys in (MemoryKeyManager(), DiskKeyManager(tmp_path / "shared")):
        made = leftovers_of(keys, own=False, store=nowhere, clock=FakeClock(), ca_ttl_seconds=TTL)
        assert made is None


@pytest.mark.parametrize("shared", [False, True])
async def test_a_server_looks_after_the_directory_that_is_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: bool
) -> None:
    monkeypatch.setattr(leftover_keys, "SETTLED_SECONDS", 0.1)
    changes = {"keys": {"plugin": "disk", "config": {"directory": str(tmp_path / "keys")}}} if shared else {}
    async with running_server(**changes) as server:
        keys = DiskKeyManager(tmp_path / "keys" if shared else server.config.data_dir / "keys")
        await keys.generate("x509-00000000000000aa", KeyType.EC_P256)
        file = (tmp_path if shared else server.config.data_dir) / "keys" / "x509-00000000000000aa.pem"
        age_file(file, datetime.now(UTC) - timedelta(days=4000))
        await server.restart()

        async def gone() -> bool:
            return "x509-00000000000000aa" not in await keys.list()

        if shared:
            await asyncio.sleep(0.5)
        else:
            await eventually(gone)
        assert await gone() != shared
        assert server.server.authority.check() is None
