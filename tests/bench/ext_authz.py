"""Checks that one agent's process answers: `python -m tests.bench.ext_authz [--rounds 5]`.

The agent's policy services run in a process of their own behind the real gate, with 1,000 rules on the target and the
decision log on; the client, in this process, keeps 16 checks under way on one connection, as a proxy does. A machine
that does other things meanwhile answers fewer: processor time beside it says what a check costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc

from sds.authz import SERVICE
from tests.bench.load import Figures
from tests.bench.target import cpu_seconds
from tests.policy.test_ext_authz import check
from tests.sds.lab import entry
from tests.sds.policy_lab import PolicyLab, policy, workload
from tests.support.policy_certificates import Authority

RULES = 1_000
CHECKS = 3_000
UNDER_WAY = 16
TARGET = "spiffe://example.org/t"
HEADERS = {"user-agent": "curl", "accept": "*/*", "x-forwarded-proto": "https", "x-request-id": "a" * 36}
SAID = (("x-burgee-remote-ip", "127.0.0.1"), ("x-burgee-decision", f"p1-{'a' * 36}"))


def allowing(number: int) -> dict[str, object]:
    operation = {"methods": ["GET"], "paths": [f"/orders/{number}"]}
    return {"from": [{"source": {"principals": [f"example.org/w{number}"]}}], "to": [{"operation": operation}]}


async def serve() -> None:
    """Says where, and goes on until its input ends."""
    async with PolicyLab() as lab:
        lab.log.watchers.clear()
        lab.snapshot(entry("t"))
        rules = [policy(f"p{number}", "ALLOW", allowing(number)) for number in range(RULES)]
        await lab.enforce(*rules, workload("t", TARGET))
        print(lab.policy_socket, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def ask(path: str, raw: bytes, count: int) -> float:
    """Seconds that so many checks take."""
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/Check")
        await call(raw, metadata=SAID)
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                await call(raw, metadata=SAID)

        begin = time.perf_counter()
        await asyncio.gather(*(some() for _ in range(UNDER_WAY)))
        return time.perf_counter() - begin


def ext_authz(rounds: int) -> Figures:
    """Checks a second, and the processor time of one."""
    with tempfile.TemporaryDirectory() as scratch:
        pair = Authority(Path(scratch)).issue(f"spiffe://example.org/w{RULES - 1}")
        certificate = quote(pair.certificate.read_text(), safe="")
    raw = check(certificate, path=f"/orders/{RULES - 1}", headers=HEADERS).SerializeToString()
    command = [sys.executable, "-m", "tests.bench.ext_authz", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        path = next(line.strip() for line in server.stdout if line.strip().endswith(".sock"))
        asyncio.run(ask(path, raw, CHECKS // 10))
        rates, costs = [], []
        for _ in range(rounds):
            before = cpu_seconds(server.pid)
            rates.append(CHECKS / asyncio.run(ask(path, raw, CHECKS)))
            costs.append((cpu_seconds(server.pid) - before) / CHECKS * 1e6)
        server.communicate("")
    return {"ext_authz_checks_per_s": statistics.median(rates), "ext_authz_check_cpu_us": min(costs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    else:
        print(json.dumps(ext_authz(options.rounds), indent=2))


if __name__ == "__main__":
    main()
