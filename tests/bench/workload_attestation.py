"""How long the agent takes to find out who a caller is; the kubelet is a stand-in and a process of its own."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attestor.workload.k8s import Config as K8sConfig
from attestor.workload.k8s import K8sAttestor
from attestor.workload.run import attest_all
from attestor.workload.unix import Config as UnixConfig
from attestor.workload.unix import UnixAttestor
from ca.ports import WorkloadAttestor
from ca.runtime.config import from_values
from tests.attestor.processes import SLEEP, Pinned, child, pinned
from tests.bench.load import ROOT, Figures
from tests.support.kubelet import many_pods
from tests.support.proc_trees import Layout

PODS = 110
"""As many as a kubelet runs unless it is told otherwise; each is 6 KB of its answer."""

WARM, COLD = 200, 10
PACE_SECONDS = 0.02


def local(rounds: int) -> Figures:
    """p50 of the `unix` attestor for a process whose program is known already, and of `k8s`: with an answer of the
    kubelet that is fresh, and with none, where every one of its answers says something new."""
    return {
        "unix_attest_p50_ms": statistics.median(_unix() for _ in range(rounds)),
        **_k8s(rounds),
    }


def _unix() -> float:
    with child([SLEEP, "60"]) as process, pinned(process.pid) as pin:
        return asyncio.run(_p50_ms({"unix": UnixAttestor(UnixConfig())}, pin, WARM))


def _k8s(rounds: int) -> Figures:
    with (
        tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch,
        _kubelet(Path(scratch)) as (config, tree),
        child([SLEEP, "600"]) as process,
        pinned(process.pid, tree) as pin,
    ):
        warm = [asyncio.run(_p50_ms({"k8s": _attestor(config, 60.0)}, pin, WARM)) for _ in range(rounds)]
        cold = [asyncio.run(_p50_ms({"k8s": _attestor(config, 0.0)}, pin, COLD, rest=True)) for _ in range(rounds)]
    return {"k8s_warm_p50_ms": statistics.median(warm), "k8s_cold_p50_ms": statistics.median(cold)}


def _attestor(config: dict[str, Any], cache_seconds: float) -> K8sAttestor:
    options = {"cache_seconds": cache_seconds, "poll_retry_interval_seconds": PACE_SECONDS}
    return K8sAttestor(from_values(config | options, K8sConfig))


async def _p50_ms(attestors: dict[str, WorkloadAttestor], process: Pinned, count: int, *, rest: bool = False) -> float:
    """`rest` lets the pace at which the kubelet is asked pass first, as it is not what is measured."""
    took = []
    await attest_all(attestors, process)
    for _ in range(count):
        if rest:
            await asyncio.sleep(3 * PACE_SECONDS)
        began = time.perf_counter()
        found = await attest_all(attestors, process)
        took.append(time.perf_counter() - began)
        if not found.selectors:
            raise RuntimeError("the attestor found nothing")
    return statistics.median(took) * 1e3


@contextmanager
def _kubelet(folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The configuration that makes the attestor ask it, and a /proc tree of a process in one of its containers."""
    tree = folder / "proc"
    tree.mkdir()
    container = many_pods(1)[0]["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    Layout(name="bench", cgroup=f"0::/kubepods/burstable/{container}\n").write(tree)
    command = [sys.executable, "-m", "tests.support.kubelet", str(folder / "kubelet"), str(PODS)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline()), tree
        finally:
            process.kill()
