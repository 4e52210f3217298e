"""What policies hold in, as callers are told it: with it they decide as the server does."""

from __future__ import annotations

from tests.ca.api.policy.conftest import ID, Callers, policy, workload
from tests.ca.api.policy.http import Client
from tests.support.server import entry, eventually, running_server


async def test_what_the_configuration_says_and_who_can_be_called() -> None:
    settings = {"trust_domain_aliases": ["old.org"], "open_namespaces": ["lab"], "ext_authz_providers": ["p"]}
    async with running_server(policy=settings) as server:
        local = Client(server)
        identity, _ = await server.agent()
        await server.create(entry("/ns/shop/sa/web", identity.path, "k8s:ns:shop", "k8s:pod-label:app:web"))
        changes = [{"object": workload()}, {"object": policy()}]
        assert (await local("POST", "/apply", {"changes": changes})).status == 200

        async def told() -> bool:
            return len((await local("GET", "/mesh")).body["targets"]) == 2

        await eventually(told)
        targets = [
            {
                "spiffe_id": f"{ID}/ns/shop/sa/{name}",
                "namespace": "shop",
                "labels": {"app": name},
                "references": [],
                "waypoint": False,
                "normalized": False,
            }
            for name in ("orders", "web")
        ]
        found = (await local("GET", "/mesh")).body
        assert sorted(found.pop("targets"), key=lambda one: str(one["spiffe_id"])) == targets
        assert found == {
            "revision": 1,
            "trust_domains": ["example.org", "old.org"],
            "root_namespace": "istio-system",
            "open_namespaces": ["lab"],
            "providers": ["p"],
        }


async def test_of_namespaces_that_the_caller_may_read(local: Client, callers: Callers) -> None:
    changes = [{"object": workload()}, {"object": workload("ledger", "bank")}]
    assert (await local("POST", "/apply", {"changes": changes})).status == 200
    seen = {name: (await (await callers(name))("GET", "/mesh")).body["targets"] for name in ("reader", "all-reader")}
    assert {name: sorted(one["namespace"] for one in targets) for name, targets in seen.items()} == {
        "reader": ["shop"],
        "all-reader": ["bank", "shop"],
    }
