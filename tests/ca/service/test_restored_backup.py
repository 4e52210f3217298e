"""A store that was restored from a backup and then passes the revisions that agents remember of the time before."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from ca.proto.spire import server_entry_pb2
from tests.ca.api.test_node import Stream
from tests.support.server import RunningServer, data_dir_of, entry, running_server


def back_up(running: RunningServer, target: Path) -> None:
    """As the manual says: SQLite's own backup, while the server runs."""
    source = sqlite3.connect(data_dir_of(running) / "store.sqlite3")
    copy = sqlite3.connect(target)
    with copy:
        source.backup(copy)
    source.close()
    copy.close()


async def restore(running: RunningServer, backup: Path) -> None:
    await running.stop()
    store = data_dir_of(running) / "store.sqlite3"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{store}{suffix}").unlink(missing_ok=True)
    shutil.copy(backup, store)
    running._stack = type(running._stack)()
    await running.start()


async def test_an_agent_of_before_the_restore_gets_a_snapshot(tmp_path: Path) -> None:
    async with running_server() as server:
        identity, caller = await server.agent()
        (kept,) = await server.create(entry("/kept", identity.path))
        back_up(server, tmp_path / "backup")
        (lost,) = await server.create(entry("/lost", identity.path))
        before = Stream(caller)
        await before.open()
        assert set(before.entries) == {kept.id, lost.id}

        await restore(server, tmp_path / "backup")
        (other, _) = await server.create(entry("/other", identity.path), entry("/elsewhere", "/spire/agent/x/y"))
        await server.local.entries.BatchDeleteEntry(server_entry_pb2.BatchDeleteEntryRequest(ids=[kept.id]))
        assert server.server.follower.revision > before.revision
        after = Stream(await server.caller(identity))
        first = await after.open(epoch=before.epoch, revision=before.revision)
        assert first.snapshot
        assert set(after.entries) == {other.id}


async def test_an_agent_of_the_backup_itself_goes_on(tmp_path: Path) -> None:
    async with running_server() as server:
        identity, caller = await server.agent()
        (kept,) = await server.create(entry("/kept", identity.path))
        before = Stream(caller)
        await before.open()
        back_up(server, tmp_path / "backup")
        await server.create(entry("/lost", identity.path))

        await restore(server, tmp_path / "backup")
        (other,) = await server.create(entry("/other", identity.path))
        after = Stream(await server.caller(identity))
        first = await after.open(epoch=before.epoch, revision=before.revision)
        assert not first.snapshot
        assert {resource.name for resource in first.resources if resource.kind == "entry"} == {other.id}
        del kept


async def test_a_token_from_before_there_were_marks_is_still_good() -> None:
    """Rows of an older schema have none, and neither have the epochs that agents hold of them."""
    async with running_server() as server:
        identity, _ = await server.agent()
        await server.create(entry("/w", identity.path))
        revision = server.server.follower.revision
        await server.stop()
        database = sqlite3.connect(data_dir_of(server) / "store.sqlite3")
        with database:
            database.execute("UPDATE changes SET mark = ''")
            (epoch,) = database.execute("SELECT epoch FROM store").fetchone()
        database.close()
        server._stack = type(server._stack)()
        await server.start()
        await server.create(entry("/x", identity.path))
        stream = Stream(await server.caller(identity))
        assert not (await stream.open(epoch=epoch, revision=revision)).snapshot
