"""What is measured: a server and an agent of ours, started for the run, or any SPIRE-compatible pair that is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a pair listens and which processes it is."""

    trust_domain: str
    address: str
    admin_socket: str
    workload_socket: str
    agent_path: str
    server_pid: int
    agent_pid: int
    start_seconds: float | None = None


def rss_mb(pid: int) -> float:
    """Resident memory in MB (proc(5), VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def cpu_seconds(pid: int) -> float:
    """User and system time used so far (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def ours() -> Iterator[Target]:
    """`burgee up --no-demo` in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="bg-bench-") as directory:
        command = [str(Path(sys.executable).parent / "burgee"), "up", "--no-demo", "--dir", directory, "--port", "0"]
        began = time.monotonic()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            status = _wait_ready(Path(directory) / "status.json", child)
            took = time.monotonic() - began
            server, agent = status["server"], status["agent"]
            yield Target(
                trust_domain=status["trust_domain"],
                address=server["address"],
                admin_socket=server["admin_socket"],
                workload_socket=agent["workload_socket"],
                agent_path=agent["spiffe_id"].removeprefix(f"spiffe://{status['trust_domain']}"),
                server_pid=server["pid"],
                agent_pid=agent["pid"],
                start_seconds=took,
            )
        finally:
            child.send_signal(signal.SIGINT)
            child.wait(30)


def _wait_ready(path: Path, child: subprocess.Popen[str]) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"burgee up ended: {child.stderr.read() if child.stderr else ''}")
        try:
            status = json.loads(path.read_text())
        except (OSError, ValueError):
            status = {}
        if status.get("ready"):
            return status
        time.sleep(0.02)
    raise RuntimeError("burgee up was not ready within a minute")
