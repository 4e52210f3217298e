"""A write whose answer was lost is sent again, with the same key: it is answered as before, whatever it was."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ca.api.policy.conftest import policy, workload
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
