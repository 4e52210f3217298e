"""How far policies have come: what an agent says it has is held against what it was sent."""

from __future__ import annotations

from typing import Any

from ca.proto.burgee import node_pb2
from tests.ca.api.policy.conftest import policy
from tests.ca.api.policy.http import Client
from tests.ca.api.test_node import Stream
from tests.support.server import RunningServer, entry, eventually


async def agents(local: Client) -> list[tuple[str, int, int | None]]:
    told = (await local("GET", "/rollout")).body["agents"]
    return [(one["state"], one["sent"], one["revision"]) for one in told]


async def becomes(local: Client, wanted: list[tuple[str, int, int | None]]) -> None:
    async def so() -> bool:
        return await agents(local) == wanted

    await eventually(so, seconds=20)


async def put(local: Client, body: dict[str, Any]) -> None:
    names = body["metadata"]
    made = await local("PUT", f"/authorization-policies/{names['namespace']}/{names['name']}", body)
    assert made.status == 201, made.data


async def test_who_needs_nothing_of_a_revision_is_current_with_an_older_one(
    server: RunningServer, local: Client
) -> None:
    identity, caller = await server.agent()
    await server.create(entry("/w", identity.path, "k8s:ns:shop"))
    stream = Stream(caller)
    await stream.open()
    await put(local, policy())
    assert await agents(local) in ([("behind", 0, None)], [("behind", 1, None)])
    await stream.next()
    await stream.ack(kind="policy", revision=1)
    await becomes(local, [("current", 1, 1)])
    await put(local, policy(namespace="bank"))  # which is not for its workloads
    await becomes(local, [("current", 1, 1)])
    await put(local, policy("more"))
    assert (await agents(local))[0][0] == "behind"
    await stream.next()
    assert await agents(local) == [("behind", 3, 1)]
    await stream.ack(kind="policy", revision=1, error="cannot be read")
    await becomes(local, [("failed", 3, 1)])
    await stream.ack(kind="policy", revision=3)
    await becomes(local, [("current", 3, 3)])
    stream.cancel()
    await becomes(local, [("away", 0, 3)])


async def test_a_proxy_is_current_when_its_agent_is_and_it_has_that(server: RunningServer, local: Client) -> None:
    identity, caller = await server.agent()
    await server.create(entry("/w", identity.path, "k8s:ns:shop"))
    stream = Stream(caller)
    await stream.open()
    await put(local, policy())
    await stream.next()

    async def told(**proxy: Any) -> None:
        known = {"proxy": "p", "spiffe_id": "spiffe://example.org/w", "resource": "r", "state": "acked", "revision": 1}
        await stream.ack(kind="policy", revision=1, proxies=[node_pb2.ProxyState(**(known | proxy))])

    async def current(wanted: bool) -> None:
        async def so() -> bool:
            return [one["current"] for one in (await local("GET", "/rollout")).body["proxies"]] == [wanted]

        await eventually(so, seconds=20)

    await told()
    await current(True)
    await told(revision=0)
    await current(False)
    await told()
    await current(True)
    await told(state="sent")
    await current(False)
    await told()
    await current(True)
    await put(local, policy("more"))  # which its agent is sent
    await current(False)
