"""Path and hash of the program that a process runs, only where both can be believed.

`/proc/PID/exe` leads to the file itself, whatever its path means in the process's own mount namespace. The path is
believed only when the same path in the agent's mount namespace is, by device and inode, that very file: a process in
a container that bind-mounts its own program over `/usr/bin/x` does not become `/usr/bin/x`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from ca.runtime.log import get
from ca.runtime.notes import note

MAX_REMEMBERED = 1024
CHUNK_BYTES = 1 << 20
SETTLED_SECONDS = 2.0
"""A file that changed less than so long ago may change once more and keep its ctime, whose steps are coarse on some
file systems: its hash is not remembered."""

FileKey = tuple[int, int, int, int]  # device, inode, size, ctime in ns
log = get("attestor.workload.unix")


@dataclass(frozen=True, kw_only=True)
class Executable:
    """`sha256` is lower-case hex, or empty when the file is larger than the limit or changes while it is read."""

    path: str
    sha256: str = ""


class Executables:
    """Finds executables and remembers hashes by (device, inode, size, ctime): ctime cannot be set back by a user.

    `now` is the wall clock in Unix seconds, which is what ctimes are taken from.
    """

    def __init__(self, *, size_limit_bytes: int, now: Callable[[], float] = time.time) -> None:
        self._limit = size_limit_bytes
        self._now = now
        self._hashes: OrderedDict[FileKey, str] = OrderedDict()
        self._lock = Lock()
        self.hashed_files = 0

    def find(self, proc: int) -> Executable | None:
        """`proc` is a directory descriptor of /proc/PID. None when the path cannot be believed or read; blocks."""
        try:
            path = os.readlink("exe", dir_fd=proc)
            file = os.stat("exe", dir_fd=proc)
        except OSError as error:
            _withheld("cannot be read", str(error.strerror))
            return None
        if not _is_text(path) or not _is_here(path, file):
            _withheld("is another file, or none, in the agent's mount namespace", path)
            return None
        return Executable(path=path, sha256=self._hash_of(proc, file))

    def _hash_of(self, proc: int, file: os.stat_result) -> str:
        if file.st_size > self._limit:
            note("sha256 withheld", f"the file has {file.st_size} bytes, `hash_size_limit_bytes` is {self._limit}")
            return ""
        try:
            descriptor = os.open("exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        except OSError as error:
            note("sha256 withheld", f"the file cannot be read: {error.strerror}")
            return ""  # may be run, not read
        try:
            # The process may have begun another program since: then this is not the file whose path was found.
            return self._hash(descriptor) if _key(os.fstat(descriptor)) == _key(file) else ""
        finally:
            os.close(descriptor)

    def _hash(self, descriptor: int) -> str:
        file = os.fstat(descriptor)
        key = _key(file)
        with self._lock:
            if key in self._hashes:
                self._hashes.move_to_end(key)
                return self._hashes[key]
        settled = self._now() - file.st_ctime >= SETTLED_SECONDS  # before the first byte is read
        digest = _digest(descriptor, self._limit)
        if _key(os.fstat(descriptor)) != key:
            return ""  # written to meanwhile: the hash is of no one file
        self.hashed_files += 1
        if settled:
            self._remember(key, digest)
        return digest

    def _remember(self, key: FileKey, digest: str) -> None:
        with self._lock:
            self._hashes[key] = digest
            if len(self._hashes) > MAX_REMEMBERED:
                self._hashes.popitem(last=False)


def _is_text(path: str) -> bool:
    """A selector is text: a path that is no UTF-8 cannot be one."""
    return path.isascii() or not any("\udc80" <= character <= "\udcff" for character in path)


def _is_here(path: str, file: os.stat_result) -> bool:
    try:
        here = os.stat(path, follow_symlinks=False)
    except (OSError, ValueError):
        return False
    return os.path.isabs(path) and (here.st_dev, here.st_ino) == (file.st_dev, file.st_ino)


def _key(file: os.stat_result) -> FileKey:
    return file.st_dev, file.st_ino, file.st_size, file.st_ctime_ns


def _digest(descriptor: int, limit: int) -> str:
    digest, done = hashlib.sha256(), 0
    while done <= limit and (chunk := os.read(descriptor, CHUNK_BYTES)):
        digest.update(chunk)
        done += len(chunk)
    return digest.hexdigest()


def _withheld(why: str, what: str) -> None:
    note("path and sha256 withheld", f"`{what}` {why}")
    log.debug("path and sha256 withheld", reason="EXECUTABLE_WITHHELD", detail=why, executable=what)
