"""spire.api.server.bundle.v1.Bundle: our own trust bundle, and those of federated trust domains to read."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from ca.api.convert.bundles import bundle_message
from ca.api.convert.entries import optional_mask
from ca.api.convert.ids import trust_domain
from ca.api.convert.text import named
from ca.errors import InvalidArgument, NotFound, Unimplemented
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import server_bundle_pb2_grpc, types_pb2
from ca.service.trust import Trust

Context = grpc.aio.ServicerContext[Any, Any]


def _later(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """A method that authorization guards already and that is not built yet."""

    async def method(self: object, request: object, context: Context) -> object:
        raise Unimplemented(f"{name} is not yet implemented")

    return method


class BundleService(server_bundle_pb2_grpc.BundleServicer):
    """Answers from memory. Calls that are not built here answer Unimplemented, after authorization."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._seen: types_pb2.Bundle | None = None
        trust.on_change(lambda _: self._forget())

    async def GetBundle(self, request: pb.GetBundleRequest, context: Context) -> types_pb2.Bundle:
        if request.HasField("output_mask"):
            return bundle_message(self._trust.own, request.output_mask)
        if self._seen is None:
            self._seen = bundle_message(self._trust.own)
        return self._seen

    async def CountBundles(self, request: pb.CountBundlesRequest, context: Context) -> pb.CountBundlesResponse:
        return pb.CountBundlesResponse(count=len(self._trust.bundles))

    async def GetFederatedBundle(self, request: pb.GetFederatedBundleRequest, context: Context) -> types_pb2.Bundle:
        domain = named("trust domain argument is not valid", lambda: trust_domain(request.trust_domain))
        if domain == self._trust.trust_domain:
            raise InvalidArgument(
                "getting a federated bundle for the server's own trust domain is not allowed",
                reason="OWN_TRUST_DOMAIN",
                hint="GetBundle returns it",
            )
        bundle = self._trust.get(domain)
        if bundle is None:
            raise NotFound("bundle not found", reason="BUNDLE_NOT_FOUND")
        return bundle_message(bundle, optional_mask(request, "output_mask"))

    AppendBundle = _later("AppendBundle")
    PublishJWTAuthority = _later("PublishJWTAuthority")
    PublishWITAuthority = _later("PublishWITAuthority")
    ListFederatedBundles = _later("ListFederatedBundles")
    BatchCreateFederatedBundle = _later("BatchCreateFederatedBundle")
    BatchUpdateFederatedBundle = _later("BatchUpdateFederatedBundle")
    BatchSetFederatedBundle = _later("BatchSetFederatedBundle")
    BatchDeleteFederatedBundle = _later("BatchDeleteFederatedBundle")

    def _forget(self) -> None:
        self._seen = None
