"""Checks that one agent's process answers: `python -m tests.bench.ext_authz [--rounds 5]`.

The agent's policy services run in a process of their own behind the real gate, with 1,000 rules on the target and the
decision log on; the client, in this process, keeps 16 checks under way on one connection, as a proxy does. A machine
that does other things meanwhile answers fewer: processor time beside it says what a check costs, and a server of the
same library that answers at once, asked by turns with it, what of it is not ours.
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
from collections.abc import Iterator
from contextlib import contextmanager
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


async def serve_bare(path: str) -> None:
    """The same without anything to decide, and without a gate before it."""
    server = grpc.aio.server()

    async def nothing(raw: bytes, context: Any) -> bytes:
        return b""

    handler: Any = grpc.unary_unary_rpc_method_handler(nothing)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Check": handler}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    print(path, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


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


@contextmanager
def serving(*how: str) -> Iterator[tuple[int, str]]:
    """The process that serves, and where."""
    command = [sys.executable, "-m", "tests.bench.ext_authz", *how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.pid, next(line.strip() for line in server.stdout if line.strip().endswith(".sock"))
        server.communicate("")


def asked(pid: int, path: str, raw: bytes) -> tuple[float, float]:
    """Answers a second, and the server's processor time for one in microseconds."""
    before = cpu_seconds(pid)
    rate = CHECKS / asyncio.run(ask(path, raw, CHECKS))
    return rate, (cpu_seconds(pid) - before) / CHECKS * 1e6


def ext_authz(rounds: int) -> Figures:
    """Checks a second, and the processor time of one."""
    with tempfile.TemporaryDirectory() as scratch:
        pair = Authority(Path(scratch)).issue(f"spiffe://example.org/w{RULES - 1}")
        certificate = quote(pair.certificate.read_text(), safe="")
        raw = check(certificate, path=f"/orders/{RULES - 1}", headers=HEADERS).SerializeToString()
        with serving("--serve") as ours, serving("--bare", f"{scratch}/bare.sock") as bare:
            for _, path in (ours, bare):
                asyncio.run(ask(path, raw, CHECKS // 10))
            turns = [(asked(*ours, raw), asked(*bare, raw)) for _ in range(rounds)]
    return {
        "ext_authz_checks_per_s": statistics.median(mine[0] for mine, _ in turns),
        "ext_authz_check_cpu_us": min(mine[1] for mine, _ in turns),
        "ext_authz_bare_per_s": statistics.median(other[0] for _, other in turns),
        "ext_authz_bare_cpu_us": min(other[1] for _, other in turns),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    elif options.bare:
        asyncio.run(serve_bare(options.bare))
    else:
        print(json.dumps(ext_authz(options.rounds), indent=2))


if __name__ == "__main__":
    main()
