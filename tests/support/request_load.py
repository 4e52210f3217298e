"""Requests at a steady rate from a process of its own, so that what a test does meanwhile does not slow them.

`python -m tests.support.request_load PORT PER_SECOND` goes on until its standard input ends, then prints what it saw.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Self

CONNECTIONS = 8
ANSWER_SECONDS = 10.0
KEPT = 20
"""Failures that are told word by word."""

REQUEST = b"GET / HTTP/1.1\r\nhost: load.test\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`failed` are all that were not answered with 200 in time, `words` the first of them. `worst_second` is how many
    were answered in the poorest whole second, the one that ended `worst_at_seconds` after the begin."""

    answered: int
    failed: int
    words: list[str]
    seconds: float
    slowest_seconds: float
    worst_second: int
    worst_at_seconds: int

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.answered} requests, {self.failed} failed, {self.per_second:.0f}/s over {self.seconds:.0f} s, "
            f"poorest second {self.worst_second} (after {self.worst_at_seconds} s), "
            f"slowest {self.slowest_seconds * 1000:.0f} ms"
        )


class RequestLoad:
    """Running from its making until `finish`."""

    def __init__(self, port: int, *, per_second: int) -> None:
        command = [sys.executable, "-m", "tests.support.request_load", str(port), str(per_second)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def finish(self) -> Outcome:
        said, _ = self._process.communicate(timeout=ANSWER_SECONDS + 10)
        return Outcome(**json.loads(said))


class _Loop:
    """What the connections share: who is next, and what came of it."""

    def __init__(self, port: int, per_second: int) -> None:
        self._port = port
        self._pause = 1 / per_second
        self._began = time.monotonic()
        self._next = self._began
        self._stopped = False
        self._failures: list[str] = []
        self._failed = 0
        self._slowest = 0.0
        self._by_second: dict[int, int] = {}

    async def run(self) -> Outcome:
        workers = [asyncio.create_task(self._work()) for _ in range(CONNECTIONS)]
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        self._stopped = True
        await asyncio.gather(*workers)
        seconds = time.monotonic() - self._began
        worst = min(range(1, int(seconds)), key=lambda second: self._by_second.get(second, 0), default=0)
        return Outcome(
            answered=sum(self._by_second.values()),
            failed=self._failed,
            words=self._failures,
            seconds=seconds,
            slowest_seconds=self._slowest,
            worst_second=self._by_second.get(worst, 0),
            worst_at_seconds=worst + 1,
        )

    async def _work(self) -> None:
        writer: asyncio.StreamWriter | None = None
        while not self._stopped:
            await self._turn()
            began = time.monotonic()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    if writer is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    problem = await _request(reader, writer)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                problem = repr(error)
                if writer is not None:
                    writer.close()
                writer = None
            self._note(began, problem)
        if writer is not None:
            writer.close()

    async def _turn(self) -> None:
        """Who is late does not wait: the rate holds on the whole."""
        mine = self._next
        self._next += self._pause
        await asyncio.sleep(max(0.0, mine - time.monotonic()))

    def _note(self, began: float, problem: str) -> None:
        now = time.monotonic()
        self._slowest = max(self._slowest, now - began)
        if not problem:
            second = int(now - self._began)
            self._by_second[second] = self._by_second.get(second, 0) + 1
            return
        self._failed += 1
        if len(self._failures) < KEPT:
            self._failures.append(f"after {began - self._began:.1f} s: {problem}")


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """What was wrong with the answer; empty for 200."""
    writer.write(REQUEST)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    body = await reader.readexactly(int(lines.get("content-length", "0")))
    status = head.split(" ", 2)[1]
    return "" if status == "200" else f"{status} {body.decode('latin-1')}"


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_Loop(int(sys.argv[1]), int(sys.argv[2])).run()))))
