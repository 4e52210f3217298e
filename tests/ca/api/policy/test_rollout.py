"""How far policies have come: what an agent says it has is held against what it was sent."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.ca.api.policy.conftest import policy
from tests.ca.api.policy.http import Client
from tests.ca.api.test_node import Stream
from tests.support.server import RunningServer, entry


async def agents(local: Client) -> list[tuple[str, int, int | None]]:
    told = (await local("GET", "/rollout")).body["agents"]
    return [(one["state"], one["sent"], one["revision"]) for one in told]


async def becomes(local: Client, wanted: list[tuple[str, int, int | None]]) -> None:
    async with asyncio.timeout(20):
        while await agents(local) != wanted:
            await asyncio.sleep(0.02)


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
