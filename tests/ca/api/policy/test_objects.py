"""Objects over REST: conditional writes, patches, pages, dry runs; over the socket and over TLS alike."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.ca.api.policy.conftest import Callers, policy, workload
from tests.ca.api.policy.http import Answer, Client

ONE = "/authorization-policies/shop/orders"
MERGE, PATCH = "application/merge-patch+json", "application/json-patch+json"


@pytest.mark.parametrize("name", ["local", "first", "author"])
async def test_the_life_of_an_object(callers: Callers, name: str) -> None:
    call = await callers(name)
    missing = await call("GET", ONE)
    assert (missing.status, missing.reason) == (404, "POLICY_NOT_FOUND")
    made = await call("PUT", ONE, policy())
    assert (made.status, made.body["revision"], made.body["dry_run"]) == (201, 1, False)
    etag = made.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
    shown = await call("GET", ONE)
    assert (shown.status, shown.body, shown.headers["etag"]) == (200, policy(), etag)
    assert shown.headers["burgee-revision"] == "1"
    assert (shown.headers["cache-control"], shown.headers["x-content-type-options"]) == ("private, no-cache", "nosniff")
    assert (await call("GET", ONE, headers={"If-None-Match": f'"other", W/{etag}'})).status == 304
    assert (await call("GET", ONE, headers={"If-None-Match": '"other"'})).status == 200

    changed = policy(action="DENY", rules=[{}])
    assert (await call("PUT", ONE, changed)).reason == "IF_MATCH_MISSING"
    stale = await call("PUT", ONE, changed, {"If-Match": f'"{"0" * 32}"'})
    assert (stale.status, stale.reason) == (412, "POLICY_CHANGED")
    weak = await call("PUT", ONE, changed, {"If-Match": f"W/{etag}"})
    assert (weak.status, weak.reason) == (412, "POLICY_CHANGED")
    done = await call("PUT", ONE, changed, {"If-Match": f'"other", {etag}'})
    assert (done.status, done.body["revision"]) == (200, 2)
    same = await call("PUT", ONE, changed, {"If-Match": done.headers["etag"]})
    assert (same.status, same.body["revision"]) == (200, None)

    assert (await call("DELETE", ONE)).status == 428
    assert (await call("DELETE", ONE, headers={"If-Match": etag})).status == 412
    assert (await call("DELETE", ONE, headers={"If-Match": "*"})).body["revision"] == 3
    gone = await call("DELETE", ONE, headers={"If-Match": etag})
    assert (gone.status, gone.reason) in {(404, "POLICY_NOT_FOUND"), (412, "POLICY_CHANGED")}
    assert (await call("PUT", ONE, policy(), {"If-Match": "*"})).status == 412


async def test_create_only(local: Client) -> None:
    only_new = {"If-None-Match": "*"}
    assert (await local("PUT", ONE, policy(), only_new)).status == 201
    again = await local("PUT", ONE, policy(), only_new)
    assert (again.status, again.reason) == (412, "POLICY_CHANGED")
    for headers in ({"If-None-Match": '"a"'}, {"If-Match": "x"}, {"If-Match": '"a"', "If-None-Match": "*"}):
        wrong = await local("PUT", ONE, policy(), headers)
        assert (wrong.status, wrong.reason) == (400, "REQUEST_INVALID")
        assert wrong.body["errors"][0]["parameter"].startswith("header if-")


async def test_of_writers_at_once_one_wins(local: Client) -> None:
    etag = (await local("PUT", ONE, policy())).headers["etag"]
    bodies = [policy(rules=[{"to": [{"operation": {"ports": [str(port)]}}]}]) for port in range(1, 7)]
    answers = await asyncio.gather(*(local("PUT", ONE, body, {"If-Match": etag}) for body in bodies))
    assert sorted(answer.status for answer in answers) == [200] + [412] * 5


async def test_the_same_write_twice_is_made_once(local: Client) -> None:
    key = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    first = await local("PUT", ONE, policy(), key)
    again = await local("PUT", ONE, policy(), key)
    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert again.headers["etag"] == first.headers["etag"]
    other = await local("PUT", ONE, policy(action="DENY", rules=[{}]), key)
    assert (other.status, other.reason) == (400, "IDEMPOTENCY_KEY")
    wrong = await local("PUT", ONE, policy(), {"Idempotency-Key": "a b"})
    assert (wrong.status, wrong.body["errors"][0]["parameter"]) == (400, "header idempotency-key")


async def test_yaml_is_read_and_told_by_line(local: Client) -> None:
    text = b"""\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
spec:
  action: DENY
  rules:
  - to:
    - operation: {methods: ["GET"], path: ["/x"]}
"""
    wrong = await local("PUT", ONE, raw=text, media="application/yaml")
    assert (wrong.status, wrong.reason) == (400, "POLICY_INVALID")
    (error,) = wrong.body["errors"]
    assert error["code"] == "P006"
    assert error["pointer"] == "/spec/rules/0/to/0/operation/path"
    assert (error["line"], error["column"]) == (7, 43)
    assert error["hint"] == "did you mean `paths`?"
    right = await local("PUT", ONE, raw=text.replace(b"path:", b"paths:"), media="application/yaml")
    assert right.status == 201
    assert right.body["objects"][0]["object"]["metadata"] == {"namespace": "shop", "name": "orders"}
    json = await local("PUT", ONE, raw=b'{"apiVersion": "security.istio.io/v1",\n "kind": "x"}')
    assert (json.reason, json.body["errors"][0]["line"], json.body["errors"][0]["pointer"]) == (
        "BODY_MISMATCH", 2, "/kind",
    )  # fmt: skip


async def test_patches(local: Client) -> None:
    etag = (await local("PUT", ONE, policy())).headers["etag"]

    async def patch(body: Any, media: str, match: str = "") -> Answer:
        return await local("PATCH", ONE, body, {"If-Match": match or etag}, media=media)

    assert (await local("PATCH", ONE, {}, media=MERGE)).status == 428
    assert (await patch({"spec": {"action": "DENY"}}, MERGE, '"x"')).status == 412
    done = await patch({"spec": {"action": "DENY"}, "metadata": {"labels": {"a": "b"}}}, MERGE)
    assert done.status == 200
    etag = done.headers["etag"]
    shown = (await local("GET", ONE)).body
    assert (shown["spec"]["action"], shown["metadata"]["labels"]) == ("DENY", {"a": "b"})

    failed = await patch([{"op": "test", "path": "/spec/action", "value": "ALLOW"}], PATCH)
    assert (failed.status, failed.reason) == (409, "PATCH_TEST")
    bad = await patch([{"op": "remove", "path": "/nothing"}], PATCH)
    assert (bad.status, bad.reason, bad.body["errors"][0]["pointer"]) == (400, "PATCH_INVALID", "/0")
    moved = await patch([{"op": "replace", "path": "/metadata/name", "value": "other"}], PATCH)
    assert (moved.status, moved.reason) == (400, "BODY_MISMATCH")
    bomb = await patch([{"op": "copy", "from": "", "path": f"/spec/{n}"} for n in range(25)], PATCH)
    assert bomb.status == 400
    invalid = await patch({"spec": {"action": "NOPE"}}, MERGE)
    assert (invalid.status, invalid.reason) == (400, "POLICY_INVALID")
    assert invalid.body["errors"][0]["pointer"] == "/spec/action"
    media = await patch({"spec": {}}, "application/json")
    assert (media.status, media.headers["accept-patch"]) == (415, f"{MERGE}, {PATCH}")
    done = await patch([{"op": "add", "path": "/spec/rules/-", "value": {}}], PATCH)
    assert len((await local("GET", ONE)).body["spec"]["rules"]) == 2
    once = {"Idempotency-Key": "k", "If-Match": done.headers["etag"]}
    add = [{"op": "add", "path": "/spec/rules/-", "value": {}}]
    first, again = [await local("PATCH", ONE, add, once, media=PATCH) for _ in range(2)]
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    other = await local("PATCH", ONE, [], once, media=PATCH)
    assert (other.status, other.reason) == (400, "IDEMPOTENCY_KEY")
    assert len((await local("GET", ONE)).body["spec"]["rules"]) == 3
    done = again
    assert (await local("GET", ONE)).headers["etag"] == done.headers["etag"]


async def test_a_dry_run_says_all_and_does_nothing(local: Client) -> None:
    await local("PUT", "/workloads/shop/orders", workload())
    shown = await local("PUT", f"{ONE}?dry_run=true", policy())
    assert (shown.status, shown.body["dry_run"], shown.body["revision"]) == (200, True, None)
    assert shown.body["difference"]["equivalent"] is False
    assert isinstance(shown.body["findings"], list)
    assert (await local("GET", ONE)).status == 404
    wrong = await local("PUT", f"{ONE}?dry_run=true", policy(action="NOPE"))
    assert (wrong.status, wrong.reason) == (400, "POLICY_INVALID")
    warned = await local("PUT", f"{ONE}?dry_run=true", policy(selector={}, rules=[{}]))
    assert [one["code"] for one in warned.body["warnings"]] == ["W001"]


LOST = policy("lost", selector={"matchLabels": {"app": "nobody"}}, rules=[{}])
REHEARSED: dict[str, tuple[str, str, Any, list[str], int]] = {
    "put": ("PUT", "/authorization-policies/shop/lost", LOST, ["L010"], 0),
    "patch": ("PATCH", ONE, {"spec": {"selector": {"matchLabels": {"app": "nobody"}}}}, ["L010"], 1),
    "delete": ("DELETE", ONE, None, [], 1),
    "apply": ("POST", "/apply", {"changes": [{"object": LOST}]}, ["L010"], 0),
    "roll back": ("POST", "/revisions/0/rollback", {}, [], 1),
}


async def test_every_write_can_be_rehearsed(local: Client) -> None:
    """What it is, what lint finds, and what would be decided otherwise."""
    await local("POST", "/apply", {"changes": [{"object": one} for one in (workload(), policy())]})
    match = {"If-Match": (await local("GET", ONE)).headers["etag"]}
    for name, (verb, path, body, codes, changes) in REHEARSED.items():
        media = MERGE if verb == "PATCH" else "application/json"
        headers = match if verb in ("PATCH", "DELETE") else {}
        shown = await local(verb, f"{path}?dry_run=true", body, headers, media=media)
        assert (shown.status, shown.body["dry_run"], shown.body["revision"]) == (200, True, None), name
        assert [one["code"] for one in shown.body["findings"]] == codes, name
        assert len(shown.body["difference"]["changes"]) == changes, name
    assert [one["number"] for one in (await local("GET", "/revisions")).body["items"]] == [1]


async def test_pages_follow_their_links(callers: Callers) -> None:
    local = await callers("local")
    names = [(namespace, f"p{number}") for namespace in ("bank", "shop") for number in range(3)]
    changes = [{"object": policy(name, namespace)} for namespace, name in names]
    assert (await local("POST", "/apply", {"changes": changes, "owner": "ci"})).status == 200

    async def walk(call: Client, path: str) -> list[tuple[str, str]]:
        found, target = [], f"/v1/policy{path}"
        for _ in range(9):
            page = await call("GET", f"/{target}")
            assert page.status == 200, page.data
            metadata = [item["object"]["metadata"] for item in page.body["items"]]
            found += [(one["namespace"], one["name"]) for one in metadata]
            if "link" not in page.headers:
                assert page.body["next"] is None
                return found
            link = re.fullmatch(r'<(.+)>; rel="next"', page.headers["link"])
            assert link is not None
            target = link[1]
            assert page.body["next"] in target
        raise AssertionError("the pages have no end")

    assert await walk(local, "/authorization-policies?limit=2") == names
    assert await walk(local, "/authorization-policies/shop?limit=1") == names[3:]
    assert await walk(local, "/authorization-policies?limit=6") == names
    assert await walk(await callers("reader"), "/authorization-policies?limit=2") == names[3:]
    assert await walk(local, "/workloads") == []
    page = await local("GET", "/authorization-policies?limit=2")
    other = await local("GET", f"/authorization-policies/shop?cursor={page.body['next']}")
    assert (other.status, other.reason) == (400, "PAGE_TOKEN")
    for query in ("limit=0", "limit=501", "limit=x", "cursor=!"):
        assert (await local("GET", f"/authorization-policies?{query}")).status == 400


async def test_what_is_applied_is_not_changed_by_hand_unless_by_force(local: Client) -> None:
    await local("POST", "/apply", {"changes": [{"object": policy()}], "owner": "ci"})
    shown = await local("GET", ONE)
    assert shown.headers["burgee-owner"] == "ci"
    match = {"If-Match": shown.headers["etag"]}
    refused = await local("DELETE", ONE, headers=match)
    assert (refused.status, refused.reason) == (409, "POLICY_OWNED")
    assert (await local("DELETE", f"{ONE}?force=true", headers=match)).status == 200


async def test_limits_of_bodies_and_types(local: Client) -> None:
    huge = await local("PUT", ONE, raw=b" " * 10, headers={"content-length": str(100 << 20)})
    assert (huge.status, huge.reason, huge.headers["connection"]) == (413, "BODY_TOO_LARGE", "close")
    big = await local("PUT", ONE, raw=b" " * (5 << 20))
    assert (big.status, big.reason) == (413, "BODY_TOO_LARGE")
    deep = await local("PUT", ONE, raw=b'{"a":' * 40 + b"1" + b"}" * 40)
    assert (deep.status, deep.reason) == (400, "BODY_MALFORMED")
    text = await local("PUT", ONE, raw=b"x", media="text/plain")
    assert (text.status, text.reason) == (415, "MEDIA_TYPE")
    assert (await local("GET", ONE, headers={"Accept": "image/png"})).status == 406
    verb = await local("POST", ONE, {})
    assert (verb.status, verb.reason, verb.headers["allow"]) == (405, "NO_SUCH_VERB", "DELETE, GET, PATCH, PUT")
    for path in ("/authorization-policies/shop/orders/", "/gateways/shop/x", "", "/Authorization-policies"):
        assert (await local("GET", path)).status == 404
    for path in ("/authorization-policies/SHOP/x", "/workloads/shop/%2e%2e", "/workloads/shop/a%00b"):
        wrong = await local("GET", path)
        assert (wrong.status, wrong.reason) == (400, "REQUEST_INVALID")
