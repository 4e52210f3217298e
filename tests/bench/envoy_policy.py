"""What policies add to a request in a real Envoy: `python -m tests.bench.envoy_policy [--rounds 5]`.

One Envoy, one worker, mutual TLS, one connection in a closed loop, answers of Envoy's own. The variants take turns, so
that what else the machine does meets all of them; each figure is a median, and what is added is a difference of two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBACPerRoute
from google.protobuf.json_format import MessageToDict

from policy import envoy
from policy.envoy import Proxy, http_filter
from policy.envoy_rules import rules_filters
from policy.envoy_snippet import any_of
from policy.model import Policy, Rule
from policy.snapshot import compile_set
from tests.bench.load import Figures
from tests.bench.policy_shapes import MESH, policies, requests, shape, targets
from tests.support.policy_authz import Authz
from tests.support.policy_envoy import FILTER, Call, PolicyEnvoy, read_answer

DENY_FILTER = "deny"
"""Istio's encoding has one filter for DENY and one for ALLOW."""
PER_TURN = 100
ASKED = Policy(namespace="a", name="asked", rules=(Rule(condition="true"),))


class _Envoy(PolicyEnvoy):
    """A case is the configuration of each filter; a filter that is not named is off."""

    shown: ClassVar[Mapping[str, str]] = {}

    def configure(self, filters: Any, rbac: Mapping[str, Any]) -> None:
        for name in (FILTER, DENY_FILTER):
            made = RBACPerRoute(rbac=rbac[name]) if name in rbac else RBACPerRoute()
            filters[name].CopyFrom(any_of(made))


def cases() -> tuple[dict[str, dict[str, Any]], dict[str, Call]]:
    """Variant → filters, and the request that it is asked with: one that a prefix of a path allows."""
    found: dict[str, dict[str, Any]] = {"none": {}}
    calls: dict[str, Call] = {}
    for name, kind, count in (
        ("tree_1k", "gateway", 1_000),
        ("tree_10k_mesh", "mesh", 10_000),
        ("tree_10k", "gateway", 10_000),
    ):
        made = shape(kind, count)
        snapshot = compile_set(policies(made), MESH, targets(made))
        spiffe_id, asked = next(
            (t, r) for t, r in requests(made) if snapshot.decide(t, r).allowed and r.path and "/lines" in r.path
        )
        target = snapshot.targets[spiffe_id][0]
        mine = snapshot.judges(spiffe_id)[0].policies
        normalized = replace(target, normalized=True)  # as the snippet configures proxies
        found[name] = {FILTER: http_filter(normalized, mine, MESH, Proxy())[0]}
        uris = (f"spiffe://{asked.principal}",)
        calls[name] = Call(case=name, uris=uris, method=asked.method or "GET", path=asked.path or "/")
        if name == "tree_1k":
            deny, allow = rules_filters(target, mine, MESH)
            found["rules_1k"] = {DENY_FILTER: deny, FILTER: allow}
            found["tree_1k_guarded"] = {FILTER: http_filter(target, mine, MESH, Proxy())[0]}
            found["ext_authz"] = {FILTER: http_filter(target, [ASKED], MESH, Proxy(ext_authz=True))[0]}
            calls |= {
                other: Call(case=other, uris=uris, method=calls[name].method, path=calls[name].path)
                for other in ("none", "rules_1k", "tree_1k_guarded", "ext_authz")
            }
    return found, calls


@contextmanager
def running(found: dict[str, dict[str, Any]]) -> Iterator[_Envoy]:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        authz = Authz(directory / "authz.sock", lambda check: True)
        before = [{"name": DENY_FILTER, "typed_config": MessageToDict(any_of(envoy.deny_all()))}]
        proxy = _Envoy(directory, ask=directory / "authz.sock", before=before)
        try:
            proxy.start(found)
            yield proxy
        finally:
            proxy.stop()
            authz.stop()


def cpu_ns(proxy: _Envoy) -> int:
    """Processor time of all threads of Envoy: what it does is told apart from what else the machine does."""
    assert proxy.envoy.process is not None
    tasks = Path(f"/proc/{proxy.envoy.process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks)


def turn(proxy: _Envoy, call: Call, taken: list[int], spent: list[int]) -> None:
    """Some requests of one variant on a connection of their own, of which the first is not counted."""
    raw, now = proxy._bytes(call), time.perf_counter_ns
    with proxy.connect(call.uris) as stream, stream.makefile("rb") as reader:
        before = 0
        for number in range(PER_TURN + 1):
            if number == 1:
                before = cpu_ns(proxy)
            begin = now()
            stream.sendall(raw)
            answer = read_answer(reader)
            if number:
                taken.append(now() - begin)
            if answer is None or not answer.allowed:
                raise RuntimeError(f"{call.case}: {answer}")
        spent.append((cpu_ns(proxy) - before) // PER_TURN)


def envoy_policy(rounds: int) -> Figures:
    """Medians in microseconds: the baseline, and what each variant adds to it."""
    found, calls = cases()
    taken: dict[str, list[int]] = {name: [] for name in found}
    spent: dict[str, list[int]] = {name: [] for name in found}
    with running(found) as proxy:
        for _ in range(4 * rounds):
            for name in found:
                turn(proxy, calls[name], taken[name], spent[name])
    cpu = {name: statistics.median(times) / 1000 for name, times in spent.items()}
    medians = {name: statistics.median(times) / 1000 for name, times in taken.items()}
    figures = {"policy_envoy_none_us": medians["none"]}
    for name in found:
        if name != "none":
            figures[f"policy_envoy_{name}_added_us"] = medians[name] - medians["none"]
            figures[f"policy_envoy_{name}_added_cpu_us"] = cpu[name] - cpu["none"]
    asked = figures["policy_envoy_ext_authz_added_us"]
    for name in ("tree_1k", "tree_10k_mesh"):
        figures[f"policy_{name}_percent"] = 100 * max(figures[f"policy_envoy_{name}_added_us"], 0.0) / asked
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(envoy_policy(parser.parse_args().rounds), indent=2))


if __name__ == "__main__":
    main()
