"""burgee.admin.v1.Admin: the server's state, minting that says why a life is shorter than asked, records, pruning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import grpc

from ca.api.agent_explained import AgentExplainer
from ca.api.convert.ids import seconds, workload_id
from ca.api.convert.svids import jwt_message, lifetime_message, x509_message
from ca.api.convert.text import named
from ca.api.join_tokens import JoinTokens
from ca.api.records import PAGE, audited, issued
from ca.api.svid import audience, minted_id, require_csr
from ca.errors import InvalidArgument
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock
from ca.proto.burgee import admin_pb2 as pb
from ca.proto.burgee import admin_pb2_grpc, doctor_pb2
from ca.runtime.health import Health
from ca.service.doctor import ServerDoctor
from ca.service.feed import Feed
from ca.service.issuance import Issuer
from ca.service.issuance_jwt import JwtIssuer
from ca.service.pruning import PrunePolicy, Pruner
from ca.store.store import Store

MAX_AGE_SECONDS = 100 * 366 * 86400

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(admin_pb2_grpc.AdminServicer):
    """Beside SPIRE's services, for the same callers as their administration."""

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        issuer: Issuer,
        tokens: JwtIssuer,
        join_tokens: JoinTokens,
        feed: Feed,
        health: Health,
        version: str,
        started_at: datetime,
        store: Store,
        pruner: Pruner,
        clock: Clock,
        explainer: AgentExplainer,
        doctor: ServerDoctor,
    ) -> None:
        self._trust_domain = trust_domain
        self._issuer = issuer
        self._tokens = tokens
        self._join_tokens = join_tokens
        self._feed = feed
        self._health = health
        self._version = version
        self._started_at = started_at
        self._store = store
        self._pruner = pruner
        self._clock = clock
        self._explainer = explainer
        self._doctor = doctor
        self._stopping = asyncio.Event()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        return self.status()

    def status(self) -> pb.Status:
        """The state of now, also for the HTTP face."""
        problems = self._health.problems()
        return pb.Status(
            trust_domain=self._trust_domain.name,
            version=self._version,
            started_at=seconds(self._started_at),
            ready=not problems,
            problems=[pb.Problem(reason=p.reason, detail=p.detail, hint=p.hint) for p in problems.values()],
            store_epoch=self._store.epoch,
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

    async def ListIssued(self, request: pb.ListIssuedRequest, context: Context) -> AsyncIterator[pb.ListIssuedResponse]:
        async for page in issued(self._store.issuance, request, self._clock):
            yield page

    async def ListAudit(self, request: pb.ListAuditRequest, context: Context) -> AsyncIterator[pb.ListAuditResponse]:
        async for page in audited(self._store.audit, request, self._clock, self._stopping):
            yield page

    async def ListJoinTokens(
        self, request: pb.ListJoinTokensRequest, context: Context
    ) -> AsyncIterator[pb.ListJoinTokensResponse]:
        """By the time they expire."""
        known, now = await self._store.tokens.list(), self._clock.now()
        for start in range(0, len(known), PAGE):
            page = [self._join_tokens.info(token, now) for token in known[start : start + PAGE]]
            yield pb.ListJoinTokensResponse(tokens=page)

    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: Context) -> pb.CreateJoinTokenResponse:
        alias = None
        if request.HasField("agent_id"):
            alias = named("invalid agent ID", lambda: workload_id(request.agent_id, self._trust_domain))
        made = await self._join_tokens.create(
            ttl_seconds=request.ttl_seconds,
            value=request.token,
            alias=alias,
            name=request.name,
            uses=request.uses or 1,
        )
        return pb.CreateJoinTokenResponse(token=made.value, id=made.id, expires_at=seconds(made.expires_at))

    async def RevokeJoinToken(self, request: pb.RevokeJoinTokenRequest, context: Context) -> pb.JoinTokenInfo:
        return await self._join_tokens.revoke(request.name)

    async def Prune(self, request: pb.PruneRequest, context: Context) -> pb.PruneResponse:
        policy = _policy(self._pruner.policy, request)
        done = await (self._pruner.rehearse(policy) if request.dry_run else self._pruner.prune(policy))
        return pb.PruneResponse(
            agents=[str(agent) for agent in done.agents],
            entries=done.entries,
            join_tokens=done.join_tokens,
            used_evidence=done.used_evidence,
            issuance_batches=done.issuance_batches,
            audit_records=done.audit_records,
            changes=done.changes,
            policy_revisions=done.policy_revisions,
        )

    async def ExplainAgent(self, request: pb.ExplainAgentRequest, context: Context) -> pb.AgentExplanation:
        return self._explainer.explain(request.name)

    async def GetDoctorReport(self, request: doctor_pb2.DoctorRequest, context: Context) -> doctor_pb2.DoctorResponse:
        findings = await self._doctor.findings()
        return doctor_pb2.DoctorResponse(
            findings=[
                doctor_pb2.Finding(what=one.what, level=one.level.value, detail=one.detail, hint=one.hint)
                for one in findings
            ]
        )

    def drain(self) -> None:
        """The server stops: streams without an end of their own end."""
        self._stopping.set()


def _policy(configured: PrunePolicy, request: pb.PruneRequest) -> PrunePolicy:
    if not 0 <= request.agents_expired_for_seconds <= MAX_AGE_SECONDS:
        raise InvalidArgument("`agents_expired_for_seconds` is out of range", reason="PRUNE_AGE")
    given = request.agents_expired_for_seconds
    return replace(
        configured,
        agents_expired_for=timedelta(seconds=given) if given else configured.agents_expired_for,
        first_use_agents=request.first_use_agents or configured.first_use_agents,
    )
