"""Many changes as one revision, what was, and word of what is new."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.ca.api.policy.conftest import ID, Callers, policy, workload
from tests.ca.api.policy.http import Client
from tests.support.server import RunningServer

TARGET = f"{ID}/ns/shop/sa/orders"
WEB = {"target": TARGET, "request": {"principal": f"{ID}/ns/shop/sa/web", "method": "GET", "path": "/"}}


def changes(*objects: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"changes": [{"object": one} for one in objects], **more}


async def allowed(call: Client, revision: int | None = None) -> bool:
    answer = await call("POST", "/evaluate", {**WEB, **({} if revision is None else {"revision": revision})})
    assert answer.status == 200, answer.data
    return bool(answer.body["decision"]["allowed"])


async def test_many_changes_are_one_revision_that_can_be_gone_back_to(local: Client) -> None:
    made = await local("POST", "/apply", changes(workload(), policy(), note="first", owner="ci"))
    assert (made.status, made.body["revision"], len(made.body["objects"])) == (200, 1, 2)
    assert {one["owner"] for one in made.body["objects"]} == {"ci"}
    gone = {"delete": {"kind": "AuthorizationPolicy", "namespace": "shop", "name": "orders"}, "force": True}
    assert (await local("POST", "/apply", {"changes": [gone], "expected_revision": 1})).body["revision"] == 2
    stale = await local("POST", "/apply", changes(policy(), expected_revision=1))
    assert (stale.status, stale.reason) == (412, "POLICY_CHANGED")
    assert [await allowed(local, number) for number in (0, 1, 2, None)] == [False, True, False, False]

    listed = (await local("GET", "/revisions?limit=1")).body
    assert [(one["number"], one["count"]) for one in listed["items"]] == [(2, 1)]
    more = (await local("GET", f"/revisions?limit=1&cursor={listed['next']}")).body
    assert [(one["number"], one["note"], one["count"]) for one in more["items"]] == [(1, "first", 2)]
    assert more["next"] is None
    (deleted,) = (await local("GET", "/revisions/2")).body["changes"]
    assert (deleted["name"], deleted["before"], deleted["after"]) == ("orders", policy(), None)

    assert (await local("POST", "/revisions/1/rollback", {"expected_revision": 1})).status == 412
    back = await local("POST", "/revisions/1/rollback", {"note": "back"}, {"Idempotency-Key": "k"})
    assert (back.status, back.body["revision"]) == (200, 3)
    again = await local("POST", "/revisions/1/rollback", {"note": "back"}, {"Idempotency-Key": "k"})
    assert (again.body["revision"], again.body["changed"]) == (3, 1)
    for number in (1, 3):
        same = await local("POST", f"/revisions/{number}/rollback", {})
        assert (same.status, same.body["revision"], same.body["changed"]) == (200, None, 0)
    there = await local("POST", "/revisions/2/rollback?dry_run=true", {})
    assert (there.body["revision"], there.body["changed"]) == (None, 1)
    assert (await local("GET", "/revisions?limit=1")).body["items"][0]["number"] == 3
    assert await allowed(local)
    for path in ("/revisions/9", "/revisions/99999999999"):
        missing = await local("GET", path)
        assert (missing.status, missing.reason) == (404, "POLICY_REVISION_NOT_FOUND")
    assert (await local("POST", "/revisions/9/rollback", {})).status == 404
    assert (await local("POST", "/evaluate", {**WEB, "revision": 9})).status == 404
    for cursor in ("x", listed["next"] + "A"):
        assert (await local("GET", f"/revisions?cursor={cursor}")).reason == "PAGE_TOKEN"


async def test_one_wrong_change_and_nothing_is_made(local: Client) -> None:
    wrong = await local(
        "POST", "/apply", raw=json.dumps(changes(policy(), policy("b", action="NO")), indent=1).encode()
    )
    assert (wrong.status, wrong.reason) == (400, "POLICY_INVALID")
    (error,) = wrong.body["errors"]
    assert (error["code"], error["pointer"]) == ("P101", "/changes/1/object/spec/action")
    assert error["line"] > 20
    assert (await local("GET", "/revisions")).body["items"] == []
    cases: list[tuple[Any, str]] = [
        ({"changes": [{}]}, "/changes/0"),
        ({"changes": [{"object": {}, "delete": {"kind": "Workload", "namespace": "a", "name": "b"}}]}, "/changes/0"),
        ({"changes": [{"object": {"kind": "Gateway"}}]}, "/changes/0/object/kind"),
        (
            {"changes": [{"object": {"kind": "Workload", "metadata": {"name": 7}}}]},
            "/changes/0/object/metadata/namespace",
        ),
        ({"changes": [{"object": 1}]}, "/changes/0/object"),
        ({"changes": [], "surprise": 1}, "/surprise"),
        ({"changes": [], "expected_revision": "1"}, "/expected_revision"),
        ([], ""),
    ]
    for body, pointer in cases:
        refused = await local("POST", "/apply", body)
        assert (refused.status, refused.reason) == (400, "BODY_INVALID"), body
        assert refused.body["errors"][0]["pointer"] == pointer
        assert refused.body["errors"][0]["line"] == 1
    twice = await local("POST", "/apply", changes(policy(), policy()))
    assert (twice.status, twice.body["errors"][0]["code"]) == (400, "P009")


async def test_three_thousand_changes_at_once(local: Client) -> None:
    objects = [policy(f"p{number}", f"ns{number % 100}") for number in range(3000)]
    made = await local("POST", "/apply", changes(*objects))
    assert (made.status, made.body["revision"], len(made.body["objects"])) == (200, 1, 3000)


async def test_invariants_guard_every_write(local: Client) -> None:
    await local("POST", "/apply", changes(workload(), workload("db"), policy()))
    shown = await local("GET", "/invariants")
    assert (shown.status, shown.body["text"]) == (200, "")
    head = "apiVersion: burgee.io/v1\nkind: Invariant\nmetadata: {name: i}\n"
    text = f"{head}spec: {{never: shop/frontend -> shop/db}}\n"
    for query in ("", "?dry_run=true"):
        wrong = await local("PUT", f"/invariants{query}", {"text": f"{head}spec: {{never: x}}"})
        assert (wrong.status, wrong.reason) == (400, "INVARIANTS_INVALID")
        assert (wrong.body["errors"][0]["code"], wrong.body["errors"][0]["line"]) == ("I002", 4)
    rehearsed = await local("PUT", "/invariants?dry_run=true", {"text": text})
    assert rehearsed.status == 200, rehearsed.data
    assert (await local("GET", "/invariants")).body["text"] == ""
    made = await local("PUT", "/invariants", raw=text.encode(), media="application/yaml")
    assert (made.status, made.body["text"]) == (200, text)
    assert (await local("PUT", "/invariants", {"text": ""})).status == 428
    breaking = policy("db", selector={"matchLabels": {"app": "db"}}, rules=[{}])
    for query in ("", "?dry_run=true"):
        broken = await local("PUT", f"/authorization-policies/shop/db{query}", breaking)
        assert (broken.status, broken.reason) == (409, "INVARIANT_BROKEN")
        assert broken.body["violations"]
    assert (await local("PUT", "/invariants", {"text": ""}, {"If-Match": made.headers["etag"]})).status == 200
    assert (await local("PUT", "/authorization-policies/shop/db", breaking)).status == 201


async def test_grants_have_pages_that_link_to_each_other(local: Client) -> None:
    names = ["a", "b", "b.c", "d", "e"]
    for name in reversed(names):
        grant = {"spiffe_id": f"{ID}/{name}", "role": "reader", "namespaces": ["shop"]}
        assert (await local("PUT", f"/grants/{name}", grant)).status == 201
    found, path = [], "//v1/policy/grants?limit=2"
    while path:
        page = await local("GET", path)
        assert len(page.body["items"]) <= 2
        found += [one["name"] for one in page.body["items"]]
        link = page.headers.get("link", "")
        assert bool(link) == (page.body["next"] is not None)
        assert f"cursor={page.body['next']}" in link or not link
        path = f"/{link[1:].partition('>')[0]}" if link else ""
    assert found == names
    assert (await local("GET", "/grants?cursor=x")).reason == "PAGE_TOKEN"
    other = (await local("GET", "/grants?limit=1")).body["next"]
    assert (await local("GET", f"/authorization-policies?cursor={other}")).reason == "PAGE_TOKEN"
    await local("DELETE", "/grants/a", headers={"If-Match": "*"})
    assert (await local("GET", f"/grants?limit=1&cursor={other}")).body["items"][0]["name"] == "b"


async def test_a_dry_run_of_a_grant_says_what_it_gives_and_takes(callers: Any, local: Client) -> None:
    grant = {"spiffe_id": f"{ID}/team", "role": "reader", "namespaces": ["shop"]}
    rehearsed = (await local("PUT", "/grants/team?dry_run=true", grant)).body
    assert rehearsed["effect"] == [f"`{ID}/team` would gain the right to read policies of `shop`"]
    made = (await local("PUT", "/grants/team", grant)).body
    assert (rehearsed["etag"], "effect" in made) == (made["etag"], False)
    match = {"If-Match": f'"{made["etag"]}"'}
    gone = await local("DELETE", "/grants/team?dry_run=true", None, match)
    assert gone.body == {**made, "effect": [f"`{ID}/team` would lose the right to read policies of `shop`"]}
    for wrong in ({**grant, "namespaces": []}, {**grant, "spiffe_id": "*"}):
        assert (await local("PUT", "/grants/team?dry_run=true", wrong, match)).status == 400
    assert (await local("GET", "/grants/team")).body == made
    admin = await callers("admin")
    own = await admin("DELETE", "/grants/admin?dry_run=true", None, {"If-Match": "*"})
    assert own.body["effect"] == [f"you (`{ID}/admin`) would lose everything that an admin may; left: nothing"]


async def test_a_dry_run_of_invariants_shows_what_would_be_broken(local: Client) -> None:
    await local("POST", "/apply", changes(workload(), workload("web"), policy()))
    head = "apiVersion: burgee.io/v1\nkind: Invariant\nmetadata: {name: i}\n"
    never = {"text": f"{head}spec: {{never: shop/web -> shop/orders}}\n"}
    broken = await local("PUT", "/invariants?dry_run=true", never)
    assert (broken.status, broken.reason) == (409, "INVARIANT_BROKEN")
    (violation,) = broken.body["violations"]
    assert violation["invariant"] == "i"
    assert violation["policy"] == "shop/orders"
    assert violation["request"]["principal"].endswith("/ns/shop/sa/web")
    good = {"text": f"{head}spec: {{never: shop/other -> shop/orders}}\n"}
    assert (await local("PUT", "/invariants?dry_run=true", good, {"If-Match": '"x"'})).status == 412
    rehearsed = await local("PUT", "/invariants?dry_run=true", good)
    assert (rehearsed.status, "etag" in rehearsed.headers) == (200, False)
    assert (await local("GET", "/invariants")).body["text"] == ""
    assert (await local("PUT", "/invariants", good)).body == rehearsed.body


async def test_grants_are_conditional_too(local: Client) -> None:
    grant = {"spiffe_id": f"{ID}/team/*", "role": "author", "namespaces": ["shop"]}
    rehearsed = await local("PUT", "/grants/team?dry_run=true", grant)
    assert (rehearsed.status, rehearsed.body["role"]) == (200, "author")
    assert (await local("GET", "/grants/team")).status == 404
    made = await local("PUT", "/grants/team", grant)
    assert (made.status, made.body["namespaces"]) == (201, ["shop"])
    etag = {"If-Match": made.headers["etag"]}
    assert (await local("GET", "/grants/team", headers={"If-None-Match": made.headers["etag"]})).status == 304
    assert (await local("PUT", "/grants/team", grant)).status == 428
    assert (await local("PUT", "/grants/team?dry_run=true", grant)).status == 428
    assert (await local("PUT", "/grants/team", grant, {"If-None-Match": "*"})).status == 412
    assert (await local("PUT", "/grants/team", {**grant, "namespaces": ["bank"]}, etag)).status == 200
    assert (await local("DELETE", "/grants/team", headers=etag)).status == 412
    for wrong in (
        {**grant, "role": "king"},
        {**grant, "spiffe_id": "*"},
        {**grant, "namespaces": ["istio-system"]},
        {**grant, "namespaces": []},
        {"role": "admin"},
    ):
        refused = await local("PUT", "/grants/wrong", wrong)
        assert (refused.status, refused.reason in ("GRANT_INVALID", "BODY_INVALID")) == (400, True)
    assert [one["name"] for one in (await local("GET", "/grants")).body["items"]] == ["team"]
    assert (await local("DELETE", "/grants/team", headers={"If-Match": "*"})).status == 200


async def test_who_waits_is_told(local: Client) -> None:
    waiting = asyncio.create_task(local("GET", "/watch?after=0&wait_seconds=20"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await local("POST", "/apply", changes(policy()))
    assert (await waiting).body == {"revision": 1, "changed": True}
    assert (await local("GET", "/watch?after=0")).body == {"revision": 1, "changed": True}
    assert (await local("GET", "/watch?after=1&wait_seconds=0.05")).body == {"revision": 1, "changed": False}


async def test_events_for_each_revision_until_the_right_ends(server: RunningServer, callers: Callers) -> None:
    local, reader = await callers("local"), await callers("reader")
    read, write = await reader.connect()
    write.write(b"GET /v1/policy/watch HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n")
    assert b"200" in await read.readline()
    async with asyncio.timeout(20):
        await local("POST", "/apply", changes(policy("a")))
        await read.readuntil(b'data: {"revision": 1, "changed": true}\n\n')
        etag = (await local("GET", "/grants/reader")).headers["etag"]
        await local("DELETE", "/grants/reader", headers={"If-Match": etag})
        await local("POST", "/apply", changes(policy("b")))
        rest = await read.readuntil(b"0\r\n\r\n")
    assert b'"revision": 3' not in rest
    write.close()


async def test_a_server_that_stops_does_not_wait_for_who_waits(server: RunningServer, local: Client) -> None:
    waiting = asyncio.create_task(local("GET", "/watch?wait_seconds=60"))
    _, write = await local.connect()
    write.write(b"GET /v1/policy/watch HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n")
    await asyncio.sleep(0.2)
    async with asyncio.timeout(10):
        await server.restart()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    write.close()
