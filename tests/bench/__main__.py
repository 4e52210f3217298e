"""Measures a server and an agent through their public wire and prints the table (`make bench`).

Without arguments it starts a pair of ours. To measure another SPIRE-compatible pair, name it:

    python -m tests.bench --trust-domain example.org --address 127.0.0.1:8081 --admin-socket S --workload-socket W \\
        --agent-path /spire/agent/join_token/T --server-pid P --agent-pid Q
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext

from tests.bench import (
    authorities,
    bench_policy,
    controller,
    envoy_policy,
    ext_authz,
    node_attestation,
    pod_certificates,
    policy_push,
    remote_keys,
    workload_attestation,
)
from tests.bench.figures import FIGURES
from tests.bench.floor import floor_us
from tests.bench.load import CACHE, Figures, wire
from tests.bench.target import Target, cpu_seconds, ours, rss_mb


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def signing(t: Target, scratch: str, rounds: int) -> Figures:
    """Server CPU and wall time per SVID, as an attested agent sees it; the floor is measured in between."""
    to = {"addr": t.address, "td": t.trust_domain, "dir": scratch}
    path = wire("attest", admin=t.admin_socket, **to)["path"]
    ids = f"{scratch}/ids"
    made = wire("entries", admin=t.admin_socket, td=t.trust_domain, parent=path, n=1000, ids=ids)
    time.sleep(6 if t.start_seconds is None else 0.5)  # SPIRE shows new entries to agents after up to 5 s
    floors, ratios, one, two, jwt = [], [], [], [], []
    for _ in range(rounds):
        load = {"ids": ids, "size": 500, "pid": t.server_pid, **to}
        one.append(wire("batch", calls=10, callers=1, **load)["cpu_us_each"])
        floors.append(floor_us())
        ratios.append(one[-1] / floors[-1])
        two.append(wire("batch", calls=12, callers=2, **load)["wall_us_each"])
        jwt.append(wire("jwt", calls=2000, callers=4, ids=ids, pid=t.server_pid, **to))
    return {
        "floor_us": statistics.median(floors),
        "create_1000_s": made["seconds"],
        "batch_cpu_us": statistics.median(one),
        "batch_cpu_floors": statistics.median(ratios),
        "batch_wall_us": statistics.median(two),
        "jwt_cpu_us": statistics.median(r["cpu_us_each"] for r in jwt),
        "jwt_p50_ms": statistics.median(r["p50_ms"] for r in jwt),
    }


def delivering(t: Target, rounds: int) -> Figures:
    """What a workload on the node sees."""
    admin = {"admin": t.admin_socket, "td": t.trust_domain, "parent": t.agent_path}
    wire("entries", n=1, prefix="attach", **admin)
    time.sleep(11 if t.start_seconds is None else 1)
    attach = [wire("attach", sock=t.workload_socket, n=300) for _ in range(rounds)]
    latency = [wire("latency", sock=t.workload_socket, n=30, **admin) for _ in range(rounds)]
    fanout = wire("fanout", sock=t.workload_socket, streams=1000, n=5, **admin)
    return {
        "attach_p50_ms": statistics.median(r["p50_ms"] for r in attach),
        "attach_p99_ms": statistics.median(r["p99_ms"] for r in attach),
        "latency_p50_ms": statistics.median(r["p50_ms"] for r in latency),
        "latency_p99_ms": statistics.median(r["p99_ms"] for r in latency),
        "fanout_ms": fanout["last"]["p50_ms"],
        "agent_rss_streams_mb": rss_mb(t.agent_pid),
    }


def idle(t: Target) -> Figures:
    """Memory and CPU of a pair that has nothing to do."""
    seconds = 10
    server, agent = cpu_seconds(t.server_pid), cpu_seconds(t.agent_pid)
    time.sleep(seconds)
    return {
        "server_rss_mb": rss_mb(t.server_pid),
        "agent_rss_idle_mb": rss_mb(t.agent_pid),
        "idle_server_percent": (cpu_seconds(t.server_pid) - server) / seconds * 100,
        "idle_agent_percent": (cpu_seconds(t.agent_pid) - agent) / seconds * 100,
    }


def thousand_entries(t: Target, scratch: str) -> Figures:
    """Agent memory with 1,000 entries of its own, all with SVIDs."""
    wire(
        "entries",
        admin=t.admin_socket,
        td=t.trust_domain,
        parent=t.agent_path,
        n=1000,
        prefix="thousand",
        selector="bench:nobody",
        ids=f"{scratch}/thousand",
    )
    time.sleep(15 if t.start_seconds is None else 5)
    return {"agent_rss_entries_mb": rss_mb(t.agent_pid)}


def fleet(t: Target, scratch: str) -> Figures:
    """What 200 agents cost while nothing happens (Burgee's push service; SPIRE's agents poll)."""
    to = {"addr": t.address, "admin": t.admin_socket, "td": t.trust_domain, "dir": f"{scratch}/fleet"}
    return {"fleet_idle_percent": wire("fleet", n=200, seconds=10, pid=t.server_pid, **to)["idle_percent"]}


def hundred_thousand(t: Target, rounds: int) -> Figures:
    """A store full of entries that are nobody's business on this node."""
    nobody = {"parent": "/spire/agent/join_token/nobody", "prefix": "full", "selector": "bench:nobody"}
    wire("entries", admin=t.admin_socket, td=t.trust_domain, n=100_000, **nobody)
    to = {"admin": t.admin_socket, "td": t.trust_domain, "parent": t.agent_path, "sock": t.workload_socket}
    latency = [wire("latency", n=30, **to)["p99_ms"] for _ in range(rounds)]
    return {"latency_100k_p99_ms": statistics.median(latency), "server_rss_100k_mb": rss_mb(t.server_pid)}


def measure(t: Target, rounds: int) -> Figures:
    """Every figure, each phase on what the phases before it left behind."""
    with tempfile.TemporaryDirectory(prefix="bg-bench-") as scratch:
        say("idle")
        figures: Figures = idle(t)
        if t.start_seconds is not None:
            figures["start_s"] = t.start_seconds
        say(f"signing ({rounds} rounds)")
        figures |= signing(t, scratch, rounds)
        say(f"delivering ({rounds} rounds)")
        figures |= delivering(t, rounds)
        say("a thousand entries")
        figures |= thousand_entries(t, scratch)
        if t.start_seconds is not None:
            say("200 agents")
            figures |= fleet(t, scratch)
        say("100,000 entries")
        figures |= hundred_thousand(t, rounds)
    return figures


def cell(value: float | None, form: str = "g") -> str:
    return "–" if value is None else format(value, form)


def table(figures: Figures) -> str:
    """Markdown: the measured figure beside SPIRE's, the prototypes' and the targets."""
    lines = [
        f"floor F = {figures['floor_us']:.0f} µs",
        "",
        "| what | unit | measured | must reach | aim | SPIRE | of SPIRE | prototype | of prototype |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for f in FIGURES:
        if (value := figures.get(f.key)) is None:
            continue
        late = "" if f.reached(value) else " ✗"
        cells = [f.what, f.unit, f"{value:.3g}{late}", cell(f.must), cell(f.aim)]
        for other in (f.spire, f.prototype):
            cells += [cell(other), cell(value / other if other else None, ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def missed(figures: Figures) -> list[str]:
    """The ratios that were not reached. Times and sizes depend on the machine and fail nothing."""
    return [
        f"{f.what}: {figures[f.key]:.2f} {f.unit}, must be {f.bound}"
        for f in FIGURES
        if f.ratio and f.key in figures and not f.reached(figures[f.key])
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("trust-domain", "address", "admin-socket", "workload-socket", "agent-path"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--server-pid", type=int)
    parser.add_argument("--agent-pid", type=int)
    parser.add_argument("--rounds", type=int, default=5, help="medians are taken over this many rounds")
    return parser.parse_args()


def main() -> int:
    if not (CACHE / "bin/wire").exists():
        say("the load program is not built: install Go 1.26 and run `make bench`")
        return 2
    options = vars(arguments())
    rounds = options.pop("rounds")
    is_ours = options["address"] is None
    with ours() if is_ours else nullcontext(Target(**options)) as target:
        figures = measure(target, rounds)
    if is_ours:
        say(f"keys elsewhere ({rounds} rounds)")
        figures |= remote_keys.transit(rounds) | remote_keys.softhsm(rounds)
        say(f"below a PKI mount ({rounds} rounds)")
        figures |= authorities.below_mount(rounds)
        say(f"attesting nodes ({rounds} rounds)")
        figures |= node_attestation.k8s_psat(rounds)
        if controller.can_run():
            say(f"a cluster of 1,000 pods ({rounds} rounds)")
            figures |= controller.controller(rounds)
        if pod_certificates.can_run():
            say(f"certificates of pods ({rounds} rounds)")
            figures |= pod_certificates.pod_certificates(rounds)
        say("a taint")
        figures |= authorities.taint()
        say("a thousand agents")
        figures |= authorities.status(rounds)
        say("workloads")
        figures |= workload_attestation.local(rounds)
        say("policies")
        figures |= bench_policy.figures(rounds)
        say("policies in Envoy")
        figures |= envoy_policy.envoy_policy(rounds)
        say("checks")
        figures |= ext_authz.ext_authz(rounds)
        figures |= policy_push.policy_push(rounds)
    (CACHE / "bench.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    for line in missed(figures):
        say(f"missed: {line}")
    return 1 if missed(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
