"""Every route of policy, tried by every kind of caller: who may, who may not, and which grant was missing."""

from __future__ import annotations

from typing import Any

import pytest

from ca.api.tiers import GRANTED, TIERS
from tests.ca.api.policy.conftest import ID, Callers, policy, workload
from tests.ca.api.policy.http import Answer, Client
from tests.support.server import RunningServer

NAMES = ("local", "first", "admin", "author", "reader", "all-reader", "nobody", "agent", "anonymous")
TARGET = f"{ID}/ns/shop/sa/orders"

_ANY = "yes yes yes yes yes yes no no TIER"
_READ_SHOP = "yes yes yes yes yes yes no no TIER"
_READ_BANK = "yes yes yes no no yes no no TIER"
_WRITE_SHOP = "yes yes yes yes no no no no TIER"
_ADMIN = "yes yes yes no no no no no TIER"
_READ_ALL = "yes yes yes no no yes no no TIER"
_LET_IN = "yes yes yes yes yes yes yes yes TIER"

# Route → what is sent → who may, in the order of NAMES. `no` is a refusal that names a grant.
CASES: list[tuple[str, str, Any, str]] = [
    ("GET", "/authorization-policies", None, _ANY),
    ("GET", "/authorization-policies/shop", None, _READ_SHOP),
    ("GET", "/authorization-policies/bank", None, _READ_BANK),
    ("GET", "/authorization-policies/istio-system", None, _READ_BANK),
    ("GET", "/authorization-policies/shop/orders", None, _READ_SHOP),
    ("GET", "/authorization-policies/bank/none", None, _READ_BANK),
    ("PUT", "/authorization-policies/shop/orders", policy(), _WRITE_SHOP),
    ("PUT", "/request-authentications/shop/orders", {}, _WRITE_SHOP),
    ("PUT", "/peer-authentications/shop/orders", {}, _WRITE_SHOP),
    ("PUT", "/authorization-policies/bank/orders", policy(namespace="bank"), _ADMIN),
    ("PUT", "/authorization-policies/istio-system/orders", policy(namespace="istio-system"), _ADMIN),
    ("PUT", "/peer-authentications/istio-system/orders", {}, _ADMIN),
    ("PUT", "/workloads/shop/orders", workload(), _ADMIN),
    ("PATCH", "/authorization-policies/shop/orders", {}, _WRITE_SHOP),
    ("PATCH", "/workloads/shop/orders", {}, _ADMIN),
    ("DELETE", "/authorization-policies/shop/orders", None, _WRITE_SHOP),
    ("DELETE", "/authorization-policies/bank/none", None, _ADMIN),
    ("DELETE", "/workloads/shop/orders", None, _ADMIN),
    ("POST", "/apply", {"changes": [{"object": policy("new")}]}, _WRITE_SHOP),
    ("POST", "/apply?dry_run=true", {"changes": [{"object": policy("new")}]}, _WRITE_SHOP),
    ("POST", "/apply", {"changes": [{"object": policy("new")}, {"object": workload("new")}]}, _ADMIN),
    ("POST", "/apply", {"changes": [{"object": policy("new", "bank")}]}, _ADMIN),
    ("GET", "/revisions", None, _ANY),
    ("GET", "/revisions/1", None, _ANY),
    ("GET", "/revisions/1/diff", None, _ANY),
    ("POST", "/revisions/0/rollback?dry_run=true", {}, _ADMIN),
    ("POST", "/evaluate", {"target": TARGET}, _READ_SHOP),
    ("POST", "/evaluate", {"target": f"{ID}/ns/bank/sa/ledger"}, _READ_BANK),
    ("POST", "/evaluate", {"target": f"{ID}/unknown"}, _READ_ALL),
    ("POST", "/explain", {"target": TARGET}, _READ_SHOP),
    ("POST", "/explain", {"target": f"{ID}/unknown"}, _READ_ALL),
    ("POST", "/explain", {"target": f"{ID}/ns/bank/sa/ledger"}, _READ_BANK),
    ("GET", "/analyses/lint", None, _ANY),
    ("GET", "/analyses/graph", None, _ANY),
    ("GET", "/analyses/diff?before=0", None, _ANY),
    ("GET", "/mesh", None, _ANY),
    ("GET", "/decisions", None, _ANY),
    ("GET", "/rollout", None, _ANY),
    ("GET", "/watch?wait_seconds=0", None, _ANY),
    ("GET", "/grants", None, _ADMIN),
    ("GET", "/grants?limit=1&cursor=x", None, _ADMIN),
    ("GET", "/grants/admin", None, _ADMIN),
    ("PUT", "/grants/mine", {"spiffe_id": f"{ID}/author", "role": "admin"}, _ADMIN),
    ("PUT", "/grants/mine?dry_run=true", {"spiffe_id": f"{ID}/author", "role": "admin"}, _ADMIN),
    ("DELETE", "/grants/none", None, _ADMIN),
    ("DELETE", "/grants/reader?dry_run=true", None, _ADMIN),
    ("GET", "/invariants", None, _ADMIN),
    ("PUT", "/invariants?dry_run=true", {"text": ""}, _ADMIN),
    ("GET", "/openapi.json", None, _LET_IN),
]  # fmt: skip


async def caller(callers: Callers, server: RunningServer, name: str) -> Client:
    if name == "agent":
        return Client(server, (await server.agent())[0])
    return await callers(name)


async def fill(local: Client) -> None:
    objects = [
        workload(),
        workload("ledger", "bank"),
        policy(),
        policy(namespace="bank"),
        policy("mesh", "istio-system"),
    ]
    assert (await local("POST", "/apply", {"changes": [{"object": one} for one in objects]})).status == 200


def verdict(answer: Answer, name: str) -> str:
    """`yes` for whatever is no refusal of rights; a refusal must name a grant."""
    if answer.status != 403:
        assert answer.status < 500, answer.data
        return "yes"
    if answer.reason != "POLICY_FORBIDDEN":
        return answer.reason
    assert "it needs a grant" in answer.body["detail"], name
    return "no"


@pytest.mark.parametrize("name", NAMES)
async def test_matrix(server: RunningServer, callers: Callers, local: Client, name: str) -> None:
    for known in ("admin", "author", "reader", "all-reader"):
        await callers(known)
    await fill(local)
    call = await caller(callers, server, name)
    expected, found = {}, {}
    for verb, path, body, row in CASES:
        media = "application/merge-patch+json" if verb == "PATCH" else "application/json"
        answer = await call(verb, path, body, media=media)
        asked = f"{verb} {path} {str(body)[:60]}"
        found[asked] = verdict(answer, name)
        expected[asked] = row.split()[NAMES.index(name)]
    assert found == expected


def test_every_route_is_tried() -> None:
    granted = {row for row, tier in TIERS.items() if tier == GRANTED and row.partition(" ")[2].startswith("/v1/policy")}
    tried = set()
    for verb, path, _, _ in CASES:
        steps = path.partition("?")[0].split("/")[1:]
        if steps[0] in ("authorization-policies", "request-authentications", "peer-authentications", "workloads"):
            steps = ["{kind}", "{namespace}", "{name}"][: len(steps)]
        elif steps[0] == "revisions" and len(steps) > 1:
            steps[1] = "{number}"
        elif steps[0] == "grants" and len(steps) > 1:
            steps[1] = "{name}"
        tried.add(f"{verb} /v1/policy/{'/'.join(steps)}")
    assert tried == granted


async def test_nobody_learns_of_what_it_may_not_read(callers: Callers, local: Client) -> None:
    await fill(local)
    for name in ("reader", "author"):
        call = await callers(name)
        listed = (await call("GET", "/authorization-policies")).body["items"]
        assert {item["object"]["metadata"]["namespace"] for item in listed} == {"shop"}
        (changed,) = [one for one in (await call("GET", "/revisions/1")).body["changes"] if one["kind"] != "Workload"]
        assert changed["namespace"] == "shop"
        graph = (await call("GET", "/analyses/graph")).body["graph"]
        assert [service["namespace"] for service in graph["services"]] == ["shop"]
        assert "bank" not in str((await call("GET", "/analyses/diff?before=0")).body)
        there, missing = f"{ID}/ns/bank/sa/ledger", f"{ID}/ns/bank/sa/nothing"
        told = [(await call("POST", "/explain", {"target": target})).data for target in (there, missing)]
        assert told[0].replace(b"ledger", b"nothing") == told[1]
        there_too, gone = [await call("GET", f"/authorization-policies/bank/{name}") for name in ("orders", "nope")]
        assert there_too.data == gone.data


async def test_a_batch_with_one_change_that_is_forbidden_changes_nothing(callers: Callers, local: Client) -> None:
    author = await callers("author")
    changes = [{"object": policy("mine")}, {"object": policy("theirs", "bank")}]
    refused = await author("POST", "/apply", {"changes": changes})
    assert (refused.status, refused.reason) == (403, "POLICY_FORBIDDEN")
    assert "a grant as `author` for namespace `bank`" in refused.body["detail"]
    assert (await local("GET", "/authorization-policies")).body["items"] == []
    assert (await local("GET", "/revisions")).body["items"] == []


async def test_rights_end_with_the_grant_and_with_the_agent(
    server: RunningServer, callers: Callers, local: Client
) -> None:
    author = await callers("author")
    assert (await author("GET", "/authorization-policies/shop")).status == 200
    grant = await local("GET", "/grants/author")
    assert (await local("DELETE", "/grants/author", headers={"If-Match": grant.headers["etag"]})).status == 200
    assert (await author("GET", "/authorization-policies/shop")).reason == "POLICY_FORBIDDEN"

    agent, _ = await server.agent()
    await local("PUT", "/grants/agents", {"spiffe_id": f"{ID}/spire/agent/*", "role": "reader", "namespaces": ["*"]})
    call = Client(server, agent)
    assert (await call("GET", "/revisions")).status == 200
    from ca.proto.spire import server_agent_pb2
    from tests.support.server import spiffe_id

    await server.local.agents.BanAgent(server_agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    refused = await call("GET", "/revisions")
    assert (refused.status, refused.reason) == (403, "AGENT_BANNED")


async def test_refusals_are_on_record(server: RunningServer, callers: Callers) -> None:
    reader = await callers("reader")
    assert (await reader("PUT", "/authorization-policies/shop/x", policy("x"))).status == 403
    assert (await Client(server, anonymous=True)("GET", "/grants")).status == 403
    from ca.proto.burgee import admin_pb2

    pages = server.local.admin.ListAudit(admin_pb2.ListAuditRequest(), timeout=10)
    records = [record async for page in pages for record in page.records]
    found = {(record.actor, record.call, record.code, record.reason) for record in records}
    assert (
        f"{ID}/reader",
        "PUT /v1/policy/{kind}/{namespace}/{name}",
        "PermissionDenied",
        "POLICY_FORBIDDEN",
    ) in found
    assert ("anonymous", "GET /v1/policy/grants", "PermissionDenied", "TIER") in found
