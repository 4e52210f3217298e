"""Decisions in process, compiling and memory: `python -m tests.bench.bench_policy [--peers]`.

Each figure is the best of several rounds: of decisions the median of single calls, of compiling processor time, the
garbage collector set as the server sets it. Beside them stand a floor (one Python call and one dict look-up) and Cedar
and pycasbin on the same rules.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ca.runtime.collector import COLLECT_AFTER
from policy import reference
from policy.diff import Difference, difference
from policy.envoy import Proxy, Shares, http_config
from policy.explain import explain
from policy.invariants import check, read
from policy.model import Action
from policy.snapshot import Snapshot, compile_set
from tests.bench import policy_peers
from tests.bench.load import Figures
from tests.bench.policy_shapes import MESH, Shape, ours, policies, requests, shape, targets

COUNTS = (10, 100, 1_000, 10_000)
KINDS = ("mesh", "gateway")


def p50_us(call: Callable[..., object], arguments: Iterable[tuple[object, ...]]) -> float:
    """The median of single calls, in microseconds; each is made once before."""
    now, taken = time.perf_counter_ns, []
    for some in arguments:
        call(*some)
        begin = now()
        call(*some)
        taken.append(now() - begin)
    return statistics.median(taken) / 1000


def floor_us(count: int) -> float:
    """One call of a Python function that looks into a dict of so many texts."""
    known = {f"key-{n}": n for n in range(count)}

    def look(key: str) -> int | None:
        return known.get(key)

    return p50_us(look, [(f"key-{n % count}",) for n in range(2000)])


def compiled(made: Shape) -> Snapshot:
    """The rules of a shape, checked against the evaluator from the specification where that is not too slow."""
    rules, workloads = policies(made), targets(made)
    snapshot = compile_set(rules, MESH, workloads)
    by_id = {target.spiffe_id: target for target in workloads}
    for target, request in requests(made)[:20]:
        assert snapshot.decide(target, request) == reference.decide(rules, MESH, by_id[target], request)
    return snapshot


def decisions(kind: str, count: int, rounds: int) -> float:
    """The median of one decision."""
    made = shape(kind, count)
    snapshot, asked = compiled(made), requests(made)
    return min(p50_us(snapshot.decide, asked) for _ in range(rounds))


def decisions_of(kind: str, counts: tuple[int, int], rounds: int) -> list[float]:
    """The same for two counts of rules by turns: what the machine does meanwhile, it does to both."""
    shapes = [shape(kind, count) for count in counts]
    pairs = [(compiled(made), requests(made)) for made in shapes]
    taken = [[p50_us(snapshot.decide, asked) for snapshot, asked in pairs] for _ in range(rounds)]
    return [min(column) for column in zip(*taken, strict=True)]


def processor_ms(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    gc.collect()
    begin = time.process_time()
    call()
    return (time.process_time() - begin) * 1000


def compiling(kind: str, count: int, rounds: int) -> tuple[float, float]:
    """Milliseconds to compile all rules, and to apply a change of one."""
    made = shape(kind, count)
    rules, workloads = policies(made), targets(made)
    before = compile_set(rules, MESH, workloads)
    last = replace(rules[-1], rules=(*(rules[-1].rules or ()), ours(made.rules[0])))
    changed = [*rules[:-1], last]
    whole = min(processor_ms(lambda: compile_set(rules, MESH, workloads)) for _ in range(rounds))
    one = min(processor_ms(lambda: compile_set(changed, MESH, workloads, previous=before)) for _ in range(rounds))
    return whole, one


def differing_ms(kind: str, count: int, rounds: int) -> tuple[float, float]:
    """The median and the worst of comparing a revision with one in which one rule is another, each time a different
    one. What denies is the dearer change, since of it nothing follows before all that allows was looked at: every other
    one is such."""
    made = shape(kind, count)
    rules, workloads = policies(made), targets(made)
    before = compile_set(rules, MESH, workloads)
    denying = [number for number, policy in enumerate(rules) if policy.action is Action.DENY]
    taken = []
    for turn in range(6 * rounds):
        some: Sequence[int] = denying if turn % 2 else range(len(rules))
        number = some[turn * len(some) // (6 * rounds)]
        other = replace(rules[number], rules=(*(rules[number].rules or ())[1:], ours(made.rules[-1 - number])))
        after = compile_set([*rules[:number], other, *rules[number + 1 :]], MESH, workloads, previous=before)
        found: list[Difference] = []
        taken.append(processor_ms(lambda after=after, found=found: found.append(difference(before, after))))
        assert found[0].complete
    return statistics.median(taken), max(taken)


def invariant_ms(kind: str, count: int, rounds: int) -> float:
    """The median of checking that a caller can reach nothing, for callers of whom that is so or not."""
    made = shape(kind, count)
    snapshot = compile_set(policies(made), MESH, targets(made))
    head = "apiVersion: burgee.io/v1\nkind: Invariant\nmetadata: {name: i}\nspec: "
    asked = [read(f'{head}{{never: "ns-{n % 50}/svc-{n} -> anything"}}') for n in range(0, 200, 40 // rounds)]
    return statistics.median(processor_ms(lambda one=one: check(one, snapshot)) for one in asked)


def explaining_ms(count: int, rounds: int) -> float:
    """The median of one explanation, all rules on one target."""
    made = shape("gateway", count)
    snapshot, asked = compiled(made), requests(made)[:200]
    return min(p50_us(lambda *some: explain(snapshot, *some).document(), asked) for _ in range(rounds)) / 1000


def filter_ms(count: int, rounds: int) -> tuple[float, float]:
    """Milliseconds to make a proxy's filter with all rules on its target, and with one rule changed of one that it has
    got. Rules that anybody may do anything are left out: one of them would take the place of all others."""
    made = shape("gateway", count)
    made = replace(made, rules=tuple(rule for rule in made.rules if rule.principals or rule.paths or rule.methods))
    rules, (target,), proxy = policies(made), targets(made), Proxy(ext_authz=True, jwt=True)
    whole = min(processor_ms(lambda: http_config(target, rules, MESH, proxy)) for _ in range(rounds))
    lent, taken = Shares(), []
    kept = http_config(target, rules, MESH, proxy, lent)
    for number in range(0, len(rules), max(1, len(rules) // rounds)):
        other = replace(rules[number], rules=(*(rules[number].rules or ())[1:], ours(made.rules[-1 - number])))
        changed = [*rules[:number], other, *rules[number + 1 :]]
        taken.append(processor_ms(lambda changed=changed: http_config(target, changed, MESH, proxy, lent)))
    assert kept.shares
    return whole, statistics.median(taken)


def memory_mb(kind: str, count: int) -> float:
    """What rules and tables hold together."""
    made = shape(kind, count)
    gc.collect()
    tracemalloc.start()
    snapshot = compile_set(policies(made), MESH, targets(made))
    for target, request in requests(made):
        snapshot.decide(target, request)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / 1e6


def peers(kind: str) -> Figures:
    """The same decisions by Cedar and by pycasbin, of 1,000 rules: of more they take a tenth of a second."""
    made = shape(kind, 1_000)
    return {
        f"policy_{kind}_1k_us": decisions(kind, 1_000, 1),
        f"policy_{kind}_1k_cedar_us": policy_peers.cedar_us(made),
        f"policy_{kind}_1k_casbin_us": policy_peers.casbin_us(made),
    }


def figures(rounds: int) -> Figures:
    """The rows of the table."""
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        return _figures(rounds)
    finally:
        gc.set_threshold(*before)


def _figures(rounds: int) -> Figures:
    found: Figures = {"policy_floor_us": min(floor_us(10_000) for _ in range(rounds))}
    for kind in KINDS:
        few, many = decisions_of(kind, (COUNTS[0], COUNTS[-1]), 3 * rounds)
        found |= {f"policy_{kind}_us": many, f"policy_{kind}_ratio": many / few}
        found[f"policy_{kind}_compile_ms"], found[f"policy_{kind}_apply_ms"] = compiling(kind, COUNTS[-1], rounds)
        found[f"policy_{kind}_mb"] = memory_mb(kind, COUNTS[-1])
        found[f"policy_{kind}_diff_ms"], found[f"policy_{kind}_diff_worst_ms"] = differing_ms(kind, COUNTS[-1], rounds)
        found[f"policy_{kind}_invariant_ms"] = invariant_ms(kind, 1_000, rounds)
        found |= peers(kind)
    found["policy_explain_ms"] = explaining_ms(1_000, rounds)
    for count, name in ((1_000, "1k"), (10_000, "10k")):
        found[f"policy_filter_{name}_ms"], found[f"policy_filter_{name}_change_ms"] = filter_ms(count, rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", action="store_true", help="Cedar and pycasbin beside, which takes minutes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| shape | rules | Burgee p50 µs | of 10 rules |" + (" cedarpy | pycasbin |" if options.peers else ""))
    print("|---|---|---|---|" + ("---|---|" if options.peers else ""))
    for kind in KINDS:
        first = 0.0
        for count in COUNTS:
            found = decisions(kind, count, options.rounds)
            first = first or found
            row = f"| {kind} | {count} | {found:.2f} | {found / first:.2f} |"
            if options.peers:
                made = shape(kind, count)
                row += f" {policy_peers.cedar_us(made):.0f} | {policy_peers.casbin_us(made):.0f} |"
            print(row, flush=True)
    for name, value in figures(options.rounds).items():
        print(f"{name:30} {value:10.2f}")


if __name__ == "__main__":
    main()
