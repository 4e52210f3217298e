"""AuthZEN over HTTP: the specification's statuses and headers, and nobody asks about others' workloads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ca.api.policy.conftest import ID, Callers, policy, workload
from tests.ca.api.policy.http import Answer, Client

TARGET, BANK = f"{ID}/ns/shop/sa/orders", f"{ID}/ns/bank/sa/ledger"
WEB = f"{ID}/web"


def entity(id: str = "", kind: str = "workload", **properties: Any) -> dict[str, Any]:
    return {"type": kind, **({"id": id} if id else {}), **({"properties": properties} if properties else {})}


def asking(method: str = "GET", *, subject: str = WEB, target: str = TARGET, **more: Any) -> dict[str, Any]:
    return {"subject": entity(subject), "action": {"name": method}, "resource": entity(target), **more}


async def post(client: Client, path: str, body: Any = None, **more: Any) -> Answer:
    return await client("POST", f"//access/v1/{path}", body, **more)


@pytest.fixture
async def filled(local: Client) -> Client:
    rules = [{"from": [{"source": {"principals": ["example.org/web"]}}], "to": [{"operation": {"methods": ["GET"]}}]}]
    bank = policy("ledger", "bank", rules=rules)
    objects = [workload(), workload("ledger", "bank"), policy(rules=rules), bank]
    assert (await local("POST", "/apply", {"changes": [{"object": one} for one in objects]})).status == 200
    return local


async def test_an_evaluation_is_answered_whatever_it_decides(filled: Client) -> None:
    allowed = await post(filled, "evaluation", asking())
    assert (allowed.status, allowed.body["decision"]) == (200, True)
    assert allowed.headers["content-type"] == "application/json"
    assert allowed.body["context"]["policy"] == "shop/orders"
    denied = await post(filled, "evaluation", asking("POST"))
    assert (denied.status, denied.body["decision"], denied.body["context"]["reason"]) == (200, False, "NOTHING_ALLOWS")
    record = (await filled("GET", f"/decisions?id={denied.body['context']['id']}")).body
    assert (record["items"][0]["source"], record["items"][0]["allowed"]) == ("authzen", False)
    explained = await filled("POST", "/explain", {"decision": denied.body["context"]["id"]})
    assert (explained.status, explained.body["explanation"]["nearest"][0]["policy"]) == (200, "shop/orders")
    for unknown in (asking(target=f"{ID}/nobody"), {**asking(), "subject": entity("alice", "user")}):
        answer = await post(filled, "evaluation", unknown)
        assert (answer.status, answer.body["decision"]) == (200, False)


async def test_errors_are_a_status_and_a_message(filled: Client) -> None:
    for sent in (
        {"raw": b""},
        {"raw": b"{"},
        {"raw": b"[]"},
        {"raw": b"\xff"},
        {"raw": b"{}", "media": "text/plain"},
        {"raw": b"{}", "media": "application/x-www-form-urlencoded"},
        {"body": {"subject": {}}},
        {"body": {**asking(), "subject": {"type": 1, "id": "x"}}},
        {"body": {**asking(), "resource": entity(TARGET, path=1)}},
        {"raw": b'{"subject":' + b"[" * 100_000},
    ):
        for path in ("evaluation", "evaluations", "search/subject", "search/resource", "search/action"):
            answer = await post(filled, path, headers={"X-Request-ID": "my-id"}, **sent)  # type: ignore[arg-type]
            assert answer.status == 400, (sent, path, answer)
            assert answer.headers["content-type"].startswith("text/plain")
            assert answer.headers["x-request-id"] == "my-id"
            assert answer.data


async def test_an_id_of_a_request_comes_back_only_if_there_was_one(filled: Client) -> None:
    for id in ("bfe9eb29", "a long one, " * 500):
        answer = await post(filled, "evaluation", asking(), headers={"X-Request-ID": id.strip()})
        assert answer.headers["x-request-id"] == id.strip()
    assert "x-request-id" not in (await post(filled, "evaluation", asking())).headers
    large = await post(filled, "evaluation", raw=b" " * (2 << 20), headers={"X-Request-ID": "large"})
    assert (large.status, large.headers["x-request-id"]) == (413, "large")
    media = await post(filled, "evaluation", asking(), headers={"content-type": "application/json; charset=utf-8"})
    assert media.status == 200


async def test_several_are_answered_in_their_order(filled: Client) -> None:
    items = [{"action": {"name": name}} for name in ("GET", "POST", "GET")]
    top = {"subject": entity(WEB), "resource": entity(TARGET)}

    async def decisions(**options: Any) -> list[bool]:
        answer = await post(filled, "evaluations", {**top, "evaluations": items, "options": options})
        assert answer.status == 200, answer
        return [one["decision"] for one in answer.body["evaluations"]]

    assert await decisions() == [True, False, True]
    assert await decisions(evaluations_semantic="execute_all", other=1) == [True, False, True]
    assert await decisions(evaluations_semantic="deny_on_first_deny") == [True, False]
    assert await decisions(evaluations_semantic="permit_on_first_permit") == [True]
    items.insert(0, {"action": {}})
    answer = await post(filled, "evaluations", {**top, "evaluations": items})
    assert answer.body["evaluations"][0] == {
        "decision": False,
        "context": {"error": {"status": 400, "message": "`action.name` is missing"}},
    }
    assert [one["decision"] for one in answer.body["evaluations"]] == [False, True, False, True]
    single = await post(filled, "evaluations", asking())
    assert single.body["decision"] is True
    empty = await post(filled, "evaluations", {**asking("POST"), "evaluations": []})
    assert empty.body["decision"] is False


async def test_searches(filled: Client) -> None:
    subjects = (await post(filled, "search/subject", asking(subject=""))).body
    assert subjects == {"results": [entity(WEB)], "page": {"next_token": "", "count": 1, "total": 1}}
    ignored = (await post(filled, "search/subject", asking(subject="spiffe://ignored/x"))).body
    assert ignored == subjects
    resources = (await post(filled, "search/resource", asking(target=""))).body
    assert resources["results"] == [entity(BANK), entity(TARGET)]
    actions = (await post(filled, "search/action", {"subject": entity(WEB), "resource": entity(TARGET)})).body
    assert actions["results"] == [{"name": "GET"}]
    for path, body in (
        ("search/subject", {**asking(), "subject": {"type": "user"}}),
        ("search/subject", asking(target=f"{ID}/nobody")),
        ("search/resource", {**asking(), "resource": {"type": "book"}}),
        ("search/resource", asking(subject=f"{ID}/nobody")),
        ("search/action", {**asking(), "subject": entity("x", "user")}),
    ):
        answer = await post(filled, path, body)
        assert (answer.status, answer.body["results"], answer.body["page"]["total"]) == (200, [], 0), (path, body)


async def test_searches_go_by_pages(filled: Client) -> None:
    body = {**asking(target=""), "page": {"limit": 1}}
    first = (await post(filled, "search/resource", body)).body
    assert (first["results"], first["page"]["count"], first["page"]["total"]) == ([entity(BANK)], 1, 2)
    body["page"]["token"] = first["page"]["next_token"]
    second = (await post(filled, "search/resource", body)).body
    assert (second["results"], second["page"]["next_token"]) == ([entity(TARGET)], "")
    assert (await post(filled, "search/subject", body)).status == 400  # another search's token


async def test_metadata_name_the_endpoints(filled: Client, callers: Callers) -> None:
    answer = await filled("GET", "//.well-known/authzen-configuration", headers={"host": "pdp.example.org:8081"})
    base = "https://pdp.example.org:8081"
    assert answer.body == {
        "policy_decision_point": base,
        "access_evaluation_endpoint": f"{base}/access/v1/evaluation",
        "access_evaluations_endpoint": f"{base}/access/v1/evaluations",
        "search_subject_endpoint": f"{base}/access/v1/search/subject",
        "search_resource_endpoint": f"{base}/access/v1/search/resource",
        "search_action_endpoint": f"{base}/access/v1/search/action",
    }
    anonymous = await callers("anonymous")
    assert (await anonymous("GET", "//.well-known/authzen-configuration")).status == 200
    for host in ("x/y", "a@b", 'x"'):
        assert (await filled("GET", "//.well-known/authzen-configuration", headers={"host": host})).status == 400


async def test_nobody_asks_about_others_workloads(filled: Client, callers: Callers) -> None:
    reader, author, stranger = await callers("reader"), await callers("author"), await callers("stranger")
    for mine in (reader, author):
        assert (await post(mine, "evaluation", asking())).body["decision"] is True
        refused = await post(mine, "evaluation", asking(target=BANK), headers={"X-Request-ID": "r"})
        assert (refused.status, refused.headers["x-request-id"]) == (403, "r")
        assert (await post(mine, "evaluation", asking(target=f"{ID}/nobody"))).data == refused.data.replace(
            BANK.encode(), f"{ID}/nobody".encode()
        )
        items = {"evaluations": [asking(), asking(target=BANK)]}
        several = (await post(mine, "evaluations", items)).body["evaluations"]
        assert (several[0]["decision"], several[1]["context"]["error"]["status"]) == (True, 403)
        assert (await post(mine, "search/resource", asking(target=""))).body["results"] == [entity(TARGET)]
        assert (await post(mine, "search/subject", asking(target=BANK))).body["results"] == []
        hidden = {"subject": entity(WEB), "resource": entity(BANK)}
        assert (await post(mine, "search/action", hidden)).body["results"] == []
    for path in ("evaluation", "evaluations", "search/subject", "search/resource", "search/action"):
        assert (await post(stranger, path, asking())).status == 403
    everything = await callers("all-reader")
    assert (await post(everything, "evaluation", asking(target=BANK))).body["decision"] is True
    anonymous = await callers("anonymous")
    assert (await post(anonymous, "evaluation", asking())).status == 403
