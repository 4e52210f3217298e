"""Processes to attest: ours, and children made to order."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ca.errors import Unauthenticated

SLEEP = shutil.which("sleep") or "/bin/sleep"


class Pinned:
    """Implements ca.ports.Process for a pid that the test controls: as if it had connected as the user it is now."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.proc = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        owner = os.fstat(self.proc)
        self.uid, self.gid = owner.st_uid, owner.st_gid
        self.checks = 0
        self.dies_at_check = 0

    def ensure_alive(self) -> None:
        self.checks += 1
        if self.dies_at_check and self.checks >= self.dies_at_check:
            raise Unauthenticated("the calling process is gone", reason="CALLER_GONE")

    def close(self) -> None:
        os.close(self.proc)


@contextmanager
def pinned(pid: int) -> Iterator[Pinned]:
    process = Pinned(pid)
    try:
        yield process
    finally:
        process.close()


@contextmanager
def child(arguments: Sequence[str | bytes], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has begun its own program: Popen returns after exec."""
    process = subprocess.Popen(arguments, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def copy_of_sleep(target: Path) -> Path:
    shutil.copy(SLEEP, target)
    target.chmod(0o755)
    return target


def runs(pid: int, name: str) -> bool:
    """Polls until the process runs a program of that (base) name."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith(name):
            return True
        time.sleep(0.01)
    return False
