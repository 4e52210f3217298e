"""The same rules in Cedar and in pycasbin, each as its documentation would have it, checked against ours."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from policy.snapshot import compile_set
from tests.bench.policy_shapes import MESH, Plain, Shape, policies, requests, targets

ASKED = 40
"""Requests: where rules are many, one takes tens of milliseconds."""

_MODEL = """
[request_definition]
r = obj, sub, path, act
[policy_definition]
p = obj, sub, path, act, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = r.obj == p.obj && keyMatch(r.sub, p.sub) && keyMatch(r.path, p.path) && regexMatch(r.act, p.act)
"""


def _median(made: Shape, decide: Callable[[str, str, str, str], bool]) -> float:
    ours = compile_set(policies(made), MESH, targets(made))
    taken = []
    for plain, (target, request) in list(zip(made.requests, requests(made), strict=True))[:ASKED]:
        begin = time.perf_counter_ns()
        allowed = decide(*plain)
        taken.append(time.perf_counter_ns() - begin)
        assert allowed == ours.decide(target, request).allowed, plain
    return statistics.median(taken) / 1000


def cedar_us(made: Shape) -> float:
    """The median of one decision by Cedar, its policies and entities parsed beforehand."""
    import cedarpy

    parsed = cedarpy.PolicySet.from_str("\n".join(map(_cedar, made.rules)))
    entities = cedarpy.Entities.from_json_str("[]")

    def decide(target: str, principal: str, method: str, path: str) -> bool:
        request = {
            "principal": {"type": "Workload", "id": principal},
            "action": {"type": "Action", "id": method},
            "resource": {"type": "Service", "id": target},
            "context": {"path": path, "caller": principal},
        }
        return bool(cedarpy.is_authorized(request, parsed, entities).allowed)

    return _median(made, decide)


def _cedar(rule: Plain) -> str:
    def any_of(values: tuple[str, ...], name: str) -> str:
        return " || ".join(f"context.{name} like {json.dumps(value)}" for value in values) or "true"

    actions = ", ".join(f'Action::"{method}"' for method in rule.methods)
    scope = f'principal, action{f" in [{actions}]" if actions else ""}, resource == Service::"{rule.target}"'
    condition = f"({any_of(rule.principals, 'caller')}) && ({any_of(rule.paths, 'path')})"
    return f"{'forbid' if rule.deny else 'permit'}({scope}) when {{ {condition} }};"


def casbin_us(made: Shape) -> float:
    """The median of one decision by pycasbin, every rule in its order."""
    import casbin

    model = casbin.Model()
    model.load_model_from_text(_MODEL)
    enforcer = casbin.Enforcer(model)
    for rule in made.rules:
        methods = f"^({'|'.join(rule.methods)})$" if rule.methods else ".*"
        for principal in rule.principals or ("*",):
            for path in rule.paths or ("*",):
                line = [rule.target, principal, path, methods, "deny" if rule.deny else "allow"]
                enforcer.get_model().add_policy("p", "p", line)
    return _median(made, lambda target, principal, method, path: enforcer.enforce(target, principal, path, method))
