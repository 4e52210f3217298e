"""From a write to the last of a hundred proxies that have taken it over: `python -m tests.bench.policy_push`.

A real server and a real agent; a hundred workloads, each with a stream of its own and ten rules of its own, among ten
thousand that are for others. What is written is for all of them. The time ends when the server knows of the last one.
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

import httpx

from tests.bench.load import Figures
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until
from tests.support.policy_node import Object, allowing, authorization

PROXIES = 100
RULES = 10
OTHERS = 1_000
"""Policies of ten rules each that are for nobody here."""
API = "http://server/v1/policy"


def objects() -> list[Object]:
    """All but what is written."""
    found = [_workload(number) for number in range(PROXIES)]
    for number in range(PROXIES + OTHERS):
        found.append(authorization("p", f"n{number}", rules=[_rule(number, rule) for rule in range(RULES)]))
    return found


def _id(number: int) -> str:
    return f"spiffe://{TRUST_DOMAIN}/w{number}"


def _workload(number: int) -> Object:
    return {
        "apiVersion": "burgee.io/v1",
        "kind": "Workload",
        "metadata": {"name": f"w{number}", "namespace": f"n{number}"},
        "spec": {"spiffeId": _id(number), "normalized": True},
    }


def _rule(number: int, rule: int) -> dict[str, Any]:
    source = {"principals": [f"{TRUST_DOMAIN}/ns/n{number}/sa/caller-{rule}"]}
    return {"from": [{"source": source}], "to": [{"operation": {"methods": ["GET"], "paths": [f"/api/{rule}/*"]}}]}


def apply(client: httpx.Client, *found: Object) -> int:
    """One revision with these objects more."""
    answer = client.post(f"{API}/apply", json={"changes": [{"object": one} for one in found]}, timeout=120)
    if answer.is_error:
        raise RuntimeError(answer.text[:500])
    return int(answer.json()["revision"])


def acknowledged(client: httpx.Client, revision: int) -> bool:
    """Whether the server knows that all have taken a revision over."""
    proxies = client.get(f"{API}/rollout").json()["proxies"]
    return len(proxies) == PROXIES and all(p["state"] == "acked" and p["revision"] == revision for p in proxies)


def writes(nodes: Pair, rounds: int) -> list[float]:
    """Milliseconds of each."""
    taken = []
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(nodes.admin_socket))) as client:
        revision = apply(client, *objects())
        until("all have the first", lambda: acknowledged(client, revision), seconds=60)
        for number in range(rounds):
            begin = time.perf_counter()
            revision = apply(client, allowing("written", "istio-system", paths=[f"/health/{number}"]))
            until("all have it", lambda r=revision: acknowledged(client, r), every=0.01)  # type: ignore[misc]
            taken.append(1000 * (time.perf_counter() - begin))
    return taken


def policy_push(rounds: int) -> Figures:
    """Milliseconds, the median and the worst of some writes."""
    with pair(agent={"workload_attestors": {"unix": {}}}) as nodes:
        for number in range(PROXIES):
            nodes.create_entry(f"/w{number}", f"unix:uid:{os.getuid()}")
        ids = map(_id, range(PROXIES))
        crowd = subprocess.Popen([sys.executable, "-m", "tests.support.policy_crowd", str(nodes.workload_socket), *ids])
        try:
            taken = writes(nodes, rounds)
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
