"""burgee.admin.v1.Admin: the server's state, and minting that says why a life is shorter than asked."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import grpc

from ca.api.convert.ids import seconds
from ca.api.convert.svids import jwt_message, lifetime_message, x509_message
from ca.api.svid import audience, minted_id, require_csr
from ca.identity.spiffe_id import TrustDomain
from ca.proto.burgee import admin_pb2 as pb
from ca.proto.burgee import admin_pb2_grpc
from ca.runtime.health import Health
from ca.service.feed import Feed
from ca.service.issuance import Issuer
from ca.service.issuance_jwt import JwtIssuer

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(admin_pb2_grpc.AdminServicer):
    """Beside SPIRE's services, for the same callers as their administration."""

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        issuer: Issuer,
        tokens: JwtIssuer,
        feed: Feed,
        health: Health,
        version: str,
        started_at: datetime,
    ) -> None:
        self._trust_domain = trust_domain
        self._issuer = issuer
        self._tokens = tokens
        self._feed = feed
        self._health = health
        self._version = version
        self._started_at = started_at

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        problems = self._health.problems()
        return pb.Status(
            trust_domain=self._trust_domain.name,
            version=self._version,
            started_at=seconds(self._started_at),
            ready=not problems,
            problems=[pb.Problem(reason=p.reason, detail=p.detail, hint=p.hint) for p in problems.values()],
            store_epoch=self._feed.epoch,
            revision=self._feed.revision,
            connected_agents=self._feed.connected,
        )

    async def MintX509SVID(self, request: pb.MintX509SVIDRequest, context: Context) -> pb.MintX509SVIDResponse:
        svid = await self._issuer.mint_x509(require_csr(request.csr), request.ttl_seconds)
        return pb.MintX509SVIDResponse(svid=x509_message(svid), lifetime=lifetime_message(svid.lifetime))

    async def MintJWTSVID(self, request: pb.MintJWTSVIDRequest, context: Context) -> pb.MintJWTSVIDResponse:
        spiffe_id = minted_id(request, self._trust_domain)
        svid = await self._tokens.mint(spiffe_id, audience(request.audience), request.ttl_seconds)
        return pb.MintJWTSVIDResponse(svid=jwt_message(svid), lifetime=lifetime_message(svid.lifetime))
