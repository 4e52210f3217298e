"""Who holds a part of the book is answered exactly about that part, by all of the book, and learns of no other."""

from __future__ import annotations

from tests.ca.api.policy.conftest import ID, Callers, policy, workload

ORDERS = f"{ID}/ns/shop/sa/orders"
ADMIN_PATH = [{"to": [{"operation": {"paths": ["/admin"]}}]}]


async def test_what_an_author_of_one_namespace_sees_and_may_change(callers: Callers) -> None:
    local, author = await callers("local"), await callers("author")
    mesh = policy("no-admin", "istio-system", action="DENY", rules=ADMIN_PATH)
    objects = [workload(), workload("ledger", "bank"), mesh, policy("ledger", "bank", rules=[{}])]
    assert (await local("POST", "/apply", {"changes": [{"object": one} for one in objects]})).status == 200

    # By all of the book, although the denial is none that may be read
    mine = policy(rules=ADMIN_PATH)
    planned = await author("PUT", "/authorization-policies/shop/orders?dry_run=true", mine)
    assert (planned.status, planned.body["changed"]) == (200, 1)
    assert planned.body["difference"]["changes"] == []
    assert (await author("PUT", "/authorization-policies/shop/orders", mine)).status == 201
    asked = {"target": ORDERS, "request": {"method": "GET", "path": "/admin"}}
    found = (await author("POST", "/explain", asked)).body["explanation"]
    assert (found["allowed"], found["decisive"]["policy"]) == (False, "istio-system/no-admin")
    hidden = await author("GET", "/authorization-policies/istio-system/no-admin")
    assert (hidden.status, hidden.reason) == (403, "POLICY_FORBIDDEN")

    # Of others' there is nothing, and of a revision its own part
    assert [one["object"]["metadata"]["name"] for one in (await author("GET", "/workloads")).body["items"]] == [
        "orders"
    ]
    revision = (await author("GET", "/revisions/1")).body
    assert [one["namespace"] for one in revision["changes"]] == ["shop"]
    (listed,) = (await author("GET", "/revisions?cursor=&limit=5")).body["items"][1:]
    assert (listed["number"], listed["count"]) == (1, 4)
    refused = await author("POST", "/explain", {**asked, "target": f"{ID}/ns/bank/sa/ledger"})
    assert (refused.status, refused.reason) == (403, "POLICY_FORBIDDEN")

    # A rollback that changes others' is refused as a whole; one of the own alone is not
    assert (await local("PUT", "/authorization-policies/bank/more", policy("more", "bank"))).status == 201
    assert (await author("POST", "/revisions/2/rollback", {})).status == 403
    gone = {"kind": "AuthorizationPolicy", "namespace": "shop", "name": "orders"}
    deleted = await author("POST", "/apply", {"changes": [{"delete": gone, "force": True}]})
    assert (deleted.status, deleted.body["revision"]) == (200, 4)
    assert (await author("POST", "/revisions/3/rollback", {})).body["revision"] == 5
