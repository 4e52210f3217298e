"""`caadmin policy` on files: what each command prints, and with what it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from policy.decision_record import DecisionRecord, Source
from policy.ext_authz_wire import DECISION_HEADER
from policy.parse import parse
from tests.ca.cli.conftest import Caadmin

ORDERS = "spiffe://example.org/ns/shop/sa/orders"
WEB = "spiffe://example.org/ns/shop/sa/web"
POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders-read, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  rules:
  - from: [{source: {principals: ["example.org/ns/shop/sa/web"]}}]
    to: [{operation: {methods: ["GET"], paths: ["/orders/*"]}}]
"""
WORKLOADS = """
apiVersion: burgee.io/v1
kind: Workload
metadata: {name: orders, namespace: shop, labels: {app: orders}}
spec: {spiffeId: spiffe://example.org/ns/shop/sa/orders}
"""
INVARIANT = """
apiVersion: burgee.io/v1
kind: Invariant
metadata: {name: no-web}
spec: {never: shop/web -> shop/orders}
"""
TESTS = f"""
tests:
- {{name: read, target: "{ORDERS}", request: {{principal: "{WEB}", method: GET, path: /orders/7}}, expect: allow}}
- {{name: write, target: "{ORDERS}", request: {{principal: "{WEB}", method: POST, path: /orders/7}}, expect: deny}}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "orders.yaml").write_text(POLICIES)
    (tmp_path / "policies" / "notes.txt").write_text("not read")
    (tmp_path / "workloads.yaml").write_text(WORKLOADS)
    (tmp_path / "tests.yaml").write_text(TESTS)
    (tmp_path / "wider.yaml").write_text(POLICIES.replace('"GET"', '"GET", "POST"'))
    records = [record(number) for number in range(5)]
    (tmp_path / "log").write_text("".join(f"{one.json_line()}\n" for one in records) + "nonsense\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(number: int) -> DecisionRecord:
    return DecisionRecord(
        id=f"d{number}",
        at=datetime(2026, 11, 1, tzinfo=UTC),
        source=Source.PUSHED,
        target=ORDERS,
        allowed=True,
        reason="ALLOWED_BY_RULE",
        principal=WEB.removeprefix("spiffe://"),
        method="GET",
        path=f"/orders/{number}",
    )


GIVEN = ("-f", "policies", "--workloads", "workloads.yaml")


def test_an_object_without_a_namespace_is_of_the_one_that_is_named(caadmin: Caadmin, files: Path) -> None:
    for name, text in (("policies/orders.yaml", POLICIES), ("workloads.yaml", WORKLOADS)):
        (files / name).write_text(text.replace(", namespace: shop", ""))
    caller = ("orders", "--from", WEB, "--path", "/orders/7")
    ran = caadmin("policy", "explain", *caller, *GIVEN, "--namespace", "shop", "-o", "json")
    assert (ran.code, "shop/orders-read" in ran.out) == (0, True), ran.err
    ran = caadmin("policy", "explain", *caller, *GIVEN, "-o", "json")
    assert (ran.code, "default/orders-read" in ran.out) == (0, True), ran.err
    for command in (
        ["validate", "policies"],
        ["lint", *GIVEN],
        ["test", "tests.yaml", *GIVEN],
        ["graph", *GIVEN, "-o", "json"],
        ["replay", "--log", "log", *GIVEN],
        ["diff", *GIVEN, "--before", "policies"],
        ["export", "envoy", "orders", *GIVEN],
        ["suggest", "--log", "log", "--workloads", "workloads.yaml"],
    ):
        assert caadmin("policy", *command, "-n", "shop").code == 0, command
        ran = caadmin("policy", *command, "-n", "No")
        assert (ran.code, "P008" in ran.out + ran.err) == (1 if command[0] == "validate" else 2, True), command


DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: orders}\nspec: {replicas: 2}\n"
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: orders}\n"


def test_objects_of_other_kinds_are_passed_over_where_that_is_asked_for(caadmin: Caadmin, files: Path) -> None:
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(SERVICE)] * 2})
    (files / "policies" / "app.yaml").write_text(f"{DEPLOYMENT}---\n{listed}\n---\n{WORKLOADS}")
    refused = caadmin("policy", "validate", "policies")
    assert (refused.code, refused.out.count("P007")) == (1, 3)
    assert (
        "objects of other kinds (2 Service, 1 Deployment) are refused; --ignore-others passes over them" in refused.err
    )
    ran = caadmin("policy", "validate", "policies", "--ignore-others")
    assert (ran.code, ran.out) == (0, "valid: 1 AuthorizationPolicy, 1 Workload\n")
    assert ran.err == "objects of other kinds (2 Service, 1 Deployment) are passed over\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: AuthorizationPolicy", "kind: AuthorisationPolicy"),
        ("security.istio.io/v1", "security.istio.io/v2"),
        ("security.istio.io/v1", "securty.istio.io/v1"),
        ("kind: AuthorizationPolicy\n", ""),
        ("apiVersion: security.istio.io/v1\n", ""),
    ],
)
def test_a_policy_with_a_mistake_in_its_kind_is_never_passed_over(
    caadmin: Caadmin, files: Path, old: str, new: str
) -> None:
    (files / "policies" / "orders.yaml").write_text(POLICIES.replace(old, new))
    ran = caadmin("policy", "validate", "policies", "--ignore-others")
    assert (ran.code, "P007" in ran.out, "passed over" in ran.err) == (1, True, False), ran.out


def test_without_files_it_is_said_what_is_missing(caadmin: Caadmin) -> None:
    for command in (["validate"], ["diff"]):
        ran = caadmin("policy", *command)
        assert (ran.code, ran.out) == (2, "")
        assert "--file" in ran.err
    for command in (["lint"], ["explain", "orders"], ["graph"]):
        ran = caadmin("policy", *command)
        assert (ran.code, ran.out) == (1, "")
        assert "no server answers" in ran.err
        assert "--file" in ran.err


def test_validate(caadmin: Caadmin, files: Path) -> None:
    ran = caadmin("policy", "validate", *GIVEN[:2])
    assert (ran.code, ran.out) == (0, "valid: 1 AuthorizationPolicy\n")
    (files / "policies" / "wrong.yaml").write_text(POLICIES.replace("methods", "metods").replace("orders-read", "b"))
    ran = caadmin("policy", "validate", "-f", "policies")
    assert ran.code == 1
    assert "policies/wrong.yaml:9:" in ran.out
    assert "P006" in ran.out
    ran = caadmin("policy", "validate", "-f", "policies", "-o", "json")
    assert ran.json["problems"][0]["pointer"] == "/spec/rules/0/to/0/operation/metods"
    ran = caadmin("policy", "lint", "-f", "policies")
    assert (ran.code, ran.out) == (2, "")
    assert "policies/wrong.yaml:9:" in ran.err


def test_standard_input_and_what_cannot_be_read(caadmin: Caadmin, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(POLICIES.encode())

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert caadmin("policy", "validate", "-f", "-").out == "valid: 1 AuthorizationPolicy\n"
    assert caadmin("policy", "validate", "-f", "nowhere").code == 2
    (files / "empty").mkdir()
    assert "no YAML or JSON files" in caadmin("policy", "validate", "-f", "empty").err


def test_explain(caadmin: Caadmin, files: Path) -> None:
    ran = caadmin("policy", "explain", "orders", "--from", WEB, "--method", "POST", "--path", "/orders/7?x", *GIVEN)
    assert ran.code == 0
    assert "denied: no rule allows it" in ran.out
    assert "ALLOW shop/orders-read#0 (policies/orders.yaml:8): 1 failed\n    method POST not in [GET]" in ran.out
    ran = caadmin("policy", "explain", ORDERS, "--from", WEB, "--path", "/orders/7", *GIVEN, "-o", "json")
    assert (ran.json["allowed"], ran.json["decisive"]["rule"]) == (True, 0)
    assert caadmin("policy", "explain", "payments", *GIVEN).code == 2
    assert caadmin("policy", "explain", "orders", *GIVEN, "--header", "x").code == 2


def test_tests(caadmin: Caadmin, files: Path) -> None:
    ran = caadmin("policy", "test", "tests.yaml", *GIVEN)
    assert (ran.code, ran.out) == (0, "2 passed, 0 failed\n")
    ran = caadmin(
        "policy", "test", "tests.yaml", "-f", "wider.yaml", "--workloads", "workloads.yaml", "--junit", "j.xml"
    )
    assert ran.code == 1
    assert "FAILED  tests.yaml:4  write\n    want deny, got allow: ALLOW shop/orders-read#0" in ran.out
    suite = ElementTree.parse(files / "j.xml").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("failures") == "1"
    assert caadmin("policy", "test", "tests.yaml", *GIVEN, "-o", "junit").out.startswith("<?xml")
    assert caadmin("policy", "test", "tests.yaml", *GIVEN, "-o", "json").json["passed"] == 2
    (files / "bad.yaml").write_text(TESTS.replace("expect: allow", "expect: perhaps"))
    ran = caadmin("policy", "test", "bad.yaml", *GIVEN)
    assert (ran.code, ran.out) == (2, "")
    assert "bad.yaml:3:" in ran.err


def test_diff_and_lint(caadmin: Caadmin, files: Path) -> None:
    ran = caadmin("policy", "diff", "--before", "policies", "-f", "wider.yaml", "--workloads", "workloads.yaml")
    assert ran.code == 1
    assert "POST" in ran.out
    same = caadmin("policy", "diff", "--before", "policies", *GIVEN, "-o", "json")
    assert (same.code, same.json["equivalent"]) == (0, True)
    assert caadmin("policy", "lint", *GIVEN).code == 0
    (files / "policies" / "never.yaml").write_text(
        POLICIES.replace("app: orders", "app: nobody").replace("orders-read", "b")
    )
    ran = caadmin("policy", "lint", *GIVEN, "-o", "json")
    assert (ran.code, len(ran.json["findings"])) == (1, 1)
    (files / "invariants.yaml").write_text(INVARIANT)
    ran = caadmin("policy", "lint", "-f", "policies/orders.yaml", *GIVEN[2:], "--invariants", "invariants.yaml")
    assert ran.code == 1
    assert "orders" in ran.out


def test_files_are_arguments_too(caadmin: Caadmin, files: Path) -> None:
    """Each command says of them what it says of --file."""
    more = ["--workloads", "workloads.yaml"]
    for command, options in (
        ("lint", []),
        ("graph", ["-o", "json"]),
        ("diff", ["--before", "wider.yaml"]),
        ("replay", ["--log", "log"]),
        ("validate", []),
    ):
        rest = [*options, *(more if command != "validate" else [])]
        ran = caadmin("policy", command, "policies/", *rest)
        named = caadmin("policy", command, "-f", "policies", *rest)
        assert (ran.code, ran.out) == (named.code, named.out), command
        assert ran.out, command
    assert caadmin("policy", "lint", "policies", "workloads.yaml").out == "nothing found\n"
    ran = caadmin("policy", "lint", "nowhere.yaml")
    assert (ran.code, "nowhere.yaml" in ran.err) == (2, True)


def test_tests_stand_beside_policies(caadmin: Caadmin, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = (0, "2 passed, 0 failed\n")
    ran = caadmin("policy", "test", "policies/", "workloads.yaml", "tests.yaml")
    assert (ran.code, ran.out) == passed, ran.err
    (files / "tests.yaml").rename(files / "policies" / "tests.yaml")
    ran = caadmin("policy", "test", "policies", "workloads.yaml", "-f", "policies/orders.yaml")
    assert (ran.code, ran.out) == passed, ran.err
    listed = json.dumps([yaml.safe_load(POLICIES), yaml.safe_load(WORKLOADS)]).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    ran = caadmin("policy", "test", "-", "policies/tests.yaml")
    assert (ran.code, ran.out) == passed, ran.err
    ran = caadmin("policy", "test", "policies/orders.yaml")
    assert (ran.code, "no tests are among these files" in ran.err) == (2, True)
    ran = caadmin("policy", "test", "policies/tests.yaml")
    assert (ran.code, "say which policies are meant" in ran.err) == (2, True)
    (files / "bad.yaml").write_text("test: []\n")
    ran = caadmin("policy", "test", "bad.yaml", "policies/orders.yaml")
    assert (ran.code, "bad.yaml:1:1: P005" in ran.err) == (2, True), ran.err


def test_a_shell_completes_files(files: Path) -> None:
    """Our program offers nothing for them, so that the shell does, as it is told with `-o default`."""
    script = Path(sys.executable).parent / "caadmin"
    source = os.environ | {"_CAADMIN_COMPLETE": "source_bash"}  # what --show-completion prints where the shell is known
    shown = subprocess.run([script], env=source, capture_output=True, text=True, check=True)
    for command in ("lint", "graph", "diff", "test", "replay", "plan"):
        line = f"caadmin policy {command} po"
        asked = (
            f"COMP_LINE='{line}' COMP_WORDS=({line}) COMP_CWORD=3; _caadmin_completion {script}; echo ${{#COMPREPLY}}"
        )
        done = subprocess.run(
            ["bash", "-c", f"{shown.stdout}\n{asked}"], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == "0\n", command
    assert "complete -o default" in shown.stdout


def test_what_an_envoy_is_sent(caadmin: Caadmin, files: Path) -> None:
    """The same filter as the agent makes; and what it cannot decide is named."""
    (files / "policies" / "glob.yaml").write_text(
        POLICIES.replace("orders-read", "suffix").replace(
            "rules:", "rules:\n  - burgee: {condition: 'request.path.size() > 3'}"
        )
    )
    ran = caadmin("policy", "effective", "orders", "policies", "workloads.yaml", "-o", "json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert (found["spiffe_id"], found["namespace"], found["revision"]) == (ORDERS, "shop", None)
    assert found["policies"] == ["shop/suffix", "shop/orders-read"]
    assert found["resource"] == "burgee.http.policy+ask"
    assert [one["rule"] for one in found["asked"]] == ["shop/suffix#0"]
    exported = caadmin("policy", "export", "envoy", "orders", *GIVEN, "--ask").json
    assert found["filter"].pop("@type").endswith("http.rbac.v3.RBAC")
    assert found["filter"] == exported
    ran = caadmin("policy", "effective", ORDERS, *GIVEN, "--no-ask")
    assert (ran.code, "shop/suffix#0 is refused: " in ran.err) == (1, True)
    assert yaml.safe_load(ran.out)["resource"] == "burgee.http.policy"
    ran = caadmin("policy", "effective", "orders", *GIVEN, "--tcp", "-o", "json")
    assert ran.json["resource"] == "burgee.tcp.policy+ask"
    assert caadmin("policy", "effective", "orders", *GIVEN, "--jwt", "-o", "json").json["tokens"] == []
    ran = caadmin("policy", "effective", "spiffe://example.org/nobody", *GIVEN)
    assert (ran.code, "(TARGET)" in ran.err) == (2, True)


def test_graph(caadmin: Caadmin, files: Path) -> None:
    assert caadmin("policy", "graph", *GIVEN).out.startswith("<!doctype html>")
    assert caadmin("policy", "graph", *GIVEN, "-o", "dot").out.startswith("digraph policies {")
    ran = caadmin("policy", "graph", *GIVEN, "-o", "json", "--to", "graph.json")
    assert ran.out == "graph.json: 1 services, 1 edges\n"
    assert json.loads((files / "graph.json").read_text())["edges"][0]["caller"] == WEB
    assert caadmin("policy", "graph", *GIVEN, "--to", "no/where").code == 2


def test_replay_and_suggest(caadmin: Caadmin, files: Path) -> None:
    ran = caadmin("policy", "replay", "--log", "log", *GIVEN)
    assert (ran.code, ran.out) == (0, "of 5 recorded requests: 0 newly denied, 0 newly allowed\n")
    assert ran.err == "1 lines are no decisions, and were passed over\n"
    (files / "narrow.yaml").write_text(POLICIES.replace("/orders/*", "/orders/1"))
    ran = caadmin("policy", "replay", "--log", "log", "-f", "narrow.yaml", *GIVEN[2:], "--current", "policies")
    assert ran.code == 1
    assert "GET /orders/{*} (4)" in ran.out
    ran = caadmin("policy", "suggest", "--log", "log", "--workloads", "workloads.yaml")
    (made,) = parse(ran.out, "suggested").policies
    assert (made.id, len(made.rules or ())) == ("shop/suggested-orders", 1)
    ran = caadmin("policy", "suggest", "--log", "log", "--identifiers", "50", "-o", "json")
    assert ran.json["over_permission"]["exact_share"] == 1.0
    assert caadmin("policy", "suggest", "--log", "nowhere").code == 2


INTENTIONS = {"Kind": "service-intentions", "Name": "orders", "Sources": [{"Name": "web", "Action": "allow"}]}


def test_import(caadmin: Caadmin, files: Path) -> None:
    (files / "i.json").write_text(json.dumps(INTENTIONS))
    ran = caadmin("policy", "import", "consul", "i.json", "--trust-domain", "example.org", "--strict")
    assert (ran.code, ran.err) == (0, "")
    assert parse(ran.out, "imported").policies[0].id == "default/intentions-orders"
    peer: dict[str, Any] = {**INTENTIONS, "Sources": [{"Name": "web", "Action": "allow", "Peer": "p"}]}
    (files / "i.json").write_text(json.dumps(peer))
    ran = caadmin("policy", "import", "consul", "i.json")
    assert ran.code == 0
    assert ran.err.startswith("i.json:1: C01 ")
    ran = caadmin("policy", "import", "consul", "i.json", "--strict")
    assert (ran.code, ran.out) == (1, "")
    ran = caadmin("policy", "import", "consul", "i.json", "-o", "json")
    assert ran.json["losses"][0]["code"] == "C01"
    (files / "rbac.json").write_text(
        '{"rules": {"policies": {"p": {"permissions": [{"any": true}], "principals": [{"any": true}]}}}}'
    )
    ran = caadmin("policy", "import", "envoy-rbac", "rbac.json", "--namespace", "shop", "--spiffe-id", ORDERS)
    assert parse(ran.out, "imported").policies[0].id == "shop/rbac"
    (files / "rbac.json").write_text("{")
    assert caadmin("policy", "import", "envoy-rbac", "rbac.json").code == 2


def test_export(caadmin: Caadmin, files: Path) -> None:
    ran = caadmin("policy", "export", "envoy", "orders", *GIVEN)
    assert ran.code == 0
    assert "matcher" in ran.json
    ran = caadmin("policy", "export", "cedar", "orders", *GIVEN)
    assert ran.out.startswith('@id("shop/orders-read#0")\npermit')
    (files / "policies" / "orders.yaml").write_text(POLICIES + "    burgee: {condition: \"request.host == 'a'\"}\n")
    ran = caadmin("policy", "export", "cedar", "orders", *GIVEN)
    assert ran.code == 1
    assert "a CEL condition" in ran.err
    ran = caadmin("policy", "export", "envoy", "orders", *GIVEN)
    assert ran.code == 1
    assert "shop/orders-read#0 is refused" in ran.err
    assert caadmin("policy", "export", "envoy", "orders", *GIVEN, "--ask").code == 0
    assert caadmin("policy", "export", "envoy", "spiffe://example.org/nobody", *GIVEN).code == 2


def test_envoy_snippet(caadmin: Caadmin) -> None:
    ran = caadmin("policy", "envoy-snippet", "--agent-socket", "/run/a.sock", "--prefix", "gw1")
    assert ran.code == 0
    found = yaml.safe_load(ran.out)
    assert DECISION_HEADER in ran.out
    assert "gw1-" in ran.out
    assert [f["name"] for f in found["http_connection_manager"]["http_filters"]] == [
        "burgee.http.decision",
        "burgee.http.policy+ask",
        "burgee.http.ask",
    ]
    ran = caadmin(
        "policy", "envoy-snippet", "--tcp", "--no-ask", "-o", "json", "--spiffe-id", ORDERS, "--connections-last", "1h"
    )
    assert ran.json["tcp_proxy"] == {"max_downstream_connection_duration": "3600s"}
    assert ran.json["filters"][0]["name"] == f"burgee.tcp.policy/{ORDERS}"
