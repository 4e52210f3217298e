"""Drives the Go load program."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("BURGEE_CACHE", ROOT / ".cache"))
Figures = dict[str, float]


def wire(verb: str, **flags: object) -> dict:
    """Run one verb of the Go load program and give its JSON."""
    done = subprocess.run(_command(verb, flags), capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"wire {verb}: {done.stderr.strip()}")
    return json.loads(done.stdout)


@contextmanager
def wire_process(verb: str, **flags: object) -> Iterator[dict]:
    """A verb that says when it is ready, which is what is given, and goes on for the length of a `with`."""
    pipe = subprocess.PIPE
    with subprocess.Popen(_command(verb, flags), stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            if not (ready := process.stdout.readline()):
                raise RuntimeError(f"wire {verb}: {process.communicate()[1].strip()}")
            yield json.loads(ready)
            _, complaint = process.communicate(timeout=60)
            if process.returncode:
                raise RuntimeError(f"wire {verb}: {complaint.strip()}")
        finally:
            process.kill()


def _command(verb: str, flags: dict[str, object]) -> list[str]:
    command = [str(CACHE / "bin/wire"), verb]
    for name, value in flags.items():
        command += [f"-{name}", str(value)]
    return command
