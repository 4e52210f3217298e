"""Bundles of other trust domains, from the administrator's call to the workload's stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from ca.proto.burgee import workload_pb2 as wl
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import server_bundle_pb2_grpc, types_pb2
from tests.ca.api.test_own_bundle import a_root
from tests.support.pair import TRUST_DOMAIN, pair
from tests.support.workload_client import WorkloadClient

FED = "spiffe://fed.org"


class Seen:
    """What a workload's two bundle-carrying streams said last."""

    def __init__(self, client: WorkloadClient) -> None:
        self.svids: wl.X509SVIDResponse | None = None
        self.bundles: wl.X509BundlesResponse | None = None
        self._tasks = [
            asyncio.ensure_future(self._follow(client.x509_svids(), "svids")),
            asyncio.ensure_future(self._follow(client.x509_bundles(), "bundles")),
        ]

    async def _follow(self, stream: Any, name: str) -> None:
        async for message in stream:
            setattr(self, name, message)

    def of_fed(self) -> tuple[bytes, bytes]:
        """The foreign bundle as either stream has it; empty where it is not there."""
        assert self.svids is not None
        assert self.bundles is not None
        return self.svids.federated_bundles.get(FED, b""), self.bundles.bundles.get(FED, b"")

    async def until(self, holds: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while self.svids is None or self.bundles is None or not holds():
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.02)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


@pytest.mark.parametrize(
    ("push", "seconds"),
    [pytest.param(True, 5, id="pushed"), pytest.param(False, 20, id="polled", marks=pytest.mark.slow)],
)
async def test_a_workload_sees_them_come_change_and_go(push: bool, seconds: float) -> None:
    first, second = a_root("one"), a_root("two")
    with pair(server={"push_service": push}) as nodes:
        async with grpc.aio.insecure_channel(f"unix:{nodes.admin_socket}") as channel:
            admin: Any = server_bundle_pb2_grpc.BundleStub(channel)
            await put(admin, first)
            nodes.create_entry("/federated", federates_with=["fed.org"])
            async with WorkloadClient(str(nodes.workload_socket)) as client:
                seen = await patiently(client, seconds)
                await seen.until(lambda: seen.of_fed() == (first, first), seconds)
                await put(admin, second)
                await seen.until(lambda: seen.of_fed() == (second, second), seconds)
                mode = pb.BatchDeleteFederatedBundleRequest.DISSOCIATE
                request = pb.BatchDeleteFederatedBundleRequest(trust_domains=["fed.org"], mode=mode)
                assert [r.status.code for r in (await admin.BatchDeleteFederatedBundle(request)).results] == [0]
                await seen.until(lambda: seen.of_fed() == (b"", b""), seconds)
                assert seen.svids is not None
                assert seen.svids.svids[0].spiffe_id == f"spiffe://{TRUST_DOMAIN}/federated"
                seen.close()


async def patiently(client: WorkloadClient, seconds: float) -> Seen:
    """Streams that begin once there is an identity."""
    async with asyncio.timeout(seconds):
        while True:
            seen = Seen(client)
            try:
                await seen.until(lambda: True, seconds)
                return seen
            except grpc.aio.AioRpcError as error:
                seen.close()
                if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                    raise
                await asyncio.sleep(0.1)


async def put(admin: Any, root: bytes) -> None:
    bundle = types_pb2.Bundle(trust_domain="fed.org", x509_authorities=[types_pb2.X509Certificate(asn1=root)])
    answer = await admin.BatchSetFederatedBundle(pb.BatchSetFederatedBundleRequest(bundle=[bundle]))
    assert [result.status.code for result in answer.results] == [0]
