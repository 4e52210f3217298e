"""Keys on disk: who can read them, what survives, what is refused."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ca.errors import AlreadyExists, ConfigError, FailedPrecondition
from ca.keys.disk import DiskKeyManager, DiskKeysConfig, plugin
from ca.ports import KeyType
from ca.runtime.config import load_yaml
from tests.support.authority_host import authority_host


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def test_files_are_private_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        await DiskKeyManager(directory).generate("k", KeyType.EC_P256)
    finally:
        os.umask(before)
    assert mode(directory) == 0o700
    assert mode(directory / "k.pem") == 0o600
    assert os.listdir(directory) == ["k.pem"]


async def test_a_key_survives_the_process(directory: Path) -> None:
    made = await DiskKeyManager(directory).generate("k", KeyType.RSA_2048)
    found = await DiskKeyManager(directory).get("k")
    assert found is not None
    assert found.public_key_der == made.public_key_der
    key = load_pem_private_key((directory / "k.pem").read_bytes(), password=None)
    assert (directory / "k.pem").read_bytes() == key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("open_to_others", [0o640, 0o604, 0o620, 0o644, 0o666])
async def test_a_key_that_others_can_reach_is_refused(directory: Path, open_to_others: int) -> None:
    manager = DiskKeyManager(directory)
    await manager.generate("k", KeyType.EC_P256)
    (directory / "k.pem").chmod(open_to_others)
    with pytest.raises(FailedPrecondition) as caught:
        await manager.get("k")
    assert caught.value.reason == "NOT_PRIVATE"
    assert caught.value.hint.startswith("chmod ")
    (directory / "k.pem").chmod(0o600)
    assert await manager.get("k") is not None


def test_a_directory_that_others_can_read_is_refused(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    with pytest.raises(FailedPrecondition) as caught:
        DiskKeyManager(directory)
    assert caught.value.reason == "NOT_PRIVATE"
    assert "chmod 700" in caught.value.hint


async def test_a_directory_that_was_opened_later_is_refused(directory: Path) -> None:
    manager = DiskKeyManager(directory)
    await manager.generate("k", KeyType.EC_P256)
    directory.chmod(0o750)
    with pytest.raises(FailedPrecondition) as caught:
        await manager.get("k")
    assert caught.value.reason == "NOT_PRIVATE"
    with pytest.raises(FailedPrecondition):
        await manager.generate("l", KeyType.EC_P256)
    assert os.listdir(directory) == ["k.pem"]


async def test_a_symbolic_link_is_no_key(directory: Path, tmp_path: Path) -> None:
    manager = DiskKeyManager(directory)
    await DiskKeyManager(tmp_path / "elsewhere").generate("k", KeyType.EC_P256)
    (directory / "k.pem").symlink_to(tmp_path / "elsewhere" / "k.pem")
    with pytest.raises(FailedPrecondition, match="symbolic link") as caught:
        await manager.get("k")
    assert caught.value.reason == "NOT_PRIVATE"


async def test_a_dangling_link_is_not_written_through(directory: Path, tmp_path: Path) -> None:
    manager = DiskKeyManager(directory)
    (directory / "k.pem").symlink_to(tmp_path / "outside.pem")
    with pytest.raises(AlreadyExists):
        await manager.generate("k", KeyType.EC_P256)
    assert not (tmp_path / "outside.pem").exists()


@pytest.mark.parametrize("as_link", [True, False])
def test_what_is_no_directory_cannot_hold_keys(tmp_path: Path, as_link: bool) -> None:
    place = tmp_path / "keys"
    if as_link:
        (tmp_path / "real").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "real")
    else:
        place.write_bytes(b"")
    with pytest.raises(FailedPrecondition) as caught:
        DiskKeyManager(place)
    assert caught.value.reason in ("KEY_DIRECTORY", "NOT_PRIVATE")


def foreign_pem(kind: str) -> bytes:
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n", foreign_pem("ed25519"), foreign_pem("sealed")]
)
async def test_a_corrupt_file_is_named(directory: Path, content: bytes) -> None:
    manager = DiskKeyManager(directory)
    (directory / "k.pem").write_bytes(content)
    (directory / "k.pem").chmod(0o600)
    with pytest.raises(FailedPrecondition) as caught:
        await manager.get("k")
    assert caught.value.reason == "KEY_FILE_CORRUPT"
    assert str(directory / "k.pem") in caught.value.detail
    assert "backup" in caught.value.hint


async def test_a_truncated_key_is_corrupt(directory: Path) -> None:
    manager = DiskKeyManager(directory)
    await manager.generate("k", KeyType.EC_P256)
    file = directory / "k.pem"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FailedPrecondition, match="no private key"):
        await manager.get("k")


async def test_a_directory_in_a_keys_place(directory: Path) -> None:
    manager = DiskKeyManager(directory)
    (directory / "k.pem").mkdir(mode=0o700)
    with pytest.raises(FailedPrecondition) as caught:
        await manager.get("k")
    assert caught.value.reason == "KEY_FILE"


async def test_what_a_power_cut_left_behind_is_no_key(directory: Path) -> None:
    manager = DiskKeyManager(directory)
    (directory / ".0123456789abcdef.pem").write_bytes(b"half")
    (directory / "README").write_bytes(b"")
    assert list(await manager.list()) == []


def test_the_directory_can_be_chosen(tmp_path: Path) -> None:
    plugin.manager(DiskKeysConfig(directory=str(tmp_path / "chosen")), authority_host(tmp_path / "data"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chosen"]
    plugin.manager(DiskKeysConfig(), authority_host(tmp_path / "data"))
    assert mode(tmp_path / "data" / "keys") == 0o700


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError):
        load_yaml("path: /x\n", DiskKeysConfig)


async def test_what_was_being_written_when_the_power_went_is_swept_later(directory: Path) -> None:
    manager = DiskKeyManager(directory)
    await manager.generate("k", KeyType.EC_P256)
    cut, young, foreign = (directory / f".{name}.pem" for name in ("0" * 16, "f" * 16, "notes"))
    for path in (cut, young, foreign):
        path.write_bytes((directory / "k.pem").read_bytes())
    for path in (cut, foreign, directory / "k.pem"):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    DiskKeyManager(directory)
    assert sorted(os.listdir(directory)) == sorted([young.name, foreign.name, "k.pem"])
