"""What authorities cost: one below a PKI mount's root beside a self-signed one, a taint, and the view of them all."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import grpc

from ca.proto.burgee import authority_pb2, authority_pb2_grpc
from tests.bench.load import Figures, wire, wire_process
from tests.bench.target import UNLIMITED
from tests.support.openbao import shared_openbao
from tests.support.openbao_mounts import make_token
from tests.support.operators import Mount
from tests.support.pair import TRUST_DOMAIN, Pair, pair

BATCH = 500
SIMULATED = 100
SVIDS_EACH = 10
WATCHED = 1000
AT_ONCE = {"consumer_waits": {"files_seconds": 0}}
"""Nobody reads the pair's bundle file any more once its agent is attested."""


def below_mount(rounds: int) -> Figures:
    """SVIDs per CPU second of a server below the root of OpenBao's PKI mount, in those of one with a root of its own.
    Both keep their keys on disk, and are measured in turn, so that a busy machine is busy for both."""
    mount = Mount(shared_openbao(), life=timedelta(days=30))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bg-bench-")))
        token = scratch / "vault-token"
        token.write_text(make_token(mount.bao, mount.name, "default", ttl="1h"))
        upstream = mount.upstream({"token_file": str(token)})
        below = _batches(stack.enter_context(pair(server={**UNLIMITED, "upstream": upstream})), scratch / "below")
        alone = _batches(stack.enter_context(pair(server=UNLIMITED)), scratch / "alone")
        ratios = [alone() / below() for _ in range(rounds)]
    return {"below_mount_ratio": statistics.median(ratios)}


def _batches(nodes: Pair, scratch: Path) -> Callable[[], float]:
    """A call gives the server's CPU microseconds for one of many SVIDs."""
    scratch.mkdir()
    to = {"addr": f"127.0.0.1:{nodes.port}", "td": TRUST_DOMAIN, "dir": scratch}
    path = wire("attest", admin=nodes.admin_socket, **to)["path"]
    ids = scratch / "ids"
    wire("entries", admin=nodes.admin_socket, td=TRUST_DOMAIN, parent=path, n=BATCH, ids=ids)
    load = {"ids": ids, "size": BATCH, "pid": nodes.pid("server"), "calls": 20, "callers": 1, **to}
    wire("batch", **{**load, "calls": 2})
    return lambda: float(wire("batch", **load)["cpu_us_each"])


def taint() -> Figures:
    """From an authority's taint until agents have replaced the last SVID that it signed."""
    with pair(server={**UNLIMITED, **AT_ONCE}) as nodes, tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch:
        took = wire("taint", n=SIMULATED, size=SVIDS_EACH, **_crowd(nodes, scratch))
    return {"taint_s": took["max_ms"] / 1e3}


def status(rounds: int) -> Figures:
    """Of a server with many agents and one authority that is prepared: the command as a process, and its call alone."""
    with (
        pair(server={**UNLIMITED, **AT_ONCE}) as nodes,
        tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch,
        wire_process("hold", n=WATCHED, size=SVIDS_EACH, **_crowd(nodes, scratch)),
        _asking(nodes) as ask,
    ):
        first = _timed(ask)
        calls = [_timed(ask) for _ in range(4 * rounds)]
        commands = [_timed(lambda: _command(nodes)) for _ in range(2 * rounds)]
    return {
        "status_s": statistics.median(commands),
        "status_call_ms": statistics.median(calls) * 1e3,
        "status_first_call_ms": first * 1e3,
    }


def _crowd(nodes: Pair, scratch: str) -> dict[str, object]:
    return {"addr": f"127.0.0.1:{nodes.port}", "admin": nodes.admin_socket, "td": TRUST_DOMAIN, "dir": scratch}


@contextmanager
def _asking(nodes: Pair) -> Iterator[Callable[[], None]]:
    """Prepares an authority; then gives the call that `caadmin ca status` makes."""
    with grpc.insecure_channel(f"unix:{nodes.admin_socket}") as channel:
        stub = authority_pb2_grpc.AuthoritiesStub(channel)
        stub.Prepare(authority_pb2.StepRequest(kind="x509"), timeout=30)
        yield lambda: _all_there(stub.GetStatus(authority_pb2.GetStatusRequest(named=20), timeout=30).agents)


def _command(nodes: Pair) -> None:
    program = Path(sys.executable).parent / "caadmin"
    command = [program, "ca", "status", "--socket", nodes.admin_socket, "--output", "json"]
    done = subprocess.run(command, check=True, capture_output=True)
    _all_there(json.loads(done.stdout)["agents"])


def _all_there(agents: int) -> None:
    """Those of the crowd, and the pair's own."""
    if agents != WATCHED + 1:
        raise RuntimeError(f"the server knows {agents} agents, not {WATCHED + 1}")


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
