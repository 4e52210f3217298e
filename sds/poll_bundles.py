"""The trust bundles that an agent's entries need, asked for one by one as SPIRE's agents do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc

from ca.errors import BurgeeError, InvalidArgument
from ca.identity.bundle import TrustBundle
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import TrustDomain
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import server_bundle_pb2_grpc
from ca.runtime.log import get
from sds.wire import bundle_from_wire

CALL_SECONDS = 30.0
AT_ONCE = 10
"""Federated bundles under way at the same time."""

log = get("sds.polling")


async def read_bundles(
    channel: grpc.aio.Channel, own: TrustDomain, entries: Iterable[RegistrationEntry]
) -> dict[TrustDomain, TrustBundle]:
    """The own bundle and one for each trust domain that entries federate with, as far as the server has them.

    Raises AioRpcError as the server answered, InvalidArgument for an own bundle that is not one of `own`.
    """
    stub = server_bundle_pb2_grpc.BundleStub(channel)
    message = await stub.GetBundle(pb.GetBundleRequest(), timeout=CALL_SECONDS)
    bundles = {own: bundle_from_wire(message)}
    if bundles[own].trust_domain != own:
        raise InvalidArgument(f"the server's bundle is of `{bundles[own].trust_domain}`", reason="BUNDLE_OF_ANOTHER")
    names = sorted({domain.name for entry in entries for domain in entry.federates_with} - {own.name})
    gate = asyncio.Semaphore(AT_ONCE)

    async def read(name: str) -> TrustBundle | None:
        async with gate:
            return await _federated(stub, name)

    reads = [asyncio.create_task(read(name)) for name in names]
    try:
        found = await asyncio.gather(*reads)
    finally:
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
    return bundles | {bundle.trust_domain: bundle for bundle in found if bundle is not None}


async def _federated(stub: server_bundle_pb2_grpc.BundleAsyncStub, name: str) -> TrustBundle | None:
    """None when the server does not have it (yet, or any more), or has something that is no bundle of that name."""
    try:
        message = await stub.GetFederatedBundle(pb.GetFederatedBundleRequest(trust_domain=name), timeout=CALL_SECONDS)
        bundle = bundle_from_wire(message)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        log.debug("the server has no bundle of a trust domain that entries federate with", trust_domain=name)
        return None
    except BurgeeError as error:
        log.error("federated bundle is malformed", reason="BUNDLE_MALFORMED", trust_domain=name, detail=error.detail)
        return None
    return bundle if bundle.trust_domain.name == name else None
