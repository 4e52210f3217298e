"""spire.api.server.trustdomain.v1.TrustDomain: there are no federation relationships; bundles are kept by hand."""

from __future__ import annotations

from typing import Any

import grpc

from ca.api.convert.filters import page_token
from ca.api.convert.ids import trust_domain
from ca.api.convert.text import named
from ca.api.later import later
from ca.errors import NotFound
from ca.proto.spire import server_trustdomain_pb2 as pb
from ca.proto.spire import server_trustdomain_pb2_grpc, types_pb2
from ca.store.paging import parse_page_token

Context = grpc.aio.ServicerContext[Any, Any]
_LATER = "federation relationships are not yet implemented; keep the other trust domain's bundle up to date by hand"


class TrustDomainService(server_trustdomain_pb2_grpc.TrustDomainServicer):
    """Reads find nothing; writes answer Unimplemented."""

    async def ListFederationRelationships(
        self, request: pb.ListFederationRelationshipsRequest, context: Context
    ) -> pb.ListFederationRelationshipsResponse:
        token = page_token(request.page_size, request.page_token)
        if token:
            parse_page_token(token)
        return pb.ListFederationRelationshipsResponse()

    async def GetFederationRelationship(
        self, request: pb.GetFederationRelationshipRequest, context: Context
    ) -> types_pb2.FederationRelationship:
        named("failed to parse trust domain", lambda: trust_domain(request.trust_domain))
        raise NotFound("federation relationship does not exist", reason="RELATIONSHIP_NOT_FOUND")

    BatchCreateFederationRelationship = later(_LATER)
    BatchUpdateFederationRelationship = later(_LATER)
    BatchDeleteFederationRelationship = later(_LATER)
    RefreshBundle = later(_LATER)
