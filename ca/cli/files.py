"""Files with secrets that a command writes: private, and whole or not there."""

from __future__ import annotations

from pathlib import Path

from ca.errors import InvalidArgument
from ca.runtime.files import atomic_write


def write_file(path: Path, data: bytes) -> None:
    """Replace a file atomically, 0600. Raises InvalidArgument when it cannot be written."""
    try:
        atomic_write(path, data, 0o600)
    except OSError as error:
        raise InvalidArgument(f"cannot write `{path}`: {error.strerror}", reason="FILE") from error


def write_files(directory: Path, contents: dict[str, bytes]) -> list[str]:
    """Write each file with 0600 into `directory`, which is made 0700 if it is not there; returns their paths.

    Every file is replaced atomically. Raises InvalidArgument when one cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in contents.items():
            atomic_write(directory / name, data, 0o600)
    except OSError as error:
        raise InvalidArgument(f"cannot write to `{directory}`: {error.strerror}", reason="FILE") from error
    return [str(directory / name) for name in contents]
