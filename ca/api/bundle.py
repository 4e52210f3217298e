"""spire.api.server.bundle.v1.Bundle: our own trust bundle; those of federated trust domains are in the base class."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from ca.api.convert.bundles import (
    bundle_message,
    jwt_authorities,
    jwt_authority,
    jwt_authority_message,
    x509_authorities,
)
from ca.api.convert.entries import optional_mask
from ca.api.convert.text import named
from ca.api.federated_bundles import FederatedBundleMethods
from ca.api.later import WIT, later
from ca.errors import InvalidArgument
from ca.identity.bundle import JwtAuthority, TrustBundle, X509Authority
from ca.proto.spire import server_bundle_pb2 as pb
from ca.proto.spire import types_pb2
from ca.service.authority_values import append
from ca.service.follower import Follower
from ca.service.trust import Trust
from ca.store.store import Store

Context = grpc.aio.ServicerContext[Any, Any]


PublishUp = Callable[[JwtAuthority], Awaitable[Sequence[JwtAuthority]]]
"""Hands a JWT authority to the server above this one, if there is one; gives what our bundle is to hold then."""


class BundleService(FederatedBundleMethods):
    """Reads are answered from memory."""

    def __init__(self, *, trust: Trust, store: Store, follower: Follower, publish_up: PublishUp) -> None:
        super().__init__(trust=trust, store=store, follower=follower)
        self._publish_up = publish_up
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

    async def AppendBundle(self, request: pb.AppendBundleRequest, context: Context) -> types_pb2.Bundle:
        if not request.x509_authorities and not request.jwt_authorities:
            raise InvalidArgument("no authorities to append", reason="AUTHORITIES_MISSING")
        bundle = await self._append(
            named("failed to convert X.509 authority", lambda: x509_authorities(request.x509_authorities)),
            named("failed to convert JWT authority", lambda: jwt_authorities(request.jwt_authorities)),
        )
        return bundle_message(bundle, optional_mask(request, "output_mask"))

    async def PublishJWTAuthority(
        self, request: pb.PublishJWTAuthorityRequest, context: Context
    ) -> pb.PublishJWTAuthorityResponse:
        if not request.HasField("jwt_authority"):
            raise InvalidArgument("missing JWT authority", reason="AUTHORITIES_MISSING")
        authority = named("invalid JWT authority", lambda: jwt_authority(request.jwt_authority))
        bundle = await self._append((), await self._publish_up(authority))
        return pb.PublishJWTAuthorityResponse(
            jwt_authorities=[jwt_authority_message(member) for member in bundle.jwt_authorities]
        )

    PublishWITAuthority = later(WIT)

    async def _append(self, x509: Sequence[X509Authority], jwt: Sequence[JwtAuthority]) -> TrustBundle:
        own = self._trust.trust_domain
        bundle = await self._store.bundles.update(own, lambda before: append(before, x509, jwt))
        await self._follower.catch_up()
        return bundle

    def _forget(self) -> None:
        self._seen = None
