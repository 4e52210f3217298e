"""From a write to the last of a hundred proxies that have taken it over: `python -m tests.bench.policy_push`.

A hundred workloads on one node, each with a stream of its own and ten rules of its own, among ten thousand that are for
others. What is written is for all of them. The time ends when the agent has told the server of the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from tests.bench.load import Figures
from tests.support.pair import until
from tests.support.policy_node import (
    Object,
    PolicyNode,
    allowing,
    authorization,
    entry_for,
    policy_node,
    policy_set,
    workload,
)

PROXIES = 100
RULES = 10
OTHERS = 1_000
"""Policies of ten rules each that are for nobody here."""


def policies() -> list[Object]:
    """All but what is written."""
    found = [workload(f"w{n}", f"/w{n}", f"n{n}") for n in range(PROXIES)]
    for number in range(PROXIES + OTHERS):
        rules = [_rule(number, rule) for rule in range(RULES)]
        found.append(authorization("p", f"n{number}", rules=rules))
    return found


def _rule(number: int, rule: int) -> dict[str, Any]:
    source = {"principals": [f"example.org/ns/n{number}/sa/caller-{rule}"]}
    return {
        "from": [{"source": source}],
        "to": [{"operation": {"methods": ["GET"], "paths": [f"/api/{rule}/*"]}}],
    }


def told(node: PolicyNode, revision: int) -> bool:
    """Whether the server has heard that all have taken a revision over."""
    ack = node.last_ack
    if ack is None or ack.revision != revision or len(ack.proxies) < PROXIES:
        return False
    return all(state.state == "acked" and state.revision == revision for state in ack.proxies)


def policy_push(rounds: int) -> Figures:
    """Milliseconds, the median of some writes."""
    everybody = policies()
    with policy_node(workload_attestors={"unix": {}}) as node:
        node.start(*(entry_for(f"/w{n}", f"unix:uid:{os.getuid()}") for n in range(PROXIES)))
        ids = [f"spiffe://example.org/w{n}" for n in range(PROXIES)]
        command = [sys.executable, "-m", "tests.support.policy_crowd", str(node.socket), *ids]
        crowd = subprocess.Popen(command)
        try:
            revision = node.write(*everybody)
            until("all have the first", lambda: told(node, revision), seconds=60)
            taken = []
            for number in range(rounds):
                change = allowing("written", "root", paths=[f"/health/{number}"])
                revision += 1
                payload = policy_set(revision, *everybody, change)
                begin = time.perf_counter()
                node.push(payload)
                until("all have it", lambda r=revision: told(node, r), seconds=60, every=0.005)  # type: ignore[misc]
                taken.append(1000 * (time.perf_counter() - begin))
        finally:
            crowd.kill()
            crowd.wait()
    return {"policy_push_ms": statistics.median(taken), "policy_push_worst_ms": max(taken)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(policy_push(parser.parse_args().rounds), indent=2))


if __name__ == "__main__":
    main()
