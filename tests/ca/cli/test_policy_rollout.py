"""From `caadmin policy apply` to a real Envoy below a real agent, and from its refusals back to the rule."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policy.envoy import Proxy
from policy.ext_authz_wire import DECISION_HEADER
from tests.ca.cli.conftest import Caadmin
from tests.support.pair import TRUST_DOMAIN, Pair, pair, until
from tests.support.policy_proxy import PolicyProxy

pytestmark = pytest.mark.xdist_group("policy-rollout")
ORDERS = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/orders"
CALLER = "example.org/caller"
FILES = f"""
apiVersion: burgee.io/v1
kind: Workload
metadata: {{name: orders, namespace: shop}}
spec: {{spiffeId: "{ORDERS}", normalized: true}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: orders, namespace: shop}}
spec:
  rules:
  - from: [{{source: {{principals: ["{CALLER}"]}}}}]
    to: [{{operation: {{methods: ["GET"], paths: ["/orders/*"]}}}}]
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Pair]:
    aliases = {"trust_domain_aliases": ["example.org"]}
    with pair(server={"policy": aliases}) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(running: Pair) -> Iterator[PolicyProxy]:
    made = PolicyProxy("front", running.home / "front", running.workload_socket, beside=Proxy(ext_authz=True))
    running.create_entry("/ns/shop/sa/orders", made.envoy.selector)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def told(proxy: PolicyProxy, path: str) -> str:
    """The id of the decision, as the client hears it."""
    with proxy.connect((f"spiffe://{CALLER}",)) as stream, stream.makefile("rb") as reader:
        stream.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        head = reader.read().decode().lower()
    return next(iter(re.findall(rf"^{DECISION_HEADER}: (\S+)", head, re.M)), "")


def test_the_whole_loop(live: Caadmin, running: Pair, proxy: PolicyProxy, tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(FILES)
    assert live("policy", "apply", "shop.yaml", "--owner", "shop").code == 0
    ran = live("policy", "rollout", "--wait", "--timeout", "60s", "-o", "json")
    assert ran.code == 0, ran.err
    assert ran.json["complete"]
    assert {(p["proxy"], p["spiffe_id"], p["revision"], p["state"]) for p in ran.json["proxies"]} == {
        ("front", ORDERS, 1, "acked")
    }
    assert proxy.status("/orders/7") == 200  # at once: it has said that it has it
    assert proxy.status("/admin") == 403

    # What the client was told leads to the rule, by the revision that decided
    name = told(proxy, "/admin")
    assert name
    until("the log has it", lambda: live("policy", "explain", "--decision", name).code == 0)
    (tmp_path / "shop.yaml").write_text(FILES.replace("/orders/*", "*"))
    assert live("policy", "apply", "shop.yaml", "--owner", "shop").code == 0
    ran = live("policy", "explain", "--decision", name)
    assert "ALLOW shop/orders#0" in ran.out
    assert "path /admin not in [/orders/*]" in ran.out
    assert "Decided by  pushed" in ran.out
    assert live("policy", "explain", "--decision", name, "-o", "json").json["record"]["revision"] == 1
    ran = live("policy", "explain", "orders", "--from", f"spiffe://{CALLER}", "--path", "/admin")
    assert ran.out.startswith("allowed: "), ran.err
    assert live("policy", "explain", "--decision", "nobody-1").code == 3

    # Another namespace's policy is nothing to this agent, which is current all the same
    assert live("policy", "rollout", "--wait").code == 0
    other = FILES.partition("---")[2].replace("namespace: shop", "namespace: bank")
    (tmp_path / "bank.yaml").write_text(other)
    assert live("policy", "apply", "bank.yaml", "--owner", "bank").code == 0
    ran = live("policy", "rollout", "--wait")
    assert ran.code == 0, ran.err
    agent = re.search(rf"^spiffe://{TRUST_DOMAIN}/spire/agent/\S+ +current +2 +2$", ran.out, re.M)
    assert agent, ran.out
    assert re.search(rf"^front +\d+ +{ORDERS} +burgee\.http\S* +2 +acked +yes$", ran.out, re.M), ran.out
    assert proxy.status("/admin") == 200


def test_decisions_of_the_proxies_of_this_node(
    live: Caadmin, running: Pair, proxy: PolicyProxy, tmp_path: Path
) -> None:
    (tmp_path / "shop.yaml").write_text(FILES)
    assert live("policy", "apply", "shop.yaml", "--owner", "shop", "-o", "json").code == 0
    assert live("policy", "rollout", "--wait").code == 0
    watching = [sys.executable, "-m", "ca.cli.caadmin", "policy", "decisions", "--agent", "--follow", "--denied"]
    watching += ["--count", "2", "--agent-socket", str(running.agent_admin_socket), "-o", "jsonl"]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as followed:
        assert followed.stdout is not None
        while followed.poll() is None:
            proxy.get("/admin")
            until("it ends or goes on", lambda: followed.poll() is not None or True, every=0.2)
        seen = [json.loads(line) for line in followed.stdout]
    assert followed.returncode == 0
    assert [(one["target"], one["allowed"], one["path"]) for one in seen] == [(ORDERS, False, "/admin")] * 2
    assert proxy.status("/orders/1") == 200
    ran = until(
        "the log has it",
        lambda: r if (r := live("policy", "decisions", "--agent", "--allowed", "-o", "jsonl")).out else None,
    )
    assert json.loads(ran.out.splitlines()[0])["policy"] == "shop/orders"
    ran = live("policy", "decisions", "--agent", "--denied", "--target", ORDERS)
    assert re.search(rf"denied +{CALLER} +{ORDERS.removeprefix('spiffe://')} +GET /admin", ran.out), ran.out

    # What was decided can be decided again: as it would be without the rule, and as the narrowest policy would have it
    (tmp_path / "log").write_text(live("policy", "decisions", "--agent", "-o", "jsonl").out)
    (tmp_path / "none.yaml").write_text(FILES.replace("/orders/*", "/nothing"))
    ran = live("policy", "replay", "--log", "log", "-f", "none.yaml", "--online")
    assert (ran.code, "newly denied" in ran.out.lower()) == (1, True), ran.out
    ran = live("policy", "replay", "--agent", "-f", "none.yaml")
    assert (ran.code, "newly denied" in ran.out.lower()) == (1, True), ran.err
    ran = live("policy", "suggest", "--agent")
    assert "AuthorizationPolicy" in ran.out, ran.err


def test_what_a_proxy_refuses_is_told_in_its_words(live: Caadmin, monkeypatch: pytest.MonkeyPatch) -> None:
    from ca.cli import policy_online_views

    agent = {"agent": "a", "connected": True, "state": "current", "sent": 2, "revision": 2, "error": "", "at": None}
    proxy = {
        "agent": "a",
        "agent_state": "current",
        "current": False,
        "proxy": "front",
        "pid": 1,
        "spiffe_id": ORDERS,
        "resource": "burgee.http.policy",
        "revision": 2,
        "state": "nacked",
        "detail": "no such extension",
        "unlogged": True,
        "in_force": 1,
    }
    found: dict[str, Any] = {"revision": 2, "pushed": True, "agents": [agent], "proxies": [proxy]}

    class Told:
        def get(self, path: str) -> object:
            return found

        def __enter__(self) -> Told:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(policy_online_views, "policy_api", lambda _: Told())
    ran = live("policy", "rollout", "--wait")
    assert (ran.code, "(POLICY_NACKED)" in ran.err) == (1, True)
    said = "revision 1 is in force still: no such extension"
    assert said in ran.out
    assert f"takes over revision 2: proxy front (burgee.http.policy): {said}" in ran.err
    proxy["in_force"] = None
    ran = live("policy", "rollout", "--wait")
    assert "what it had before is in force still, if anything: no such extension" in ran.err
    assert "unlogged" in ran.out
    proxy["state"] = "sent"
    ran = live("policy", "rollout", "--wait", "--timeout", "1s")
    assert (ran.code, "(ROLLOUT_TIMEOUT)" in ran.err) == (1, True)
    proxy |= {"state": "acked", "revision": 1}  # it has an older one than its agent
    assert live("policy", "rollout", "--wait", "--timeout", "1s").code == 1
    found["agents"] = []  # which only those see who may read everything
    proxy |= {"agent_state": "behind"}
    assert live("policy", "rollout", "--wait", "--timeout", "1s").code == 1
    found["agents"] = [agent]
    agent |= {"state": "away"}  # who is not there is sent it when it comes
    proxy |= {"agent_state": "away"}
    assert live("policy", "rollout", "--wait", "--timeout", "1s").code == 0
    agent |= {"state": "failed", "error": "cannot be read"}
    assert "cannot be read" in live("policy", "rollout", "--wait").err


def test_watch(live: Caadmin, running: Pair, tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(FILES)
    (tmp_path / "wide.yaml").write_text(FILES.replace("/orders/*", "*"))
    assert live("policy", "apply", "shop.yaml", "--owner", "shop").code in (0, 1)
    before = live("policy", "plan", "shop.yaml", "-o", "json", "--owner", "shop").json["revision"]
    for file in ("wide.yaml", "shop.yaml"):
        assert live("policy", "apply", file, "--owner", "shop", "--note", file).code in (0, 1)
    assert live("policy", "apply", "wide.yaml", "--owner", "shop", "--note", "why").code == 0
    ran = live("policy", "watch", "--after", str(before), "--count", "1")
    assert ran.code == 0
    assert f"revision {before + 1}" in ran.out
    assert "  ~ AuthorizationPolicy shop/orders" in ran.out
    watching = [sys.executable, "-m", "ca.cli.caadmin", "policy", "watch", "-o", "json"]
    watching += ["--socket", str(running.admin_socket), "--after", str(before)]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watched:
        assert watched.stdout is not None
        assert json.loads(watched.stdout.readline())["number"] == before + 1
        watched.send_signal(2)  # Ctrl-C
        _, err = watched.communicate(timeout=30)
    assert (watched.returncode, err) == (0, "")
