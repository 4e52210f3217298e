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
    """Implements ca.ports.Process for a pid that the test controls: as if it had connected as the user it is now.

    `tree` stands for the process's /proc directory, for what no test can make a process of its own be in.
    """

    def __init__(self, pid: int, tree: Path | None = None) -> None:
        self.pid = pid
        owner = os.stat(f"/proc/{pid}")
        self.uid, self.gid = owner.st_uid, owner.st_gid
        self.proc = os.open(tree or f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        self._tree = tree
        self.checks = 0
        self.dies_at_check = 0

    def ensure_alive(self) -> None:
        self.checks += 1
        gone = self._tree is not None and not os.path.exists(f"/proc/{self.pid}")
        if gone or (self.dies_at_check and self.checks >= self.dies_at_check):
            raise Unauthenticated("the calling process is gone", reason="CALLER_GONE")

    def close(self) -> None:
        os.close(self.proc)


@contextmanager
def pinned(pid: int, tree: Path | None = None) -> Iterator[Pinned]:
    process = Pinned(pid, tree)
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
