"""What a cluster's users may write into pods and into objects of ours: no entry is made that somebody did not mean."""

from __future__ import annotations

import json
from typing import Any

from ca.controller.diff import diff
from ca.controller.entry_wire import normal
from ca.controller.render import Settings, plan_pod
from ca.controller.rules import read_rule, read_static
from ca.controller.values import read_meta, read_pod, read_resource, read_slice
from ca.errors import AlreadyExists, InvalidArgument
from ca.identity.entry import validate_entry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import TrustDomain, is_reserved
from tests.fuzz.harness import Target, check_refusal, outcome

SETTINGS = Settings(
    trust_domain=TrustDomain("example.org"), cluster="demo", cluster_domain="cluster.local", mark="k8s.demo."
)


def run_cluster(data: bytes) -> None:
    """An object with `pod`, `node`, `rule` and `static`."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(given, dict):
        return
    parts = {name: found if isinstance(found := given.get(name), dict) else {} for name in ("pod", "node", "rule")}
    read_slice(parts["pod"])
    pod, node, resource = read_pod(parts["pod"]), read_meta(parts["node"]), read_resource(parts["rule"])
    if resource is not None:
        outcome(read_static, resource, "id", refusal=InvalidArgument)
    if pod is None or resource is None or not node.uid:
        return
    rule = read_rule(resource)
    if rule.problem is not None:
        check_refusal(rule.problem, InvalidArgument)
    plan = plan_pod(pod, [rule], namespace=read_meta({}), node=node, services=[("a", "web")], settings=SETTINGS)
    for error in plan.failed.values():
        check_refusal(error, InvalidArgument, AlreadyExists)
    _check(plan, pod.uid)


def _check(plan: Any, uid: str) -> None:
    for entry_id, wanted in plan.wanted.items():
        entry = wanted.entry
        assert SETTINGS.is_ours(entry_id)
        assert Selector("k8s", f"pod-uid:{uid}") in entry.selectors, "never for more than the pod"
        assert entry.spiffe_id.trust_domain == SETTINGS.trust_domain
        assert not is_reserved(entry.spiffe_id.path)
        validate_entry(entry, trust_domain=SETTINGS.trust_domain)
    made = diff(plan, {}).create
    assert diff(plan, {message.id: normal(message) for message, _ in made}).count == 0, "what was made stays made"


_WORDS = (
    "{{ .PodMeta.Name }}",
    "{{ .PodMeta.Annotations.a }}",
    '{{ index .PodMeta.Labels "a/b" | default "c" }}',
    "spiffe://example.org/",
    '"metadata":{',
    '"spec":{',
    "matchExpressions",
    "spiffeIDTemplate",
    "dnsNameTemplates",
    "workloadSelectorTemplates",
    "../",
)
TARGETS = (Target(name="cluster", run=run_cluster, words=tuple(word.encode() for word in _WORDS)),)
