"""One child process: started so that it cannot outlive its supervisor, watched, and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ca.errors import BurgeeError
from ca.up import launch
from ca.up.failure import PartFailed

T = TypeVar("T")

_LAUNCHER = str(Path(launch.__file__))
_POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0


class Child:
    """A running part. Its output goes to a log file; it lives in a process group of its own, so that a terminal's
    Ctrl-C reaches the supervisor alone and the order of stopping is the supervisor's."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        uid: int | None = None,
        home: Path | None = None,
    ) -> Child:
        """Start the program `arguments[0]`, a path; as `uid`, with the gid of the same number and no others, if given.

        With `home` it is confined: its environment is a PATH and this HOME, and it cannot gain privileges.
        Raises PartFailed when there is no Python to start it; a program that cannot be executed shows in its exit code.
        """
        who = "-" if uid is None else str(uid)
        where = "-" if home is None else str(home)
        launcher = [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), who, where, arguments[0]]
        with log.open("wb") as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *launcher,
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=0,
                    env=None if home is None else {},  # nor does the launcher show ours to the other uid
                )
            except OSError as error:
                raise PartFailed(name, f"cannot start `{arguments[0]}`: {error.strerror}") from error
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def tail(self, lines: int = 15) -> list[str]:
        """The last lines of its log."""
        try:
            return self.log.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    def failure(self, detail: str, *, hint: str = "") -> PartFailed:
        return PartFailed(self.name, detail, log_tail=self.tail(), hint=hint or f"its whole log: {self.log}")

    def ensure_running(self) -> None:
        """Raises PartFailed when it has exited."""
        if not self.running:
            raise self.failure(_ending(self.process.returncode or 0))

    async def until(self, what: str, check: Callable[[], Awaitable[T | None]], *, seconds: float) -> T:
        """Poll `check` until it returns something true and return that.

        A BurgeeError of `check` means "not yet" and is quoted if time runs out. Raises PartFailed when the child ends
        or `seconds` are over.
        """
        deadline = time.monotonic() + seconds
        last = ""
        while True:
            self.ensure_running()
            try:
                if found := await check():
                    return found
            except BurgeeError as error:
                last = f": {error.detail}"
            if time.monotonic() >= deadline:
                raise self.failure(f"{what} within {seconds:g} s{last}")
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """SIGTERM, then SIGKILL after the grace."""
        if not self.running:
            return
        try:
            self.process.terminate()
            await asyncio.wait_for(self.process.wait(), grace_seconds)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        except ProcessLookupError:
            await self.process.wait()


def _ending(code: int) -> str:
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    return f"it exited with {code}"
