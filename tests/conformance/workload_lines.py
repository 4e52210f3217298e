"""A workload program that prints JSON lines: run to its end, or followed while it runs."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Command = Sequence[str | Path]
Lines = queue.Queue[Any]


def run(command: Command) -> Any:
    """The last line it prints, an error of the program included."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def follow(command: Command) -> Iterator[Lines]:
    """Its lines as they come; it is killed at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines: Lines = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(json.loads(line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield lines
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        assert process.stdout is not None
        process.stdout.close()


def next_until(lines: Lines, wanted: str, holds: Callable[[Any], bool]) -> Any:
    """The first line that holds; fails with what came instead."""
    seen = []
    try:
        while True:
            seen.append(lines.get(timeout=20))
            if holds(seen[-1]):
                return seen[-1]
    except queue.Empty:
        raise AssertionError(f"{wanted} never came; these did: {seen}") from None


def ids(context: Any) -> list[str]:
    """The SPIFFE IDs that a line shows, sorted."""
    return sorted(svid["id"] for svid in context.get("svids") or [])
