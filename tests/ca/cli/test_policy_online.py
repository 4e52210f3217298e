"""`caadmin policy` on a real server: plan, apply, and what was, is and shall be in the book."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.ca.cli.conftest import Caadmin, Ran
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until

ID = f"spiffe://{TRUST_DOMAIN}"
WORKLOAD = f"""
apiVersion: burgee.io/v1
kind: Workload
metadata: {{name: NAME, namespace: shop, labels: {{app: NAME}}}}
spec: {{spiffeId: "{ID}/ns/shop/sa/NAME"}}
"""
POLICY = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: NAME, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: orders}}}}
  rules:
  - from: [{{source: {{principals: ["{TRUST_DOMAIN}/ns/shop/sa/web"]}}}}]
    to: [{{operation: {{methods: ["GET"]}}}}]
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    slow = {"questions_per_second_per_caller": 4.0, "burst_seconds": 2.0}
    with pair(server={"policy": {"admins": [f"{ID}/boss"], "limits": slow}}) as made:
        yield made


@pytest.fixture
def files(live: Caadmin, tmp_path: Path) -> Iterator[Path]:
    """Two files in `p`, and the book as empty as it was."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "workloads.yaml").write_text(
        WORKLOAD.replace("NAME", "orders") + "---" + WORKLOAD.replace("NAME", "web")
    )
    (tmp_path / "p" / "orders.yaml").write_text(POLICY.replace("NAME", "orders"))
    yield tmp_path
    assert live("policy", "invariants", "set", "--clear", "--yes").code == 0
    assert live("policy", "rollback", "0", "--yes").code == 0


def changed(ran: Ran) -> dict[str, list[str]]:
    names = ("created", "changed", "pruned")
    return {n: [f"{o['kind']} {o['namespace']}/{o['name']}" for o in ran.json[n]] for n in names if ran.json[n]}


def test_plan_then_apply_then_nothing_to_do(live: Caadmin, files: Path) -> None:
    ran = live("policy", "plan", "p", "--owner", "shop")
    assert ran.code == 4, ran.err
    assert "+ AuthorizationPolicy shop/orders (p/orders.yaml:2)" in ran.out
    assert "3 created" in ran.out
    assert "+ newly allowed: " in ran.out
    assert f"to {ID}/ns/shop/sa/orders" in ran.out
    ran = live("policy", "apply", "p", "--owner", "shop", "--note", "first", "-o", "json")
    assert ran.code == 0, ran.err
    assert len(changed(ran)["created"]) == 3
    number = ran.json["applied_revision"]
    ran = live("policy", "plan", "p", "--owner", "shop")
    assert (ran.code, ran.out) == (0, "nothing to do: 3 objects are as they should be\n")
    listed = live("policy", "list", "-o", "json").json["items"]
    assert {(one["object"]["metadata"]["name"], one["owner"], one["revision"]) for one in listed} == {
        ("orders", "shop", number),
        ("web", "shop", number),
    }
    ran = live("policy", "apply", "p", "--owner", "shop")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, f"nothing was written; revision {number} stays")


def test_what_is_in_no_file_is_pruned_if_it_is_this_owners(live: Caadmin, files: Path) -> None:
    (files / "p" / "more.yaml").write_text(POLICY.replace("NAME", "more") + "---" + POLICY.replace("NAME", "most"))
    assert live("policy", "apply", "p", "--owner", "shop").code == 0
    (files / "others.yaml").write_text(POLICY.replace("NAME", "others"))
    assert live("policy", "apply", "others.yaml", "--owner", "others").code == 0
    (files / "p" / "more.yaml").unlink()
    assert live("policy", "plan", "p", "--owner", "shop").code == 0
    ran = live("policy", "plan", "p", "--owner", "shop", "--prune", "-o", "json")
    assert (ran.code, changed(ran)) == (
        4,
        {"pruned": ["AuthorizationPolicy shop/more", "AuthorizationPolicy shop/most"]},
    )
    ran = live("policy", "apply", "p", "--owner", "shop", "--prune")
    assert (ran.code, "NOT_CONFIRMED" in ran.err) == (1, True)
    assert "AuthorizationPolicy shop/most, which is deleted" in ran.err
    assert live("policy", "apply", "p", "--owner", "shop", "--prune", "--yes", "--dry-run").code == 0
    assert live("policy", "apply", "p", "--owner", "shop", "--prune", "--yes").code == 0
    names = [line.split()[2] for line in live("policy", "list", "--kind", "ap").out.splitlines()[1:]]
    assert names == ["orders", "others"]
    assert live("policy", "plan", "p", "--prune").code == 2


def test_a_missing_directory_prunes_nothing_by_itself(live: Caadmin, files: Path) -> None:
    assert live("policy", "apply", "p", "--owner", "shop").code == 0
    ran = live("policy", "apply", "p/orders.yaml", "--owner", "shop", "--prune", "--yes")
    assert (ran.code, "PRUNE_GUARD" in ran.err) == (1, True)
    assert "2 of the 3 objects" in ran.err
    ran = live("policy", "apply", "p/orders.yaml", "--owner", "shop", "--prune", "--yes", "--force", "-o", "json")
    assert (ran.code, len(changed(ran)["pruned"])) == (0, 2)


def test_what_another_owner_applied_is_taken_over_only_if_that_is_said(live: Caadmin, files: Path) -> None:
    assert live("policy", "apply", "p", "--owner", "shop").code == 0
    (files / "p" / "orders.yaml").write_text(POLICY.replace("NAME", "orders").replace("GET", "HEAD"))
    for owner in ([], ["--owner", "others"]):
        ran = live("policy", "apply", "p", *owner)
        assert (ran.code, "POLICY_OWNED" in ran.err) == (1, True)
    ran = live("policy", "apply", "p/orders.yaml", "--owner", "others", "--take-over", "--yes")
    assert (ran.code, "taken over from `shop`" in ran.out) == (0, True), ran.err
    assert live("policy", "list", "--owner", "others", "-o", "json").json["items"][0]["owner"] == "others"


def test_what_is_wrong_is_shown_where_it_stands(live: Caadmin, files: Path) -> None:
    (files / "p" / "orders.yaml").write_text(POLICY.replace("NAME", "orders").replace("methods", "metods"))
    ran = live("policy", "plan", "p")
    assert (ran.code, ran.out) == (2, "")
    assert "p/orders.yaml:9:" in ran.err
    (files / "p" / "orders.yaml").write_text(  # which only the server knows: no such provider, and no such host
        POLICY.replace("NAME", "orders")
        .replace("AuthorizationPolicy", "RequestAuthentication")
        .partition("  selector")[0]
        + '  jwtRules: [{issuer: "https://i", jwksUri: "https://elsewhere.example/keys"}]\n'
    )
    ran = live("policy", "plan", "p")
    assert ran.code == 2, ran.out
    assert "p/orders.yaml:6:" in ran.err
    assert "P204" in ran.err
    assert "(POLICY_INVALID)" in ran.err


def test_objects_one_by_one(live: Caadmin, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live("policy", "apply", "p").code == 0
    ran = live("policy", "get", "ap", "shop/orders")
    assert yaml.safe_load(ran.out) == yaml.safe_load(POLICY.replace("NAME", "orders"))
    assert live("policy", "get", "AuthorizationPolicy", "shop/orders", "-o", "json").json == yaml.safe_load(ran.out)
    assert live("policy", "get", "workloads", "shop/nobody").code == 3
    for wrong in (["nonsense", "shop/orders"], ["ap", "orders"]):
        assert live("policy", "get", *wrong).code == 2
    ran = live("policy", "delete", "ap", "shop/orders", "--dry-run")
    assert (ran.code, "- newly denied" in ran.out, "nothing was written" in ran.out) == (0, True, True)
    assert live("policy", "delete", "ap", "shop/orders").code == 1
    assert live("policy", "delete", "ap", "shop/orders", "--yes", "--note", "gone").code == 0
    assert live("policy", "get", "ap", "shop/orders").code == 3
    (newest,) = live("policy", "revisions", "list", "--limit", "1", "-o", "json").json["items"]
    assert newest["note"] == "gone"
    ran = live("policy", "revisions", "show", str(newest["number"]))
    assert "deleted  AuthorizationPolicy  shop       orders" in ran.out
    ran = live("policy", "revisions", "diff", str(newest["number"]))
    assert (ran.code, "- newly denied" in ran.out) == (1, True)
    before = newest["number"] - 1
    assert live("policy", "revisions", "diff", str(before), str(before)).code == 0
    ran = live("policy", "rollback", str(before), "--yes")
    assert (ran.code, "+ newly allowed" in ran.out) == (0, True), ran.err
    assert live("policy", "get", "ap", "shop/orders").code == 0
    assert live("policy", "rollback", "99999", "--yes").code == 3
    # All is as it was then, although other revisions lie between
    newest = live("policy", "revisions", "list", "--limit", "1", "-o", "json").json["items"]
    for number in (before, newest[0]["number"]):
        for options in ((), ("--dry-run",), ("--yes", "--note", "again")):
            ran = live("policy", "rollback", str(number), *options)
            words = f"nothing to do: everything is so already; revision {newest[0]['number']} stays\n"
            assert (ran.code, ran.out) == (0, words), ran.err
    ran = live("policy", "rollback", str(before), "-o", "json")
    assert (ran.code, ran.json["revision"], ran.json["changed"]) == (0, None, 0)
    assert live("policy", "revisions", "list", "--limit", "1", "-o", "json").json["items"] == newest


def test_standard_input_and_namespaces_that_are_left_out(
    live: Caadmin, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    class Stdin(io.StringIO):
        buffer = io.BytesIO(POLICY.replace("NAME", "orders").replace(", namespace: shop", "").encode())

    monkeypatch.setattr(sys, "stdin", Stdin())
    ran = live("policy", "apply", "-", "-n", "bank", "--yes")
    assert (ran.code, "AuthorizationPolicy bank/orders (-:2)" in ran.out) == (0, True), ran.err
    assert live("policy", "get", "ap", "bank/orders").code == 0


def test_a_directory_with_other_kinds(live: Caadmin, files: Path) -> None:
    (files / "p" / "app.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: orders}\n")
    for command in ("plan", "apply"):
        ran = live("policy", command, "p")
        assert (ran.code, "--ignore-others passes over them" in ran.err, "app.yaml:1:1" in ran.err) == (2, True, True)
    ran = live("policy", "plan", "p", "--ignore-others", "-o", "json")
    assert (ran.code, len(changed(ran)["created"])) == (4, 3), ran.err
    assert "objects of other kinds (1 Deployment) are passed over" in ran.err
    assert live("policy", "apply", "p", "--ignore-others").code == 0


def test_grants_of_more_than_one_page(live: Caadmin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ca.cli.policy_client.PAGE", 1)
    names = ["one", "three", "two"]
    for name in names:
        ran = live("policy", "grants", "set", name, "--spiffe-id", f"{ID}/x", "--role", "reader", "-n", "a")
        assert ran.code == 0, ran.err
    listed = live("policy", "grants", "list", "-o", "json").json
    assert [one["name"] for one in listed["items"]] == names
    ran = live("policy", "grants", "set", "two", "--spiffe-id", f"{ID}/y", "--role", "reader", "-n", "a")
    assert ran.code == 0, ran.err
    for name in names:
        assert live("policy", "grants", "delete", name, "--yes").code == 0


def test_grants_and_invariants(live: Caadmin, files: Path) -> None:
    assert live("policy", "apply", "p").code == 0
    ran = live("policy", "grants", "set", "web", "--spiffe-id", f"{ID}/web", "--role", "author", "-n", "shop")
    assert ran.code == 0, ran.err
    ran = live("policy", "grants", "set", "web", "--spiffe-id", f"{ID}/web", "--role", "admin", "--dry-run")
    assert f"`{ID}/web` would gain everything, as an admin" in ran.out, ran.err
    ran = live(
        "policy", "grants", "set", "web", "--spiffe-id", f"{ID}/web", "--role", "reader", "-n", "shop", "-n", "a"
    )
    assert ran.code == 0, ran.err
    assert live("policy", "grants", "list").out.splitlines()[1].split() == ["web", "reader", f"{ID}/web", "shop,", "a"]
    assert live("policy", "grants", "delete", "web", "--yes").code == 0
    assert live("policy", "grants", "list", "-o", "json").json == {"items": []}
    assert live("policy", "grants", "delete", "web", "--yes").code == 3
    text = "apiVersion: burgee.io/v1\nkind: Invariant\nmetadata: {name: a}\nspec: {never: shop/web -> shop/orders}\n"
    (files / "i.yaml").write_text(text)
    ran = live("policy", "invariants", "set", "i.yaml")
    assert (ran.code, "(INVARIANT_BROKEN)" in ran.err) == (1, True)
    (files / "i.yaml").write_text(text.replace("shop/web", "shop/other"))
    assert live("policy", "invariants", "set", "i.yaml", "--dry-run").code == 0
    assert live("policy", "invariants", "get").out == ""
    assert live("policy", "invariants", "set", "i.yaml").code == 0
    assert live("policy", "invariants", "get").out == text.replace("shop/web", "shop/other")
    wider = POLICY.replace("NAME", "wider").replace('"pair.test/ns/shop/sa/web"', '"*"')
    (files / "p" / "wider.yaml").write_text(wider)
    ran = live("policy", "plan", "p")
    assert (ran.code, "(INVARIANT_BROKEN)" in ran.err, "shop/wider#0" in ran.err) == (1, True, True), ran.err
    (files / "i.yaml").write_text("apiVersion: burgee.io/v1\nkind: Invariant\nmetadata: {name: a}\nspec: {nver: x}\n")
    ran = live("policy", "invariants", "set", "i.yaml", "--yes")
    assert (ran.code, "i.yaml:4:" in ran.err) == (2, True), ran.err
    (files / "p" / "wider.yaml").unlink()


def test_what_the_server_has_is_looked_at_where_no_files_are_named(live: Caadmin, files: Path) -> None:
    assert live("policy", "apply", "p").code == 0
    assert live("policy", "lint", "-o", "json").json["findings"] == []
    (files / "never.yaml").write_text(POLICY.replace("NAME", "never").replace("app: orders", "app: nobody"))
    ran = live("policy", "plan", "never.yaml")
    assert "never.yaml:2: " in ran.out.partition("1 created")[2]
    assert live("policy", "apply", "never.yaml").code == 0
    ran = live("policy", "lint")
    assert (ran.code, ran.out.startswith("shop/never: ")) == (1, True), ran.out
    assert live("policy", "graph", "--to", "g.html").code == 0
    assert (files / "g.html").read_text().startswith("<!doctype html>")
    services = live("policy", "graph", "-o", "json").json["services"]
    assert f"{ID}/ns/shop/sa/orders" in str(services)
    assert live("policy", "graph", "-o", "dot").out.startswith("digraph")

    (files / "wider.yaml").write_text(POLICY.replace("NAME", "orders").replace('"GET"', '"GET", "POST"'))
    ran = live("policy", "diff", "-f", "wider.yaml")
    assert (ran.code, "+ newly allowed" in ran.out, "POST" in ran.out) == (1, True, True), ran.err
    assert live("policy", "diff", "-f", "p").code == live("policy", "diff", "p").code == 0
    assert live("policy", "lint", "p", "--trust-domain", "pair.test").out == "nothing found\n"  # without the server
    caller = ["--from", f"{ID}/ns/shop/sa/web", "--method", "POST", "--path", "/x?y"]
    ran = live("policy", "explain", "orders", *caller)
    assert (ran.code, "method POST not in [GET]" in ran.out) == (0, True), ran.err
    found = live("policy", "explain", f"{ID}/ns/shop/sa/orders", *caller, "-o", "json").json
    assert (found["allowed"], found["revision"] > 0) == (False, True)
    ran = live("policy", "explain", "nobody")
    assert (ran.code, "(TARGET)" in ran.err) == (2, True)
    for wrong in ([], ["orders", "--decision", "x"]):
        assert live("policy", "explain", *wrong).code == 2
    assert live("policy", "lint", "--workloads", "p").code == 2
    sent = live("policy", "effective", "orders", "-o", "json")
    assert (sent.code, sent.json["revision"], sent.json["asked"]) == (0, found["revision"], []), sent.err
    assert "shop/orders" in sent.json["policies"]


def test_the_servers_own_decisions(live: Caadmin, running: Pair, files: Path) -> None:
    from ca.cli.policy_client import Api

    assert live("policy", "apply", "p").code == 0
    api = Api(running.admin_socket)
    asked = {"principal": f"{ID}/ns/shop/sa/web", "method": "GET", "path": "/x"}
    made = api.call("POST", "/evaluate", {"target": f"{ID}/ns/shop/sa/orders", "request": asked}).json
    api.close()
    ran = live("policy", "decisions", "--id", made["id"], "-o", "json")
    assert [one["policy"] for one in ran.json["items"]] == ["shop/orders"]
    assert "allowed  pair.test/ns/shop/sa/web" in live("policy", "decisions", "--allowed", "--source", "evaluate").out
    assert live("policy", "decisions", "--denied", "--since", "2020-01-01", "--id", made["id"]).out == "no decisions\n"
    ran = live("policy", "explain", "--decision", made["id"])
    assert (ran.code, "allowed: " in ran.out, made["id"] in ran.out) == (0, True, True), ran.err

    # Nobody did what was only asked about
    ran = live("policy", "suggest")
    assert ("AuthorizationPolicy" in ran.out, "was asked about, and not done" in ran.out) == (False, True)
    (files / "none.yaml").write_text(POLICY.replace("NAME", "orders").replace("GET", "PUT"))
    ran = live("policy", "replay", "none.yaml")
    assert (ran.code, "were only asked about" in ran.out) == (0, True), ran.out + ran.err


def test_what_is_no_server_is_said_to_be_none(live: Caadmin, running: Pair, tmp_path: Path) -> None:
    ran = live("policy", "list", "--socket", str(running.agent_admin_socket))
    assert ran.code == 1
    assert "that is the agent's admin socket; --socket wants the server's admin socket" in ran.err


def test_a_server_that_breaks_off_or_answers_nonsense(live: Caadmin, tmp_path: Path) -> None:
    import shutil
    import socket
    import tempfile
    import threading

    directory = Path(tempfile.mkdtemp(prefix="bg-"))
    answers = [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"HTTP/1.1 500 X\r\ncontent-length: 3\r\n\r\n\x1b[m",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[]",
    ]
    given: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(given[0])

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "s"))
        listener.listen()
        threading.Thread(target=serve, daemon=True).start()
        for answer in answers:
            given[:] = [answer]
            ran = live("policy", "list", "--socket", str(directory / "s"))
            assert (ran.code, ran.out, "Traceback" in ran.err, "\x1b" in ran.err) == (1, "", False, False)
            assert "(UNREACHABLE)" in ran.err or "(SERVER_ANSWER)" in ran.err, answer
        listener.shutdown(socket.SHUT_RDWR)
    shutil.rmtree(directory)


def test_thousands_are_one_revision(live: Caadmin, files: Path) -> None:
    many = "---".join(POLICY.replace("NAME", f"p-{number}") for number in range(600))
    (files / "many.yaml").write_text(many)
    ran = live("policy", "apply", "many.yaml", "--owner", "many", "-o", "json")
    assert (ran.code, len(ran.json["created"])) == (0, 600), ran.err
    assert live("policy", "plan", "many.yaml", "--owner", "many").code == 0
    assert len(live("policy", "list", "--owner", "many", "-o", "json").json["items"]) == 600


def test_completion(live: Caadmin, files: Path) -> None:
    from types import SimpleNamespace
    from typing import Any

    from ca.cli import policy_names

    assert live("policy", "apply", "p", "--note", "n").code == 0
    context: Any = SimpleNamespace(params={"kind": "wl", "socket": None})
    assert policy_names.complete_name(context, "shop/o") == ["shop/orders"]
    assert policy_names.complete_kind("auth") == ["AuthorizationPolicy"]
    assert policy_names.complete_revision(context, "")[0][1].endswith(" n")
    context.params["socket"] = Path("/nowhere")
    assert policy_names.complete_name(context, "") == policy_names.complete_grant(context, "") == []


def test_over_the_network(live: Caadmin, running: Pair, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [running.create_entry(path) for path in ("/boss", "/clerk")]
    until("both are minted", lambda: live("svid", "fetch", "--write", "f").code == 0)
    for name in ("boss", "clerk"):
        assert live("svid", "mint", "x509", "--spiffe-id", f"{ID}/{name}", "--write", name).code == 0
    monkeypatch.setenv("BURGEE_ADMIN_SOCKET", "/nowhere/admin.sock")
    server = ("--server", f"127.0.0.1:{running.port}", "--svid-dir")
    assert live("policy", "apply", "p", "--owner", "shop", *server, "boss", "--yes").code == 0
    assert live("policy", "plan", "p", "--owner", "shop", *server, "boss").code == 0  # it waits as long as it is told
    ran = live(
        "policy", "grants", "set", "c", "--spiffe-id", f"{ID}/clerk", "--role", "author", "-n", "shop", *server, "boss"
    )
    assert ran.code == 0, ran.err
    (files / "p" / "orders.yaml").write_text(POLICY.replace("NAME", "orders").replace("GET", "PUT"))
    ran = live("policy", "plan", "p", "--owner", "shop", *server, "clerk")  # workloads do not change, which it may not
    assert (ran.code, "~ AuthorizationPolicy shop/orders" in ran.out) == (4, True), ran.err
    assert live("policy", "grants", "delete", "c", "--yes", *server, "boss").code == 0
    for command in (["plan", "p"], ["list"], ["rollout"]):
        ran = live("policy", *command, *server, "clerk")
        assert (ran.code, "POLICY_FORBIDDEN" in ran.err, "a grant" in ran.err) == (3, True, True), ran.err
    ran = live("policy", "list")
    assert (ran.code, "(UNREACHABLE)" in ran.err) == (1, True)
    ran = live("policy", "list", "--server", "127.0.0.1:1", "--svid-dir", "boss")
    assert (ran.code, "(SERVER_UNREACHABLE)" in ran.err) == (1, True)
    monkeypatch.setenv("BURGEE_ADMIN_SOCKET", str(running.admin_socket))
    for one in made:
        running.delete_entry(one)
