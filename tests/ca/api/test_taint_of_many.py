"""A taint over the wire: a hundred agents on their push streams replace a thousand workloads' SVIDs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ca.authority.state import AuthorityKind, AuthorityState, find
from ca.proto.burgee import authority_pb2, node_pb2
from ca.proto.burgee.authority_pb2_grpc import AuthoritiesStub
from ca.proto.spire import server_svid_pb2, types_pb2
from sds.taint import taint_delay
from tests.support.server import Caller, RunningServer, entry, make_csr, running_server

AGENTS, WORKLOADS = 100, 10
KEY = ec.generate_private_key(ec.SECP256R1())


class Node:
    """An agent at the other end of a real connection, with the rhythm of ours."""

    def __init__(self, caller: Caller, entries: list[str]) -> None:
        self._caller = caller
        self._params = [server_svid_pb2.NewX509SVIDParams(entry_id=one, csr=make_csr(KEY)) for one in entries]
        self._call: Any = None

    async def issue(self) -> None:
        request = server_svid_pb2.BatchNewX509SVIDRequest(params=self._params)
        answer = await self._caller.svids.BatchNewX509SVID(request, timeout=60)
        assert [result.status.code for result in answer.results] == [0] * WORKLOADS

    async def open(self) -> None:
        self._call = self._caller.node.Sync()
        await self._call.write(node_pb2.SyncRequest(subscribe=node_pb2.Subscribe(agent_version="test")))
        await self._call.read()

    async def replace_after_taint(self) -> float:
        """When its last SVID was replaced."""
        while not _tells_of_a_taint(await self._call.read()):
            pass
        await asyncio.sleep(taint_delay(random.uniform(-1, 1)))
        await self.issue()
        return time.perf_counter()


def _tells_of_a_taint(push: node_pb2.SyncResponse) -> bool:
    bundles = [types_pb2.Bundle.FromString(one.payload) for one in push.resources if one.kind == "bundle"]
    return any(authority.tainted for bundle in bundles for authority in bundle.x509_authorities)


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


async def nodes(server: RunningServer) -> list[Node]:
    made = []
    for number in range(AGENTS):
        identity, caller = await server.agent()
        entries = await server.create(
            *(entry(f"/n{number}/w{one}", identity.path, f"t:{one}") for one in range(WORKLOADS))
        )
        made.append(Node(caller, [one.id for one in entries]))
        await made[-1].issue()
        await made[-1].open()
    return made


@pytest.mark.slow
async def test_a_thousand_svids_are_replaced_within_seconds(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Must take at most ten seconds, and aims at three."""
    crowd = await nodes(server)
    authority = server.server.authority
    old = find(authority.authorities, AuthorityState.ACTIVE, AuthorityKind.X509)
    assert old is not None
    new = await authority.prepare(AuthorityKind.X509)
    await authority.activate(AuthorityKind.X509, new.authority_id, force=True)
    waiting = [asyncio.create_task(node.replace_after_taint()) for node in crowd]
    began = time.perf_counter()
    await authority.taint(AuthorityKind.X509, old.authority_id)
    ends = await asyncio.gather(*waiting)
    took = max(ends) - began
    status = await AuthoritiesStub(server.local.channel).GetStatus(authority_pb2.GetStatusRequest(kind="x509"))
    left = {one.authority_id: one.hanging for one in status.authorities}
    with capsys.disabled():
        print(f"\ntaint to the last of {AGENTS * WORKLOADS} SVIDs of {AGENTS} agents: {took:.2f} s")
    assert left[old.authority_id] <= AGENTS + 1  # the agents' own, and the server's: they are renewed by themselves
    assert left[new.authority_id] >= AGENTS * WORKLOADS
    assert took <= 10
