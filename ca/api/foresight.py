"""burgee.foresight.v1.Foresight: what will run out, when, for whom, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from ca.api.convert.authorities import unix
from ca.api.convert.ids import seconds
from ca.authority.state import AuthorityKind, of_kind
from ca.errors import Unavailable
from ca.identity.spiffe_id import SpiffeId, server_id
from ca.ports import Clock, Finding
from ca.proto.burgee import foresight_pb2 as pb
from ca.proto.burgee import foresight_pb2_grpc
from ca.service.dependants import Dependants
from ca.service.issuance import IssueSettings
from ca.service.outage import Loss, without_authority, without_server
from ca.service.peers import AgentTable
from ca.service.readiness import holders
from ca.service.rotation import AuthorityManager
from ca.service.rotation_steps import LongestTtl
from ca.service.ttl_explained import Explained, asked_for, explain
from ca.service.upstream_link import UpstreamLink
from ca.store.authorized import AuthorizedIndex

CHECK_SECONDS = 60.0

Context = grpc.aio.ServicerContext[Any, Any]


class ForesightService(foresight_pb2_grpc.ForesightServicer):
    """Reads and changes nothing; the upstream's rehearsal leaves nothing behind."""

    def __init__(
        self,
        *,
        index: AuthorizedIndex,
        agents: AgentTable,
        settings: Callable[[], IssueSettings],
        ca_ttl_seconds: int,
        longest_ttl: LongestTtl,
        manager: AuthorityManager,
        dependants: Dependants,
        upstream: UpstreamLink | None,
        clock: Clock,
    ) -> None:
        self._index = index
        self._agents = agents
        self._settings = settings
        self._ca_ttl_seconds = ca_ttl_seconds
        self._longest_ttl = longest_ttl
        self._manager = manager
        self._dependants = dependants
        self._upstream = upstream
        self._clock = clock

    async def ExplainTtl(self, request: pb.ExplainTtlRequest, context: Context) -> pb.ExplainTtlResponse:
        spiffe_id, settings = SpiffeId.parse(request.spiffe_id), self._settings()
        asked = asked_for(
            spiffe_id,
            index=self._index,
            settings=settings,
            is_agent=self._agents.get(spiffe_id) is not None,
            is_server=spiffe_id == server_id(settings.trust_domain),
        )
        picture = await self._dependants.look()
        alive = [live for live in picture.alive if live.spiffe_id == str(spiffe_id)]
        explained = [
            explain(
                one,
                own=self._manager.authorities,
                ca_ttl_seconds=self._ca_ttl_seconds,
                backdate_seconds=settings.backdate_seconds,
                alive=alive,
                now=self._clock.now(),
            )
            for one in asked
        ]
        return pb.ExplainTtlResponse(ttls=[_ttl(one) for one in explained])

    async def GetOutageBudget(self, request: pb.GetOutageBudgetRequest, context: Context) -> pb.OutageBudget:
        now, picture = self._clock.now(), await self._dependants.look()
        own = self._manager.authorities
        keys = of_kind(self._manager.journal.authorities, AuthorityKind.JWT)
        ends = [end for key in keys if (end := picture.of(key, ()).last_not_after) is not None]
        longest = {kind: await self._longest_ttl(kind) for kind in AuthorityKind}
        server = without_server(
            alive=picture.alive,
            agents=[(str(agent.id), end) for agent, end in holders(self._agents, now)],
            tokens_end=max(ends, default=None),
            now=now,
        )
        return pb.OutageBudget(
            now=seconds(now), server=_losses(server), authority=_losses(without_authority(own, longest))
        )

    async def CheckUpstream(self, request: pb.CheckUpstreamRequest, context: Context) -> pb.CheckUpstreamResponse:
        if self._upstream is None:
            return pb.CheckUpstreamResponse()
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                findings = await self._upstream.check()
        except TimeoutError:
            raise Unavailable(
                f"the upstream's check was not over within {CHECK_SECONDS:g} s", reason="UPSTREAM_SILENT"
            ) from None
        return pb.CheckUpstreamResponse(
            configured=True, plugin=self._upstream.name, findings=[_finding(one) for one in findings]
        )


def _ttl(one: Explained) -> pb.Ttl:
    return pb.Ttl(
        kind=one.asked.kind.value,
        entry_id=one.asked.entry_id,
        asked_seconds=one.asked.seconds,
        asked_by=one.asked.by,
        granted_seconds=one.granted_seconds,
        caps=[pb.Cap(reason=cap.reason, detail=cap.detail, not_after=seconds(cap.not_after)) for cap in one.caps],
        cut_from=unix(one.cut_from),
        advice=one.advice,
        alive=one.alive,
        first_not_after=unix(one.first_not_after),
    )


def _losses(losses: Sequence[Loss]) -> list[pb.Loss]:
    return [
        pb.Loss(
            what=one.what,
            at=seconds(one.at),
            who=one.who,
            count=one.count,
            half_at=unix(one.half_at),
            last_at=unix(one.last_at),
        )
        for one in losses
    ]


def _finding(one: Finding) -> pb.Finding:
    return pb.Finding(what=one.what, level=one.level.value, detail=one.detail, hint=one.hint)
