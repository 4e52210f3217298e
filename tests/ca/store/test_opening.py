"""Opening a store: URLs, the lock of a data directory, file modes, migrations."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from ca.errors import ConfigError, Denied, FailedPrecondition, Unavailable
from ca.store.database import Database, parse_url
from ca.store.lock import DatabaseLock
from ca.store.migrate import HEAD, alembic_config, current, migrate
from ca.store.store import Store
from ca.store.tables import metadata
from tests.support.clock import FakeClock
from tests.support.stores import BOTH, HOUR, NOW, entry, opened, url_of


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with url_of(request.param, tmp_path) as made:
        yield made


async def test_migrated_schema_is_the_tables(url: str) -> None:
    async with opened(url):
        pass
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert current(connection) == HEAD
    engine.dispose()


def test_migrations_go_up_down_and_up_again(url: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        migrate(connection)
        migrate(connection)  # at head already: nothing to do
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
        migrate(connection)
        assert set(metadata.tables) <= set(inspect(connection).get_table_names())
    engine.dispose()


async def test_a_store_from_before_gets_a_key_for_token_ids_and_keeps_it(url: str) -> None:
    async with opened(url) as store:
        await store.tokens.create("a-token-of-before", NOW + HOUR)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0005")
    engine.dispose()
    seen = []
    for _ in range(2):
        async with opened(url) as store:
            [token] = await store.tokens.list()
            assert token.id == store.tokens.id_of("a-token-of-before")
            seen.append(token.id)
    assert seen[0] == seen[1]


async def test_tokens_from_before_names_and_counts_go_on_as_they_were(url: str) -> None:
    own = b"k" * 32
    async with opened(url) as store:
        for value in ("unused", "used-long-ago", "used-just-now", "expired"):
            await store.tokens.create(value, NOW - HOUR if value == "expired" else NOW + HOUR)
        await store.tokens.create("for-many", NOW + HOUR, uses=3)
        await store.tokens.consume("used-just-now", NOW, key_sha256=own)
        await store.tokens.consume("used-long-ago", NOW - HOUR, key_sha256=own)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0007")
        used = connection.exec_driver_sql("SELECT count(*) FROM join_tokens WHERE used_key_sha256 IS NOT NULL")
        assert used.scalar_one() == 2, "an older server hears lost answers too"
    engine.dispose()
    async with opened(url) as store:
        assert sorted((t.uses, t.used, t.name, t.revoked) for t in await store.tokens.list()) == [
            (1, 0, "", False),
            (1, 0, "", False),
            (1, 1, "", False),
            (1, 1, "", False),
        ]
        assert (await store.tokens.consume("unused", NOW, key_sha256=own)).name == "unused"
        assert (await store.tokens.consume("used-just-now", NOW, key_sha256=own)).name == "used-just-now"
        for value, reason in (
            ("unused", "JOIN_TOKEN_UNKNOWN"),
            ("used-just-now", "JOIN_TOKEN_UNKNOWN"),
            ("used-long-ago", "JOIN_TOKEN_UNKNOWN"),
            ("for-many", "JOIN_TOKEN_UNKNOWN"),
            ("expired", "JOIN_TOKEN_EXPIRED"),
        ):
            with pytest.raises(Denied) as refusal:
                await store.tokens.consume(value, NOW, key_sha256=b"o" * 32)
            assert refusal.value.reason == reason


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == HEAD


def test_a_start_at_head_loads_no_alembic(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    code = f"""
import asyncio, sys
from ca.store.store import Store
from tests.support.clock import FakeClock
async def main():
    store = await Store.open("sqlite:///{path}", clock=FakeClock())
    await store.close()
    await store.close()
asyncio.run(main())
print("alembic" in sys.modules)
"""
    for loaded in ("True", "False"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == loaded


async def test_a_second_server_on_the_same_file_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.sqlite3"
    async with opened(url) as first:
        with pytest.raises(FailedPrecondition) as refusal:
            await Store.open(url, clock=FakeClock())
        assert refusal.value.reason == "STORE_LOCKED"
        assert f"process {os.getpid()} " in refusal.value.detail
        assert "PostgreSQL" not in refusal.value.hint, "servers cannot share a database yet"
        await first.entries.create([entry("/still/works")])
    async with opened(url) as second:  # released on closing
        assert len(await second.entries.all()) == 1


def test_the_lock_of_a_killed_server_is_free(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    code = f"""
import pathlib, time
from ca.store.lock import DatabaseLock
lock = DatabaseLock(pathlib.Path("{path}"))
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FailedPrecondition, match=f"process {process.pid} "):
            DatabaseLock(path)
        process.kill()
    lock = DatabaseLock(path)
    lock.release()
    lock.release()


def test_a_holder_who_left_no_name_is_another_process(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    lock = DatabaseLock(path)
    for text in ("", "{", json.dumps([1]), json.dumps({"pid": "x"})):
        Path(f"{path}.lock").write_text(text)
        with pytest.raises(FailedPrecondition, match="another process"):
            DatabaseLock(path)
    lock.release()


async def test_the_file_is_private_durable_and_ahead_logged(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    async with opened(f"sqlite:///{path}") as store:
        await store.entries.create([entry("/a")])
        for name in ("store.sqlite3", "store.sqlite3-wal", "store.sqlite3-shm", "store.sqlite3.lock"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    database = Database(parse_url(f"sqlite:///{path}"))
    async with database.read() as connection:
        pragmas = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
    assert pragmas == ["wal", 2, 10_000]  # 2 is FULL
    await database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://x/y", "does not speak `mysql`"),
        ("nonsense", "malformed"),
        ("notadialect://user:secret@host/x", "does not speak|malformed"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////no/such/directory/x", "cannot be opened"),
    ],
)
async def test_a_url_that_cannot_work_is_a_config_error(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        await Store.open(url, clock=FakeClock())
    assert "secret" not in error.value.detail


async def test_a_database_out_of_reach_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as error:
        await Store.open(f"postgresql://nobody@/nothing?host={tmp_path}", clock=FakeClock())
    assert error.value.reason == "STORE_UNAVAILABLE"


async def test_a_write_that_the_disk_refuses_is_unavailable_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    async with opened(f"sqlite:///{path}") as store:
        await store.entries.create([entry("/a")])
        # A stranger's write lock, longer than our patience, stands for a disk that will not be written.
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for engine in (store._database.engine, store.issuance._engine):
            _shorten_patience(engine)
        with pytest.raises(Unavailable):
            await store.entries.create([entry("/b")])
        assert len(await store.entries.all()) == 1  # reading goes on
        other.execute("ROLLBACK")
        other.close()
        await store.entries.create([entry("/c")])
        assert await store.changes.revision() == 2


def _shorten_patience(engine: object) -> None:
    from sqlalchemy import event

    target = getattr(engine, "sync_engine", engine)

    @event.listens_for(target, "checkout")
    def on_checkout(connection: object, *_: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("PRAGMA busy_timeout = 1")
        cursor.close()
