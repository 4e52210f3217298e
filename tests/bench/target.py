"""What is measured: a server and an agent of ours, started for the run, or any SPIRE-compatible pair that is named."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.pair import TRUST_DOMAIN, pair, until


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


UNLIMITED = {
    "limits": {
        "x509_svids_per_second_per_agent": 1e9,
        "jwt_svids_per_second_per_agent": 1e9,
        "signatures_per_second_per_address": 1e9,
        "attestations_per_second_per_address": 1e9,
    }
}
"""What is measured is the work, not the limits; SPIRE's were off as well."""


@contextmanager
def ours() -> Iterator[Target]:
    """A pair of ours: attested, stopped, and started again at once; that second start is the one that is timed."""
    with pair(server=UNLIMITED) as nodes:
        nodes.stop("agent")
        nodes.stop("server")
        began = time.monotonic()
        nodes.launch("server")
        nodes.launch("agent")
        until("both are healthy", lambda: nodes.count_agents() and nodes.status().last_sync_at, every=0.005)
        took = time.monotonic() - began
        yield Target(
            trust_domain=TRUST_DOMAIN,
            address=f"127.0.0.1:{nodes.port}",
            admin_socket=str(nodes.admin_socket),
            workload_socket=str(nodes.workload_socket),
            agent_path=nodes.agent_path(),
            server_pid=nodes.pid("server"),
            agent_pid=nodes.pid("agent"),
            start_seconds=took,
        )
