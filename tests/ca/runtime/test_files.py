"""Atomic replacement, private files and directories, and certificates without a file."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

import pytest

from ca.errors import FailedPrecondition
from ca.runtime import files
from ca.runtime.files import atomic_write, make_private_dir, read_private, require_private
from ca.runtime.tls import load_chain
from tests.ca.identity import forge
from tests.ca.runtime.rig import Pki
from tests.support.tls_client import key_pem


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_whole_with_exactly_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "key"
    before = os.umask(0o777)
    try:
        atomic_write(target, b"one", 0o640)
    finally:
        os.umask(before)
    assert (target.read_bytes(), mode(target)) == (b"one", 0o640)
    held = target.open("rb")
    atomic_write(target, b"two")
    assert (target.read_bytes(), held.read(), mode(target)) == (b"two", b"one", 0o600)
    held.close()
    assert os.listdir(tmp_path) == ["key"]


def test_the_bytes_are_on_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    real_fsync, real_replace = os.fsync, os.replace
    kind = {True: "fsync directory", False: "fsync file"}
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(kind[stat.S_ISDIR(os.fstat(fd).st_mode)]), real_fsync(fd))[1]
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), real_replace(a, b))[1])
    atomic_write(tmp_path / "x", b"data")
    assert events == ["fsync file", "replace", "fsync directory"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x"
    atomic_write(target, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_file_that_is_open_to_others_is_not_read(tmp_path: Path, bits: int) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    secret.chmod(bits)
    for check in (require_private, read_private):
        with pytest.raises(FailedPrecondition) as refused:
            check(secret)
        assert refused.value.reason == "NOT_PRIVATE"
        assert "chmod" in refused.value.hint
    secret.chmod(0o600)
    require_private(secret)
    assert read_private(secret) == b"s"
    with pytest.raises(FailedPrecondition) as large:
        read_private(secret, max_bytes=0)
    assert large.value.reason == "FILE_TOO_LARGE"


def test_links_and_devices_are_not_private_files(tmp_path: Path) -> None:
    target = tmp_path / "target"
    atomic_write(target, b"x")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(FailedPrecondition):
        require_private(link)
    with pytest.raises(OSError, match="symbolic"):
        read_private(link)
    with pytest.raises(FileNotFoundError):
        require_private(tmp_path / "none")


def test_a_private_directory_is_made_kept_opened_or_refused(tmp_path: Path) -> None:
    fresh = tmp_path / "a" / "b"
    before = os.umask(0o077)
    try:
        assert make_private_dir(fresh) == fresh
        assert mode(fresh) == 0o700
        make_private_dir(fresh, 0o755)
    finally:
        os.umask(before)
    assert mode(fresh) == 0o755
    with pytest.raises(FailedPrecondition) as refused:
        make_private_dir(fresh)
    assert refused.value.reason == "NOT_PRIVATE"
    assert mode(fresh) == 0o755, "it may hold more than our files"
    with pytest.raises(ValueError, match="write"):
        make_private_dir(tmp_path / "c", 0o770)


def test_a_chain_is_loaded_without_a_file_and_leaves_no_descriptor() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pki = Pki()
    material = pki.material()
    before = os.listdir("/proc/self/fd")
    load_chain(context, material.chain_pem, material.key_pem)
    with pytest.raises(ssl.SSLError):
        load_chain(context, material.chain_pem, key_pem(forge.key("P-256", "another")))
    assert os.listdir("/proc/self/fd") == before
