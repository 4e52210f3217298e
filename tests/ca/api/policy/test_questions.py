"""Questions about decisions, analyses and rollout."""

from __future__ import annotations

from datetime import UTC, datetime

from ca.identity.spiffe_id import SpiffeId
from ca.service.acks import POLICY, Acknowledged, ProxyState
from tests.ca.api.policy.conftest import ID, Callers, policy, workload
from tests.ca.api.policy.http import Client
from tests.support.server import RunningServer

TARGET = f"{ID}/ns/shop/sa/orders"


async def fill(local: Client) -> None:
    rules = [{"from": [{"source": {"principals": ["example.org/web"]}}], "to": [{"operation": {"methods": ["GET"]}}]}]
    objects = [workload(), workload("ledger", "bank"), policy(rules=rules)]
    assert (await local("POST", "/apply", {"changes": [{"object": one} for one in objects]})).status == 200


async def test_why_a_request_is_refused(local: Client) -> None:
    await fill(local)
    asked = {"target": TARGET, "request": {"principal": "example.org/web", "method": "POST", "path": "/"}}
    decided = (await local("POST", "/evaluate", asked)).body
    assert decided["decision"]["allowed"] is False
    assert (decided["revision"], decided["decision"]["reason"]) == (1, "NOTHING_ALLOWS")
    explained = (await local("POST", "/explain", asked)).body
    assert explained["explanation"]["nearest"][0]["policy"] == "shop/orders"
    assert "POST" in explained["text"]
    asked["request"] = {"principal": f"{ID}/web", "method": "GET", "path": "/", "headers": {"X-Any": "1"}}
    assert (await local("POST", "/evaluate", asked)).body["decision"]["policy"] == "shop/orders"
    for body in ({}, {"target": TARGET, "decision": "x"}, {"target": "x"}, {"decision": "a b"}):
        refused = await local("POST", "/explain", body)
        assert (refused.status, refused.reason) == (400, "BODY_INVALID")
    missing = await local("POST", "/explain", {"decision": "none"})
    assert (missing.status, missing.reason) == (404, "DECISION_NOT_FOUND")
    odd = {
        "source_ip": "nowhere",
        "path": "/a/../%2e;\t",
        "host": "",
        "headers": {"": ""},
        "claims": {"a": [1, None, {}]},
    }
    assert (await local("POST", "/explain", {"target": TARGET, "request": odd})).status == 200


async def test_the_graph_by_what_is_accepted(local: Client) -> None:
    await fill(local)
    for accept, media, beginning in (
        ("*/*", "application/json", b'{"revision":1'),
        ("text/vnd.graphviz", "text/vnd.graphviz", b"digraph"),
        ("text/html", "text/html", b"<!doctype html>"),
    ):
        answer = await local("GET", "/analyses/graph", headers={"Accept": accept})
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, media)
        assert answer.data[: len(beginning)].lower() == beginning.lower()
    assert (await local("GET", "/analyses/graph", headers={"Accept": "text/csv"})).status == 406


async def test_what_two_revisions_allow_differently(local: Client) -> None:
    await fill(local)
    found = (await local("GET", "/analyses/diff?before=0&after=1")).body
    assert (found["before"], found["after"], found["difference"]["equivalent"]) == (0, 1, False)
    assert (await local("GET", "/revisions/1/diff")).body == found
    assert (await local("GET", "/revisions/0/diff")).body["difference"]["equivalent"] is True
    assert (await local("GET", "/analyses/diff?before=1")).body["difference"]["equivalent"] is True
    assert (await local("GET", "/analyses/diff")).status == 400
    assert (await local("GET", "/analyses/diff?before=7")).status == 404


async def test_rollout_shows_what_each_proxy_made_of_it(server: RunningServer, callers: Callers) -> None:
    local, reader = await callers("local"), await callers("reader")
    await fill(local)
    agent = SpiffeId.parse(f"{ID}/spire/agent/x")
    proxies = tuple(
        ProxyState(
            proxy=f"envoy-{number}", pid=number, spiffe_id=who, resource="r", revision=1, state="nacked", detail="bad"
        )
        for number, who in enumerate((TARGET, f"{ID}/ns/bank/sa/ledger"))
    )
    now = datetime.now(UTC)
    ack = Acknowledged(revision=1, error="", consumers=2, consumers_acked=0, at=now, proxies=proxies)
    server.server.guarding.acks.put(agent, POLICY, ack)
    every = (await local("GET", "/rollout")).body
    assert [one["proxy"] for one in every["proxies"]] == ["envoy-0", "envoy-1"]
    assert (every["agents"][0]["agent"], every["agents"][0]["revision"]) == (str(agent), 1)
    mine = (await reader("GET", "/rollout")).body
    assert [(one["proxy"], one["state"], one["detail"]) for one in mine["proxies"]] == [("envoy-0", "nacked", "bad")]
    assert mine["agents"] == []


async def test_too_many_questions_are_told_when_to_come_again() -> None:
    from tests.support.server import running_server

    limits = {"questions_per_second_per_caller": 1.0, "writes_per_second_per_caller": 1.0, "burst_seconds": 2.0}
    async with running_server(policy={"admins": [f"{ID}/policy-admin"], "limits": limits}) as server:
        call = Client(server, await server.mint("/policy-admin"))
        answers = [await call("GET", "/rollout") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[2].reason == "RATE_LIMITED"
        assert int(answers[2].headers["retry-after"]) >= 1
        writes = [await call("PUT", f"/authorization-policies/shop/p{n}", policy(f"p{n}")) for n in range(3)]
        assert [answer.status for answer in writes] == [201, 201, 429]
        assert int(writes[2].headers["retry-after"]) >= 1
        assert [(await Client(server)("GET", "/rollout")).status for _ in range(5)] == [200] * 5
