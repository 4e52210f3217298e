"""Which entries a pod is to have, and which must be left as they are: pure, and never by half of what must be known."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from ca.controller.diff import diff
from ca.controller.entry_wire import message_of, normal
from ca.controller.labels import LabelSelector
from ca.controller.render import NOTHING, Plan, Settings, plan_pod
from ca.controller.rules import Rule, parse_go_duration, read_rule, read_static
from ca.controller.templates import Template
from ca.controller.values import Meta, Pod, Resource, read_node_spec, read_pod, read_resource, read_slice
from ca.errors import InvalidArgument
from ca.identity.spiffe_id import TrustDomain

SETTINGS = Settings(
    trust_domain=TrustDomain("example.org"), cluster="demo", cluster_domain="cluster.local", mark="k8s.demo."
)
NODE = Meta("n1", "node-uid", {"zone": "a"}, {})
NAMESPACE = Meta("a", "ns-uid", {"team": "x"}, {})
BY_NAME = "spiffe://{{ .TrustDomain }}/{{ .PodMeta.Name }}"


def pod(uid: str = "pod-uid", *, labels: dict[str, str] | None = None, **more: Any) -> Pod:
    meta = Meta("web", uid, labels or {"app": "web", "app.kubernetes.io/name": "shop"}, {"note": "x/y"}, "a")
    return Pod(meta, {"NodeName": "n1", "ServiceAccountName": "sa"} | more.pop("spec", {}), more.pop("ended", False))


def rule(uid: str = "r1", *, created: str = "2026-01-01T00:00:00Z", **spec: Any) -> Rule:
    given = {"spiffeIDTemplate": BY_NAME} | spec
    return read_rule(Resource("ClusterSPIFFEID", uid, uid, 1, created, given, {}))


def plan(*rules: Rule, of: Pod | None = None, **known: Any) -> Plan:
    values: dict[str, Any] = {"namespace": NAMESPACE, "node": NODE, "services": ()} | known
    return plan_pod(of or pod(), rules, settings=SETTINGS, **values)


def ids(found: Plan) -> list[str]:
    return sorted(str(one.entry.spiffe_id) for one in found.wanted.values())


def test_a_pod_gets_an_entry_below_its_nodes_agent() -> None:
    (wanted,) = plan(rule(federatesWith=["b.test", "a.test"], downstream=True)).wanted.values()
    entry = wanted.entry
    assert str(entry.parent_id) == "spiffe://example.org/spire/agent/k8s_psat/demo/node-uid"
    assert {str(one) for one in entry.selectors} == {"k8s:pod-uid:pod-uid"}
    assert [one.name for one in entry.federates_with] == ["a.test", "b.test"]
    assert (entry.downstream, entry.admin) == (True, False)
    assert SETTINGS.is_ours(entry.id)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ .ClusterName }}.{{ .ClusterDomain }}", "demo.cluster.local"),
        ("{{.PodMeta.Namespace}}/{{.PodSpec.ServiceAccountName}}", "a/sa"),
        ("{{ .PodMeta.UID }}-{{ .NodeMeta.UID }}-{{ .NodeMeta.Name }}", "pod-uid-node-uid-n1"),
        ('{{ index .PodMeta.Labels "app.kubernetes.io/name" }}', "shop"),
        ("{{ .PodMeta.Labels.app | upper }}", "WEB"),
        ('{{ index .PodMeta.Labels "none" | default "n" }}', "n"),
        ('{{ .NodeMeta.Labels.zone | printf "%s-%s" .PodMeta.Name }}', "web-a"),
        ("{{ .NodeMeta.Labels.zone | printf }}", None),
        ("{{ .PodMeta.Labels.none }}", InvalidArgument),
        ("{{ .PodMeta.Annotations.note }}", InvalidArgument),
        ("{{ if .PodMeta.Labels.app }}x{{ else }}y{{ end }}", "x"),
        ("{{ if .PodMeta.Labels.none }}x{{ else }}y{{ end }}", "y"),
        ("{{ if .PodMeta.Labels.app }}{{ .PodMeta.Annotations.note }}{{ else }}y{{ end }}", InvalidArgument),
        ("{{ range .PodMeta.Labels }}x{{ end }}", None),
        ("{{ .PodMeta.Secret }}", None),
        ("{{ .PodMeta }}", None),
        ("{{ index .PodMeta.Labels }}", None),
        ("{{ index .PodMeta.Name \"x\" }}", None),
        ("{{ .PodMeta.Name", None),
    ],
)  # fmt: skip
def test_templates(template: str, expected: Any) -> None:
    found = plan(rule(spiffeIDTemplate="spiffe://example.org/" + template))
    if expected is InvalidArgument:
        assert (found.wanted, [*found.failed]) == ({}, ["r1"])
    elif expected is None:
        with pytest.raises(InvalidArgument):
            Template.parse(template, "x")
        assert found.kept == {SETTINGS.entry_id("r1", "pod-uid")}
    else:
        assert ids(found) == [f"spiffe://example.org/{expected}"]


def test_fields_of_pods_and_nodes_are_those_of_go() -> None:
    spec = {
        "nodeName": "n1",
        "serviceAccount": "sa",
        "hostNetwork": True,
        "hostPID": False,
        "restartPolicy": "Never",
        "dnsPolicy": "Default",
        "nodeSelector": {"disk": "ssd"},
    }
    meta = {"name": "web-1", "uid": "u", "namespace": "a", "generateName": "web-"}
    found = read_pod({"metadata": meta, "spec": spec})
    assert found is not None
    whole = read_node_spec({"spec": {"podCIDR": "10.0.0.0/24", "providerID": "aws:///z/i-1", "unschedulable": True}})

    def rendered(template: str) -> list[str]:
        made = plan(rule(spiffeIDTemplate="spiffe://example.org/" + template), of=found, node_spec=whole)
        assert not made.failed, made.failed
        return ids(made)

    for template, expected in (
        ("{{ .PodMeta.GenerateName }}{{ .PodSpec.DeprecatedServiceAccount }}", "web-sa"),
        ("{{ .PodSpec.RestartPolicy }}.{{ .PodSpec.DNSPolicy }}.{{ .PodSpec.NodeSelector.disk }}", "Never.Default.ssd"),
        ("{{ if .PodSpec.HostNetwork }}host{{ end }}{{ if .PodSpec.HostPID }}pid{{ end }}", "host"),
        ("{{ .PodSpec.HostNetwork }}-{{ .PodSpec.HostIPC }}", "true-false"),
        ('{{ .NodeSpec.ProviderID | trimPrefix "aws:///z/" }}', "i-1"),
        ("{{ .NodeSpec.Unschedulable }}", "true"),
    ):
        assert rendered(template) == [f"spiffe://example.org/{expected}"], template


def test_a_rule_that_asks_for_a_whole_node_waits_for_it_and_no_other_does() -> None:
    asks = rule("r2", workloadSelectorTemplates=["a:{{ .NodeSpec.PodCIDR }}"])
    found = plan(rule(), asks)
    assert (ids(found), found.kept) == (["spiffe://example.org/web"], {SETTINGS.entry_id("r2", "pod-uid")})
    assert len(plan(rule(), asks, node_spec={"PodCIDR": "10.0.0.0/24"}).wanted) == 2


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://other.org/x",
        "spiffe://example.org/spire/agent/x",
        "spiffe://example.org",
        "spiffe://example.org/a b",
        "spiffe://example.org/{{ .PodMeta.Name }}/../x",
        "web",
    ],
)
def test_what_makes_no_spiffe_id_of_ours_makes_no_entry(text: str) -> None:
    found = plan(rule(spiffeIDTemplate=text))
    assert (found.wanted, [*found.failed], found.kept) == ({}, ["r1"], frozenset())


def test_selectors_choose_by_labels() -> None:
    def chooses(selector: Any, labels: dict[str, str]) -> bool:
        return LabelSelector.parse(selector, "podSelector").matches(labels)

    def expression(operator: str, *values: str) -> Any:
        return {"matchExpressions": [{"key": "a", "operator": operator, "values": list(values)}]}

    assert chooses(None, {})
    assert chooses({}, {})
    assert chooses({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"})
    assert not chooses({"matchLabels": {"a": "1", "b": "1"}}, {"a": "1"})
    for operator, values, here, absent in (
        ("In", ("1", "2"), True, False),
        ("NotIn", ("1",), False, True),
        ("Exists", (), True, False),
        ("DoesNotExist", (), False, True),
    ):
        assert chooses(expression(operator, *values), {"a": "1"}) is here, operator
        assert chooses(expression(operator, *values), {}) is absent, operator


@pytest.mark.parametrize(
    "selector",
    [
        [],
        "x",
        {"matchLabel": {}},
        {"matchLabels": {"a": 1}},
        {"matchExpressions": [{"key": "a", "operator": "in", "values": ["1"]}]},
        {"matchExpressions": [{"key": "a", "operator": "In"}]},
        {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["1"]}]},
        {"matchExpressions": [{"operator": "Exists"}]},
    ],
)
def test_a_selector_that_is_misread_chooses_nothing_new(selector: Any) -> None:
    with pytest.raises(InvalidArgument):
        LabelSelector.parse(selector, "podSelector")
    found = plan(rule(podSelector=selector))
    assert (found.wanted, len(found.kept)) == ({}, 1)


def test_whom_it_does_not_choose_has_nothing() -> None:
    assert plan(rule(podSelector={"matchLabels": {"app": "other"}})) == Plan()
    assert plan(rule(namespaceSelector={"matchLabels": {"team": "y"}})) == Plan()
    assert plan(rule(), of=pod(ended=True)) is NOTHING
    assert plan(rule(), of=pod(spec={"NodeName": ""})) is NOTHING


def test_what_cannot_be_judged_is_kept() -> None:
    ours = SETTINGS.entry_id("r1", "pod-uid")
    for unknown in ({"node": None}, {"namespace": None}):
        found = plan(rule(), **unknown)
        assert (found.wanted, found.kept) == ({}, {ours})
    named = plan(rule(autoPopulateDNSNames=True), services=None)
    assert (named.wanted, named.kept) == ({}, {ours})
    current = {ours: message_of(next(iter(plan(rule()).wanted.values())).entry)}
    assert diff(named, current).count == 0


def test_fallbacks_are_for_pods_that_no_other_chooses() -> None:
    other = rule("r2", spiffeIDTemplate="spiffe://example.org/fallback", fallback=True)
    assert ids(plan(rule(), other)) == ["spiffe://example.org/web"]
    assert ids(plan(rule(podSelector={"matchLabels": {"a": "b"}}), other)) == ["spiffe://example.org/fallback"]
    broken = plan(rule(spiffeIDTemplate="{{"), other)
    assert (broken.wanted, len(broken.kept)) == ({}, 2), "whether it chooses the pod is not known"


def test_of_two_that_make_the_same_the_first_has_it() -> None:
    found = plan(rule("old"), rule("new", admin=True))
    assert [one.owner for one in found.wanted.values()] == ["old"]
    assert found.masked == ("new",)


def test_names_of_services_are_added() -> None:
    found = plan(rule(autoPopulateDNSNames=True, dnsNameTemplates=["{{ .PodMeta.Name }}"]), services=[("a", "shop")])
    (wanted,) = found.wanted.values()
    assert wanted.entry.dns_names == ("shop", "shop.a", "shop.a.svc", "shop.a.svc.cluster.local", "web")


def test_what_is_there_is_changed_as_little_as_can_be() -> None:
    (wanted,) = (before := plan(rule())).wanted.values()
    stored = normal(message_of(wanted.entry))
    assert diff(before, {wanted.entry.id: stored}).count == 0
    (update,) = diff(plan(rule(ttl="1h")), {wanted.entry.id: stored}).update
    assert (update[0].id, update[0].x509_svid_ttl) == (wanted.entry.id, 3600)
    assert diff(NOTHING, {wanted.entry.id: stored}).delete == [wanted.entry.id]
    heir = diff(plan(rule("r2", hint="h")), {wanted.entry.id: stored})
    assert (heir.create, heir.delete) == ([], []), "the identity goes on without a gap"
    assert [(message.id, message.hint) for message, _ in heir.update] == [(wanted.entry.id, "h")]


def test_ids_are_marks() -> None:
    some = str(uuid.uuid4())
    for entry_id in (
        some,
        f"k8s.demo.{some.upper()}",
        f"k8s.demo.x.{some}",
        f"k8s.demo{some}",
        "k8s.demo.",
        "k8s.demo.x",
    ):
        assert not SETTINGS.is_ours(entry_id), entry_id
    assert SETTINGS.is_ours(f"k8s.demo.{some}")
    assert SETTINGS.entry_id("a", "b") == SETTINGS.entry_id("a", "b") != SETTINGS.entry_id("b", "a")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5400), ("90s", 90), ("0", 0), ("1.5m", 90), ("1500ms", 1), ("2h0m0.5s", 7200), ("1µs", 0)],
)
def test_durations_are_those_of_go(text: str, seconds: int) -> None:
    assert parse_go_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1d", "-1h", "1h ", "1e3s", "9" * 70 + "s", "99999999h"])
def test_what_is_no_duration_breaks_the_rule(text: str) -> None:
    broken = rule(ttl=text)
    assert (broken.problem is None) is (text == "")  # as if it were not there


STATIC = {"spiffeID": "spiffe://example.org/x", "parentID": "spiffe://example.org/p", "selectors": ["unix:uid:1"]}


@pytest.mark.parametrize(
    "change",
    [
        {"spiffeID": "x"},
        {"parentID": 3},
        {"selectors": ["none"]},
        {"selectors": "unix:uid:1"},
        {"federatesWith": ["NO!"]},
        {"admin": "yes"},
        {"x509SVIDTTL": "1y"},
        {"dnsNames": [3]},
        {"selectors": ["unix:uid:1"] * 101},
    ],
)
def test_static_entries_that_make_none(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        read_static(Resource("ClusterStaticEntry", "s", "s", 1, "", STATIC | change, {}), "id")


def test_objects_of_any_shape_are_read_without_an_error() -> None:
    for odd in (
        {},
        {"metadata": []},
        {"metadata": {"uid": 3}},
        {"metadata": {"uid": "u"}, "spec": 3, "endpoints": [3]},
    ):
        assert read_pod(odd) is None
        assert read_slice(odd) is None
        read_resource(odd)
    many = {"metadata": {"uid": "u", "namespace": "a", "annotations": {"x": "y" * 5000, "z": 3}}, "spec": None}
    found = read_pod(many)
    assert found is not None
    assert found.meta.annotations == {}
