"""Drives the Go load program."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("BURGEE_CACHE", ROOT / ".cache"))
Figures = dict[str, float]


def wire(verb: str, **flags: object) -> dict:
    """Run one verb of the Go load program and give its JSON."""
    command = [str(CACHE / "bin/wire"), verb]
    for name, value in flags.items():
        command += [f"-{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"wire {verb}: {done.stderr.strip()}")
    return json.loads(done.stdout)
