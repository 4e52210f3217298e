"""The decision log over REST."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from policy.decision_record import DecisionRecord, Source
from tests.ca.api.policy.conftest import ID, Callers, policy, workload
from tests.ca.api.policy.http import Client
from tests.support.server import RunningServer

ORDERS, LEDGER = f"{ID}/ns/shop/sa/orders", f"{ID}/ns/bank/sa/ledger"
AT = datetime(2026, 1, 1, tzinfo=UTC)


async def fill(server: RunningServer, local: Client) -> None:
    """Twelve decisions, three at each time, every fourth about the bank."""
    objects = [workload(), workload("ledger", "bank"), policy()]
    assert (await local("POST", "/apply", {"changes": [{"object": one} for one in objects]})).status == 200
    for number in range(12):
        server.server.decisions.add(
            DecisionRecord(
                id=f"d{number:02}",
                at=AT + timedelta(seconds=number // 3),
                source=Source.EXT_AUTHZ,
                target=LEDGER if number % 4 == 0 else ORDERS,
                allowed=number % 2 == 0,
                reason="ALLOWED_BY_RULE" if number % 2 == 0 else "NOTHING_ALLOWS",
                principal="example.org/ns/shop/sa/web",
                method="GET",
                path="/",
                revision=1,
            )
        )


async def ids(call: Client, query: str = "") -> list[str]:
    answer = await call("GET", f"/decisions{query}")
    assert answer.status == 200, answer.data
    return [item["id"] for item in answer.body["items"]]


async def test_queries_pages_and_rights(server: RunningServer, callers: Callers) -> None:
    local, reader = await callers("local"), await callers("reader")
    await fill(server, local)
    every = [f"d{number:02}" for number in reversed(range(12))]
    assert await ids(local) == every
    assert await ids(local, "?allowed=true") == every[1::2]
    assert await ids(local, f"?target={LEDGER}") == ["d08", "d04", "d00"]
    assert await ids(local, "?id=d03") == ["d03"]
    assert await ids(local, "?principal=spiffe://example.org/ns/shop/*&limit=2") == every[:2]
    assert await ids(local, "?since=2026-01-01T00:00:03Z") == every[:3]
    assert await ids(local, "?until=2026-01-01T00:00:01%2B00:00") == every[9:]
    assert await ids(local, "?source=pushed") == []
    mine = [name for name in every if int(name[1:]) % 4]
    assert await ids(reader) == mine
    assert await ids(reader, f"?target={LEDGER}") == []
    assert await ids(reader, "?id=d04") == []

    for call, wanted in ((local, every), (reader, mine)):
        for limit in (1, 2, 5):
            found, target = [], f"//v1/policy/decisions?limit={limit}"
            for _ in range(20):
                page = await call("GET", target)
                found += [item["id"] for item in page.body["items"]]
                if "link" not in page.headers:
                    break
                target = "/" + page.headers["link"].partition(">")[0].removeprefix("<")
            assert found == wanted, limit
    for query in (
        "?since=2026-01-01T00:00:00",
        "?since=x",
        "?allowed=perhaps",
        "?source=me",
        "?cursor=WyJkZWNpc2lvbnMiLCJ4Il0",
    ):
        assert (await local("GET", f"/decisions{query}")).status == 400, query


async def test_what_was_decided_is_explained_by_its_id(server: RunningServer, callers: Callers) -> None:
    local, reader = await callers("local"), await callers("reader")
    await fill(server, local)
    asked: dict[str, Any] = {
        "target": ORDERS,
        "request": {"principal": f"{ID}/ns/shop/sa/web", "path": "/", "method": "GET"},
    }
    answered = (await local("POST", "/evaluate", asked)).body
    explained = (await reader("POST", "/explain", {"decision": answered["id"]})).body
    assert explained["explanation"]["allowed"] is answered["decision"]["allowed"] is True
    assert (explained["record"]["id"], explained["record"]["source"]) == (answered["id"], "evaluate")
    assert explained["revision"] == 1
    hidden = await reader("POST", "/explain", {"decision": "d04"})
    missing = await reader("POST", "/explain", {"decision": "none"})
    assert (hidden.status, hidden.reason) == (404, "DECISION_NOT_FOUND")
    assert hidden.data == missing.data


async def test_a_path_that_proxies_read_differently_is_refused(local: Client) -> None:
    rules = [{"to": [{"operation": {"paths": ["/public/*"]}}]}]
    objects = [workload(), policy(rules=rules)]
    await local("POST", "/apply", {"changes": [{"object": one} for one in objects]})
    for path, reason in (("/public/a", "ALLOWED_BY_RULE"), ("/public/..;/admin", "PATH_NOT_NORMAL")):
        answer = await local("POST", "/evaluate", {"target": ORDERS, "request": {"method": "GET", "path": path}})
        assert answer.body["decision"]["reason"] == reason
