"""A server that finds its directory in a bad state says what is wrong, and does not make things worse."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from ca.errors import BurgeeError
from ca.runtime.config import from_values
from ca.runtime.server_config import ServerConfig
from ca.server import Server
from tests.support.launching import limited


def config(data_dir: Path) -> dict[str, object]:
    return {
        "trust_domain": "example.org",
        "data_dir": str(data_dir),
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "metrics_address": None,
    }


async def start(data_dir: Path) -> None:
    server = Server(from_values(config(data_dir), ServerConfig))
    await server.start()
    await server.stop()


@pytest.fixture
async def data_dir(tmp_path: Path) -> Path:
    """Of a server that has been there."""
    await start(tmp_path / "d")
    return tmp_path / "d"


def garbage(store: Path) -> None:
    store.write_bytes(b"this is no database " * 1000)


def half(store: Path) -> None:
    os.truncate(store, store.stat().st_size // 2)


def nothing(store: Path) -> None:
    os.truncate(store, 0)


def gone(store: Path) -> None:
    store.unlink()


def flipped(store: Path) -> None:
    data = store.read_bytes()
    store.write_bytes(data[:4096] + bytes(byte ^ 0xFF for byte in data[4096:]))


def of_the_future(store: Path) -> None:
    database = sqlite3.connect(store)
    with database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (garbage, "STORE_CORRUPT"),
        (half, "STORE_CORRUPT"),
        (flipped, "STORE_CORRUPT"),
        (nothing, "STORE_LOST"),
        (gone, "STORE_LOST"),
        (of_the_future, "STORE_NEWER"),
    ],
)
async def test_the_store(data_dir: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(data_dir / "store.sqlite3")
    keys = sorted((data_dir / "keys").iterdir())
    for _ in range(2):  # nor does a second try go through
        with pytest.raises(BurgeeError) as refused:
            await start(data_dir)
        assert (refused.value.reason, bool(refused.value.hint)) == (reason, True)
    assert sorted((data_dir / "keys").iterdir()) == keys, "no authority was made in the place of the lost one"


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"two words"])
async def test_the_servers_name(data_dir: Path, data: bytes) -> None:
    (data_dir / "server-id").write_bytes(data)
    with pytest.raises(BurgeeError) as refused:
        await start(data_dir)
    assert refused.value.reason == "SERVER_ID_CORRUPT"


async def test_a_key_file(data_dir: Path) -> None:
    for key in (data_dir / "keys").iterdir():
        os.truncate(key, 50)
    with pytest.raises(BurgeeError) as refused:
        await start(data_dir)
    assert refused.value.reason == "KEY_FILE_CORRUPT"


async def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("")
    with pytest.raises(BurgeeError, match="Not a directory") as refused:
        await start(tmp_path / "d")
    assert refused.value.reason == "START_FAILED"


@pytest.fixture
def read_only(data_dir: Path) -> Iterator[Path]:
    mounts = ["mount --bind {0} {0}", "mount -o remount,ro,bind {0}"]
    for mount in mounts:
        if subprocess.run(mount.format(data_dir).split(), capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount: run the tests as root")
    yield data_dir
    subprocess.run(["umount", str(data_dir)], check=True)


async def test_a_read_only_directory(read_only: Path) -> None:
    with pytest.raises(BurgeeError, match="Read-only file system"):
        await start(read_only)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_full_disk(data_dir: Path, fresh: bool) -> None:
    """As the shell shows it: a sentence, the database's own words, a hint, an exit code, no traceback."""
    if fresh:
        shutil.rmtree(data_dir)
    file = data_dir.parent / "server.yaml"
    file.write_text(yaml.safe_dump(config(data_dir)))
    full = 4096 * 3
    ended = subprocess.run(
        limited([sys.executable, "-m", "ca.serve", "--config", str(file)], fsize=full),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert "error: the store cannot be reached or written now (STORE_UNAVAILABLE)\n  cause: " in ended.stderr
    assert "Traceback" not in ended.stderr
