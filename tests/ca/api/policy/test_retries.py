"""A write whose answer was lost is sent again, with the same key: it is answered as before, whatever it was."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ca.api.policy.conftest import Callers, policy, workload
from tests.ca.api.policy.http import Client

ONE = "/authorization-policies/shop/orders"
KEY = {"Idempotency-Key": "lost-answer"}
CHANGED = policy(action="DENY", rules=[{}])
CASES: dict[str, tuple[str, str, Any, bool]] = {
    "replace": ("PUT", ONE, CHANGED, True),
    "delete": ("DELETE", ONE, None, True),
    "apply": ("POST", "/apply", {"changes": [{"object": workload()}], "expected_revision": 1}, False),
    "roll back": ("POST", "/revisions/0/rollback", {"note": "n", "expected_revision": 1}, False),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_write_that_is_sent_again_is_answered_as_it_was(local: Client, name: str) -> None:
    verb, path, body, conditional = CASES[name]
    etag = (await local("PUT", ONE, policy())).headers["etag"]
    headers = {**KEY, **({"If-Match": etag} if conditional else {})}
    first = await local(verb, path, body, headers)
    assert (first.status, first.body["revision"]) == (200, 2), first
    again = await local(verb, path, body, headers)
    assert (again.status, again.body) == (200, first.body)
    assert again.headers.get("etag") == first.headers.get("etag")
    assert [one["number"] for one in (await local("GET", "/revisions")).body["items"]] == [2, 1]


GRANT = {"spiffe_id": "spiffe://example.org/team", "role": "reader", "namespaces": ["shop"]}
NEVER = "apiVersion: burgee.io/v1\nkind: Invariant\nmetadata: {name: i}\nspec: {never: shop/a -> shop/b}\n"


async def test_a_grant_that_is_written_again_is_answered_as_it_was(local: Client) -> None:
    new = {**KEY, "If-None-Match": "*"}
    made = await local("PUT", "/grants/team", GRANT, new)
    other = {**GRANT, "namespaces": ["bank"]}
    change = {"Idempotency-Key": "second", "If-Match": made.headers["etag"]}
    changed = await local("PUT", "/grants/team", other, change)
    assert (made.status, changed.status) == (201, 200)
    for first, body, headers in ((made, GRANT, new), (changed, other, change)):
        again = await local("PUT", "/grants/team", body, headers)
        assert (again.status, again.body, again.headers["etag"]) == (first.status, first.body, first.headers["etag"])
    assert (await local("GET", "/grants/team")).body == changed.body
    assert (await local("PUT", "/grants/team", GRANT, {"If-None-Match": "*"})).status == 412
    assert (await local("PUT", "/grants/team", other, new)).reason == "IDEMPOTENCY_KEY"
    assert (await local("PUT", "/grants/other", GRANT, new)).reason == "IDEMPOTENCY_KEY"
    assert (await local("PUT", ONE, policy(), KEY)).reason == "IDEMPOTENCY_KEY"


async def test_a_grant_that_is_deleted_again_is_told_as_it_was(local: Client) -> None:
    made = await local("PUT", "/grants/team", GRANT)
    headers = {**KEY, "If-Match": made.headers["etag"]}
    for _ in range(2):
        gone = await local("DELETE", "/grants/team", None, headers)
        assert (gone.status, gone.body) == (200, made.body)
    assert (await local("PUT", "/grants/team", GRANT, {"If-None-Match": "*"})).status == 201
    assert (await local("DELETE", "/grants/team", None, headers)).body == made.body
    assert (await local("GET", "/grants/team")).status == 200
    assert (await local("DELETE", "/grants/none", None, {**headers, "Idempotency-Key": "new"})).status == 404
    assert (await local("DELETE", "/grants/none?dry_run=true", None, headers)).status == 404
    assert (await local("DELETE", "/grants/team", None, {"Idempotency-Key": "new", "If-Match": "*"})).status == 200


async def test_invariants_that_are_written_again_are_answered_as_they_were(local: Client) -> None:
    made = await local("PUT", "/invariants", {"text": NEVER}, KEY)
    assert made.status == 200
    again = await local("PUT", "/invariants", {"text": NEVER}, KEY)
    assert (again.status, again.body, again.headers["etag"]) == (200, made.body, made.headers["etag"])
    assert (await local("PUT", "/invariants", {"text": ""}, KEY)).reason == "IDEMPOTENCY_KEY"
    assert (await local("PUT", "/invariants", {"text": ""}, {"Idempotency-Key": "new"})).status == 428
    clear = {"Idempotency-Key": "clear", "If-Match": made.headers["etag"]}
    for _ in range(2):
        assert (await local("PUT", "/invariants", {"text": ""}, clear)).body["text"] == ""
    assert (await local("PUT", "/invariants", {"text": NEVER}, KEY)).body == made.body
    assert (await local("GET", "/invariants")).body["text"] == ""


async def test_another_caller_has_keys_of_its_own(callers: Callers, local: Client) -> None:
    new = {**KEY, "If-None-Match": "*"}
    assert (await local("PUT", "/grants/team", GRANT, new)).status == 201
    admin, reader = await callers("admin"), await callers("reader")
    assert (await admin("PUT", "/grants/team", GRANT, new)).status == 412
    assert (await reader("PUT", "/grants/team", GRANT, new)).reason == "POLICY_FORBIDDEN"
