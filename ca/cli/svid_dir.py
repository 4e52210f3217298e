"""Reads the directory of `--svid-dir`: key, certificate chain and trust bundle, from files that nobody else could make.

Who can write the bundle chooses the server that is believed, and who can read the key can be the administrator.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ca.cli.svid_files import BUNDLE_FILE, CHAIN_FILE, KEY_FILE
from ca.errors import FailedPrecondition, InvalidArgument

MAX_FILE_BYTES = 4 << 20
_OTHERS_WRITE = 0o022
_OTHERS_ANYTHING = 0o077


@dataclass(frozen=True, slots=True)
class SvidDir:
    """The bytes of the three files, all PEM."""

    key: bytes
    chain: bytes
    bundle: bytes


def read_svid_dir(directory: Path) -> SvidDir:
    """The three files, as `svid watch --write` and `svid mint x509 --write` write them.

    A file may be a symbolic link inside of the directory, as a projected volume of Kubernetes has them (`..data`).
    Raises InvalidArgument (FILE) for what cannot be read, FailedPrecondition (NOT_PRIVATE, FILE_TOO_LARGE).
    """
    try:
        return SvidDir(
            key=_read(directory, KEY_FILE, closed_to_others=_OTHERS_ANYTHING),
            chain=_read(directory, CHAIN_FILE, closed_to_others=_OTHERS_WRITE),
            bundle=_read(directory, BUNDLE_FILE, closed_to_others=_OTHERS_WRITE),
        )
    except OSError as error:
        raise InvalidArgument(
            f"cannot read `{error.filename or directory}`: {error.strerror}",
            reason="FILE",
            hint="`caadmin svid watch --write DIR` and `caadmin svid mint x509 --write DIR` write these files",
        ) from error


def _read(directory: Path, name: str, *, closed_to_others: int) -> bytes:
    """What is judged is the very file that is read, wherever a link has led to it."""
    path = directory / name
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would otherwise wait for a writer
    with os.fdopen(fd, "rb") as file:
        _check_place(fd, directory, path)
        _check_access(os.fstat(fd), path, closed_to_others)
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise FailedPrecondition(f"`{path}` is larger than {MAX_FILE_BYTES} bytes", reason="FILE_TOO_LARGE")
    return data


def _check_place(fd: int, directory: Path, path: Path) -> None:
    found, inside = Path(os.readlink(f"/proc/self/fd/{fd}")), Path(os.path.realpath(directory))
    if not found.is_relative_to(inside):
        raise FailedPrecondition(
            f"`{path}` is a link that leads out of its directory, to `{found}`",
            reason="NOT_PRIVATE",
            hint=f"name the directory itself: --svid-dir {found.parent}",
        )


def _check_access(found: os.stat_result, path: Path, closed_to_others: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise FailedPrecondition(f"`{path}` is not a file", reason="NOT_PRIVATE")
    if found.st_uid not in (0, os.geteuid()):
        raise FailedPrecondition(
            f"`{path}` belongs to uid {found.st_uid}, who could have put anything there",
            reason="NOT_PRIVATE",
            hint="it must belong to you or to root",
        )
    if found.st_mode & closed_to_others:
        what = "can be read by others" if found.st_mode & 0o044 & closed_to_others else "can be written by others"
        raise FailedPrecondition(
            f"`{path}` {what} (mode {stat.S_IMODE(found.st_mode):04o})",
            reason="NOT_PRIVATE",
            hint=f"chmod {'go=' if closed_to_others == _OTHERS_ANYTHING else 'go-w'} {path}",
        )
