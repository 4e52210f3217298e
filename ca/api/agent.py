"""spire.api.server.agent.v1.Agent: attestation, renewal, and the administration of agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import empty_pb2

from ca.api.access import current_agent
from ca.api.convert.agents import agent_message
from ca.api.convert.entries import optional_mask
from ca.api.convert.filters import agent_filter, page_token
from ca.api.convert.ids import agent_id, seconds, workload_id
from ca.api.convert.svids import x509_message
from ca.api.convert.text import named
from ca.api.join_tokens import JoinTokens
from ca.api.limits import Limits
from ca.errors import Denied, InvalidArgument, NotFound, Unavailable
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.spire import server_agent_pb2 as pb
from ca.proto.spire import server_agent_pb2_grpc, types_pb2
from ca.service.attestation import NodeAttestation
from ca.service.follower import Follower
from ca.store.store import Store
from ca.store.values import AgentFilter

ATTESTATION_SECONDS = 60
"""One attestation, challenges included."""

ID_METADATA = "burgee-token-id"
"""Trailing metadata of CreateJoinToken: the token's ID."""

_TOKEN_REASONS = {
    "JOIN_TOKEN_UNKNOWN": "failed to attest: join token does not exist or has already been used",
    "JOIN_TOKEN_EXPIRED": "join token expired",
    "JOIN_TOKEN_REVOKED": "failed to attest: join token was revoked",
}

Context = grpc.aio.ServicerContext[Any, Any]


class AgentService(server_agent_pb2_grpc.AgentServicer):
    """Administration sees the store; the calling agent is the one that the authorizer found."""

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        store: Store,
        attestation: NodeAttestation,
        follower: Follower,
        tokens: JoinTokens,
        limits: Limits,
    ) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._attestation = attestation
        self._follower = follower
        self._tokens = tokens
        self._limits = limits

    async def CountAgents(self, request: pb.CountAgentsRequest, context: Context) -> pb.CountAgentsResponse:
        return pb.CountAgentsResponse(count=await self._store.agents.count(_filter(request)))

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        mask = optional_mask(request, "output_mask")
        page = await self._store.agents.find(
            _filter(request),
            page_size=request.page_size,
            page_token=page_token(request.page_size, request.page_token),
        )
        return pb.ListAgentsResponse(
            agents=[agent_message(agent, mask) for agent in page.items], next_page_token=page.next_token
        )

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> types_pb2.Agent:
        agent = await self._store.agents.get(self._id(request))
        if agent is None:
            raise NotFound("agent not found", reason="AGENT_NOT_FOUND")
        return agent_message(agent, optional_mask(request, "output_mask"))

    async def DeleteAgent(self, request: pb.DeleteAgentRequest, context: Context) -> empty_pb2.Empty:
        await self._attestation.evict(self._id(request))
        return empty_pb2.Empty()

    async def BanAgent(self, request: pb.BanAgentRequest, context: Context) -> empty_pb2.Empty:
        await self._attestation.ban(self._id(request))
        return empty_pb2.Empty()

    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: Context) -> types_pb2.JoinToken:
        alias = None
        if request.HasField("agent_id"):
            alias = named("invalid agent ID", lambda: workload_id(request.agent_id, self._trust_domain))
        made = await self._tokens.create(ttl_seconds=request.ttl, value=request.token, alias=alias)
        context.set_trailing_metadata(((ID_METADATA, made.id),))  # SPIRE's answer has no room for it
        return types_pb2.JoinToken(value=made.value, expires_at=seconds(made.expires_at))

    async def AttestAgent(  # type: ignore[override]  # grpc.aio's reader-writer form, which the stubs do not know
        self, request_iterator: AsyncIterator[pb.AttestAgentRequest], context: Context
    ) -> None:
        try:
            async with asyncio.timeout(ATTESTATION_SECONDS):
                await self._attest(context)
        except TimeoutError:
            raise Unavailable(f"attestation took longer than {ATTESTATION_SECONDS} seconds", reason="SLOW") from None

    async def RenewAgent(self, request: pb.RenewAgentRequest, context: Context) -> pb.RenewAgentResponse:
        if not request.params.csr:
            raise InvalidArgument("missing CSR", reason="CSR_MISSING")
        async with self._limits.renewal():
            svid = await self._attestation.renew(current_agent(), request.params.csr)
        return pb.RenewAgentResponse(svid=x509_message(svid))

    async def PostStatus(self, request: pb.PostStatusRequest, context: Context) -> pb.PostStatusResponse:
        self._limits.status()
        await self._attestation.post_status(current_agent(), request.agent_version)
        return pb.PostStatusResponse()

    def _id(self, request: Any) -> SpiffeId:
        message = request.id if request.HasField("id") else None
        return named("invalid agent ID", lambda: agent_id(message, self._trust_domain))

    async def _attest(self, context: Context) -> None:
        params = _params(await context.read())

        async def challenge(data: bytes) -> bytes:
            await context.write(pb.AttestAgentResponse(challenge=data))
            answer = await context.read()
            if not isinstance(answer, pb.AttestAgentRequest) or answer.WhichOneof("step") != "challenge_response":
                raise InvalidArgument("malformed param: missing challenge response", reason="ATTESTATION_PARAMS")
            return answer.challenge_response

        try:
            async with self._limits.attestation(challenge) as ask:
                done = await self._attestation.attest(
                    kind=params.data.type, payload=params.data.payload, csr=params.params.csr, challenge=ask
                )
        except Denied as denied:
            if denied.reason in _TOKEN_REASONS:  # the code that SPIRE's agents and tools see
                raise InvalidArgument(_TOKEN_REASONS[denied.reason], reason=denied.reason) from denied
            raise
        await self._follower.catch_up()  # what it is entitled to is known before it can ask
        result = pb.AttestAgentResponse.Result(svid=x509_message(done.svid), reattestable=done.reattestable)
        await context.write(pb.AttestAgentResponse(result=result))


def _params(request: Any) -> pb.AttestAgentRequest.Params:
    if not isinstance(request, pb.AttestAgentRequest) or request.WhichOneof("step") != "params":
        raise InvalidArgument("malformed param: missing params", reason="ATTESTATION_PARAMS")
    params = request.params
    if not params.HasField("data"):
        raise InvalidArgument("malformed param: missing attestation data", reason="ATTESTATION_PARAMS")
    if not params.data.type:
        raise InvalidArgument("malformed param: missing attestation data type", reason="ATTESTATION_PARAMS")
    if not params.params.csr:
        raise InvalidArgument("malformed param: missing CSR", reason="CSR_MISSING")
    return params


def _filter(request: pb.ListAgentsRequest | pb.CountAgentsRequest) -> AgentFilter:
    return agent_filter(request.filter)
