"""Files that must be whole or private: atomic replacement, private directories, permission checks."""

from __future__ import annotations

import os
import resource
import secrets
import stat
from pathlib import Path

from ca.errors import FailedPrecondition

OPEN_NOFOLLOW = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


def atomic_write(path: str | os.PathLike[str], data: bytes, mode: int = 0o600) -> None:
    """Replace `path` so that a reader sees the old bytes or the new, also after a power cut; blocks on fsync.

    The file has exactly `mode`, whatever the umask says. Raises OSError; then `path` is as it was.
    """
    target = Path(path)
    scratch = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(scratch, target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable (a rename or an unlink survives a power cut)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def require_private(path: str | os.PathLike[str]) -> None:
    """Raise FailedPrecondition (NOT_PRIVATE) unless `path` is ours (or root's) and closed to group and world.

    Raises FileNotFoundError when there is nothing.
    """
    _check_private(os.lstat(path), path)


def read_private(path: str | os.PathLike[str], max_bytes: int = 1 << 20) -> bytes:
    """The bytes of a private regular file; permissions are checked on the very file that is read.

    Raises FailedPrecondition (NOT_PRIVATE, FILE_TOO_LARGE) or OSError; a symbolic link is not followed.
    """
    fd = os.open(path, OPEN_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        _check_private(os.fstat(fd), path)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FailedPrecondition(f"`{os.fspath(path)}` is larger than {max_bytes} bytes", reason="FILE_TOO_LARGE")
    return data


def make_private_dir(path: str | os.PathLike[str], mode: int = 0o700) -> Path:
    """Create the directory (parents with 0755 as needed) with exactly `mode`, or check the one that is there.

    `mode` may open it to a group or to everyone (0750, 0755) but never for writing. One that exists must be ours and
    no more open than `mode`, else FailedPrecondition (NOT_PRIVATE): it may hold more than our files, so we do not
    close it to others by ourselves. Where it is less open than `mode` it is opened.
    """
    if mode & 0o022:
        raise ValueError("a directory that others can write to is not private")
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        target.mkdir(mode=0o700)
    except FileExistsError:
        pass
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        _check_directory(found, target, mode)
        if mode & ~found.st_mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)
    return target


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one (what a server needs, and children may have); returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def unusable(error: OSError) -> FailedPrecondition:
    """Why a program cannot start; of the system's words those that help."""
    where = f" `{os.fsdecode(error.filename)}`" if error.filename else ""
    return FailedPrecondition(
        f"cannot use{where or ' a file'}: {error.strerror or error}",
        reason="START_FAILED",
        hint="see who owns it, and whether the disk is full or mounted read-only",
    )


def _check_directory(found: os.stat_result, target: Path, mode: int) -> None:
    if found.st_uid != os.geteuid():
        raise FailedPrecondition(
            f"`{target}` belongs to uid {found.st_uid}, not to us ({os.geteuid()})", reason="NOT_PRIVATE"
        )
    if found.st_mode & 0o777 & ~mode:
        raise FailedPrecondition(
            f"`{target}` is open to others (mode {stat.S_IMODE(found.st_mode):04o}, at most {mode:04o} is allowed)",
            reason="NOT_PRIVATE",
            hint=f"choose a directory of its own, or: chmod {mode:o} {target}",
        )


def _check_private(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    name = os.fspath(path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise FailedPrecondition(f"`{name}` is neither a file nor a directory", reason="NOT_PRIVATE")
    if found.st_uid not in (os.geteuid(), 0):
        raise FailedPrecondition(f"`{name}` belongs to uid {found.st_uid}", reason="NOT_PRIVATE")
    if found.st_mode & 0o077:
        raise FailedPrecondition(
            f"`{name}` is open to others (mode {stat.S_IMODE(found.st_mode):04o})",
            reason="NOT_PRIVATE",
            hint=f"chmod go= {name}",
        )
