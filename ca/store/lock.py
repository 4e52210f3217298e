"""One server per data directory: an flock on a file beside the database, for as long as the process lives."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from ca.errors import FailedPrecondition


class DatabaseLock:
    """Held from construction to `release`; the kernel releases it when the process dies, however it dies.

    Raises FailedPrecondition (reason STORE_LOCKED), naming the holder where the file tells.
    """

    def __init__(self, database: Path) -> None:
        path = database.with_name(database.name + ".lock")
        # Never truncated on opening: until the lock is ours, what it says is the other server's.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(self._fd)
            os.close(self._fd)
            raise FailedPrecondition(
                f"the store `{database}` is in use by {holder}",
                reason="STORE_LOCKED",
                hint="one server per trust domain: stop the other one, or give this one a `data_dir` of its own",
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def release(self) -> None:
        """Idempotent. The file stays: removing it would let two servers lock two different files of one name."""
        if self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _holder(fd: int) -> str:
    try:
        told = json.loads(os.pread(fd, 4096, 0))
        return f"process {int(told['pid'])} on `{told['host']}`"
    except (ValueError, KeyError, TypeError):
        return "another process"
