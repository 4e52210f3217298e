"""The calls by which `caadmin bundle` asks for bundles, and a shell's completion of trust domains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ca.cli.bundle_values import from_wire
from ca.cli.connection import CALL_SECONDS, SERVER_VARIABLE, channel, server_socket
from ca.errors import BurgeeError
from ca.identity.spiffe_id import TrustDomain

if TYPE_CHECKING:
    import grpc

    from ca.identity.bundle import TrustBundle
    from ca.proto.spire import server_bundle_pb2_grpc, types_pb2

PAGE = 500
COMPLETION_SECONDS = 2.0


def bundle_stub(opened: grpc.Channel) -> server_bundle_pb2_grpc.BundleStub:
    """The server's Bundle service."""
    from ca.proto.spire import server_bundle_pb2_grpc

    return server_bundle_pb2_grpc.BundleStub(opened)


def bundle_of(stub: server_bundle_pb2_grpc.BundleStub, wanted: TrustDomain | None) -> TrustBundle:
    """The server's own bundle, or another's; the own one by its name as well. Raises grpc.RpcError."""
    from ca.proto.spire import server_bundle_pb2, types_pb2

    if wanted is not None:
        only_name = server_bundle_pb2.GetBundleRequest(output_mask=types_pb2.BundleMask())
        if stub.GetBundle(only_name, timeout=CALL_SECONDS).trust_domain != wanted.name:
            request = server_bundle_pb2.GetFederatedBundleRequest(trust_domain=wanted.name)
            return from_wire(stub.GetFederatedBundle(request, timeout=CALL_SECONDS))
    return from_wire(stub.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=CALL_SECONDS))


def held_bundle(stub: server_bundle_pb2_grpc.BundleStub, domain: TrustDomain) -> TrustBundle | None:
    """The bundle of another trust domain as the server has it. Raises grpc.RpcError."""
    import grpc

    from ca.proto.spire import server_bundle_pb2

    request = server_bundle_pb2.GetFederatedBundleRequest(trust_domain=domain.name)
    try:
        return from_wire(stub.GetFederatedBundle(request, timeout=CALL_SECONDS))
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
            return None  # for the own trust domain the call that follows says why not
        raise


def federated_bundles(
    stub: server_bundle_pb2_grpc.BundleStub, mask: types_pb2.BundleMask | None = None, seconds: float = CALL_SECONDS
) -> Iterator[TrustBundle]:
    """All bundles of other trust domains, page by page. Raises grpc.RpcError."""
    from ca.proto.spire import server_bundle_pb2

    request = server_bundle_pb2.ListFederatedBundlesRequest(page_size=PAGE, output_mask=mask)
    while True:
        page = stub.ListFederatedBundles(request, timeout=seconds)
        yield from map(from_wire, page.bundles)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def complete(context: typer.Context, incomplete: str) -> list[str]:
    """Trust domains whose bundles the server has, for the shell; nothing where it cannot be asked."""
    from ca.proto.spire import types_pb2

    given = context.params.get("socket") or os.environ.get(SERVER_VARIABLE)
    try:
        with channel(server_socket(Path(given) if given else None)) as opened:
            found = federated_bundles(bundle_stub(opened), types_pb2.BundleMask(), COMPLETION_SECONDS)
            names = [bundle.trust_domain.name for bundle in found]
    except BurgeeError:
        return []
    return [name for name in names if name.startswith(incomplete)]
