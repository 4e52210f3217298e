"""What `--svid-dir` believes: files that nobody else could have written, and a key that nobody else can read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ca.cli.svid_dir import MAX_FILE_BYTES, read_svid_dir
from ca.errors import BurgeeError

NAMES = ("svid.key", "svid.pem", "bundle.pem")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "d"
    made.mkdir()
    fill(made)
    return made


def fill(directory: Path, mode: int = 0o600) -> None:
    for name in NAMES:
        (directory / name).write_text(name)
        (directory / name).chmod(mode)


def test_the_three_files(directory: Path) -> None:
    files = read_svid_dir(directory)
    assert (files.key, files.chain, files.bundle) == (b"svid.key", b"svid.pem", b"bundle.pem")
    for name in NAMES[1:]:
        (directory / name).chmod(0o644)
    assert read_svid_dir(directory) == files


def test_a_projected_volume_and_its_next_state(tmp_path: Path) -> None:
    """As the kubelet lays it out: names that link to `..data`, which links to the directory with the time."""
    volume = tmp_path / "volume"
    (volume / "..2026_01").mkdir(parents=True)
    volume.chmod(0o1777)
    fill(volume / "..2026_01", 0o400)
    (volume / "..data").symlink_to("..2026_01")
    for name in NAMES:
        (volume / name).symlink_to(f"..data/{name}")
    assert read_svid_dir(volume).key == b"svid.key"
    (tmp_path / "link").symlink_to(volume)
    assert read_svid_dir(tmp_path / "link").key == b"svid.key"
    (volume / "..2026_02").mkdir()
    fill(volume / "..2026_02", 0o400)
    (volume / "..2026_02/svid.key").chmod(0o600)
    (volume / "..2026_02/svid.key").write_text("new")
    (volume / "..next").symlink_to("..2026_02")
    (volume / "..next").rename(volume / "..data")
    assert read_svid_dir(volume).key == b"new"


def replaced_by_a_link(directory: Path) -> None:
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir()
    fill(elsewhere)
    (directory / "svid.key").unlink()
    (directory / "svid.key").symlink_to(elsewhere / "svid.key")


def a_directory_that_begins_alike(directory: Path) -> None:
    replaced_by_a_link(directory)
    (directory.parent / "elsewhere").rename(directory.parent / "d2")
    (directory / "svid.key").unlink()
    (directory / "svid.key").symlink_to("../d2/svid.key")


def a_fifo(directory: Path) -> None:
    (directory / "svid.key").unlink()
    os.mkfifo(directory / "svid.key", 0o600)


@pytest.mark.parametrize(
    ("spoil", "reason", "said"),
    [
        (lambda d: (d / "svid.key").chmod(0o640), "NOT_PRIVATE", "svid.key` can be read by others (mode 0640)"),
        (lambda d: (d / "svid.key").chmod(0o604), "NOT_PRIVATE", "svid.key` can be read by others (mode 0604)"),
        (lambda d: (d / "svid.key").chmod(0o620), "NOT_PRIVATE", "svid.key` can be written by others (mode 0620)"),
        (lambda d: (d / "bundle.pem").chmod(0o664), "NOT_PRIVATE", "bundle.pem` can be written by others (mode 0664)"),
        (lambda d: (d / "svid.pem").chmod(0o646), "NOT_PRIVATE", "svid.pem` can be written by others (mode 0646)"),
        (replaced_by_a_link, "NOT_PRIVATE", "leads out of its directory"),
        (a_directory_that_begins_alike, "NOT_PRIVATE", "leads out of its directory"),
        (a_fifo, "NOT_PRIVATE", "is not a file"),
        (lambda d: (d / "svid.key").unlink(), "FILE", "No such file"),
        (lambda d: ((d / "svid.pem").unlink(), (d / "svid.pem").mkdir()), "FILE", "Is a directory"),
        (lambda d: os.truncate(d / "bundle.pem", MAX_FILE_BYTES + 1), "FILE_TOO_LARGE", "is larger than"),
    ],
)
def test_what_is_refused(directory: Path, spoil: Callable[[Path], object], reason: str, said: str) -> None:
    spoil(directory)
    with pytest.raises(BurgeeError) as refused:
        read_svid_dir(directory)
    assert refused.value.reason == reason
    assert said in refused.value.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run the tests as root to give a file away")
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_somebody_else(directory: Path, name: str) -> None:
    os.chown(directory / name, 64155, 64155)
    with pytest.raises(BurgeeError) as refused:
        read_svid_dir(directory)
    assert (refused.value.reason, "belongs to uid 64155" in refused.value.detail) == ("NOT_PRIVATE", True)
