"""What the agent tells its administrator: its state, and how far each Envoy's secrets got (burgee.agent.v1)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ca.ports import Clock
from ca.proto.burgee import agent_pb2, agent_pb2_grpc, doctor_pb2
from sds.cache import Cache
from sds.condition import Condition
from sds.envoy_status import SdsClient, SdsClients
from sds.envoy_subscriber import ResourceStatus
from sds.follower import Follower
from sds.jwt_cache import JwtCache
from sds.policy_held import HeldPolicies
from sds.workloads import Context

if TYPE_CHECKING:
    from sds.doctor import Doctor
    from sds.explain_api import Explainer


def agent_version() -> str:
    """This package's version, as told to servers and administrators."""
    try:
        return version("burgee")
    except PackageNotFoundError:
        return "unknown"


class AgentState:
    """What the agent says of itself. `identity` gives (SPIFFE ID, notAfter, reattestable), `server` an address,
    `sync_mode` push or poll."""

    def __init__(
        self,
        *,
        cache: Cache,
        jwts: JwtCache,
        clients: SdsClients,
        follower: Follower,
        condition: Condition,
        clock: Clock,
        identity: Callable[[], tuple[str, datetime | None, bool]],
        server: Callable[[], str],
        sync_mode: Callable[[], str],
        policies: HeldPolicies,
    ) -> None:
        self._policies = policies
        self._cache = cache
        self._jwts = jwts
        self._clients = clients
        self._follower = follower
        self._condition = condition
        self._clock = clock
        self._identity = identity
        self._server = server
        self._sync_mode = sync_mode
        self._started_at = clock.now()

    def status(self) -> agent_pb2.Status:
        """As of now."""
        spiffe_id, not_after, reattestable = self._identity()
        problem = self._condition.problem
        now = self._clock.now()
        svids = [svid for svid in self._cache.svids() if svid.not_after > now]
        return agent_pb2.Status(
            spiffe_id=spiffe_id,
            version=agent_version(),
            state=self._condition.state.value,
            reason=problem.reason if problem else "",
            detail=problem.detail if problem else "",
            started_at=_seconds(self._started_at),
            svid_not_after=_seconds(not_after),
            last_sync_at=_seconds(self._follower.last_sync_at),
            server_address=self._server(),
            entries=len(self._cache.entries()),
            x509_svids=len(svids),
            jwt_svids=len(self._jwts),
            workload_streams=max(self._cache.streams() - len(self._clients), 0),
            sds_streams=len(self._clients),
            reattestable=reattestable,
            store_epoch=self._follower.token.epoch,
            revision=self._follower.token.revision,
            first_workload_expiry=_seconds(min((svid.not_after for svid in svids), default=None)),
            sync_mode=self._sync_mode(),
            policy_revision=self._policies.revision,
            policy_detail=self._policies.detail,
        )


class AgentApi(agent_pb2_grpc.AgentServicer):
    """The service on the admin socket."""

    def __init__(
        self,
        *,
        state: AgentState,
        clients: SdsClients,
        explainer: Callable[[], Explainer],
        doctor: Callable[[], Doctor],
    ) -> None:
        self._state = state
        self._clients = clients
        self._explainer = explainer
        self._doctor = doctor

    async def GetStatus(self, request: agent_pb2.GetStatusRequest, context: Context) -> agent_pb2.Status:
        return self._state.status()

    async def ListSdsClients(
        self, request: agent_pb2.ListSdsClientsRequest, context: Context
    ) -> agent_pb2.ListSdsClientsResponse:
        return agent_pb2.ListSdsClientsResponse(clients=[_client(client) for client in self._clients.all()])

    async def ExplainWorkload(
        self, request: agent_pb2.ExplainWorkloadRequest, context: Context
    ) -> agent_pb2.WorkloadExplanation:
        return await self._explainer().explain(request)

    async def Doctor(self, request: doctor_pb2.DoctorRequest, context: Context) -> doctor_pb2.DoctorResponse:
        findings = await self._doctor().findings()
        return doctor_pb2.DoctorResponse(
            findings=[
                doctor_pb2.Finding(what=one.what, level=one.level.value, detail=one.detail, hint=one.hint)
                for one in findings
            ]
        )


def _client(client: SdsClient) -> agent_pb2.SdsClient:
    stream = client.stream
    return agent_pb2.SdsClient(
        stream=client.number,
        pid=client.pid,
        uid=client.uid,
        node_id=stream.node_id,
        user_agent=stream.user_agent,
        resources=[_resource(stream.statuses[name]) for name in sorted(stream.statuses)],
        connected_at=_seconds(client.connected_at),
    )


def _resource(status: ResourceStatus) -> agent_pb2.SdsResource:
    return agent_pb2.SdsResource(
        name=status.name,
        state=status.state.value,
        version=status.version,
        sent_at=_seconds(status.sent_at),
        answered_at=_seconds(status.answered_at),
        detail=status.detail,
    )


def _seconds(moment: datetime | None) -> int:
    return int(moment.timestamp()) if moment else 0
