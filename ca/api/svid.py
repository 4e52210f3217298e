"""spire.api.server.svid.v1.SVID: X.509- and JWT-SVIDs for agents' workloads, and minted ones for administrators."""

from __future__ import annotations

from typing import Any

import grpc

from ca.api.access import current_agent, current_downstream
from ca.api.batch_refusals import log_refused
from ca.api.convert.ids import workload_id
from ca.api.convert.status import failed, ok
from ca.api.convert.svids import fill_jwt, fill_x509, jwt_message, x509_message
from ca.api.convert.text import named
from ca.api.later import WIT, later
from ca.api.limits import Limits
from ca.errors import BurgeeError, Exhausted, InvalidArgument, NotFound, Unimplemented
from ca.identity.entry import RegistrationEntry
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.spire import server_svid_pb2 as pb
from ca.proto.spire import server_svid_pb2_grpc
from ca.service.issuance import Issuer, WorkloadRequest, count_refused
from ca.service.issuance_ca import DownstreamIssuer
from ca.service.issuance_jobs import IssuedX509
from ca.service.issuance_jwt import JwtIssuer
from ca.service.trust import Trust
from ca.store.authorized import AuthorizedIndex

MAX_CSRS = 500
"""CSRs of one BatchNewX509SVID, as many as SPIRE's agents ever send."""

_NOT_FOUND = NotFound("entry not found or not authorized", reason="ENTRY_NOT_AUTHORIZED")
_NO_ENTRY = InvalidArgument("missing entry ID", reason="ENTRY_ID_MISSING")
_NO_CSR = InvalidArgument("missing CSR", reason="CSR_MISSING")

Context = grpc.aio.ServicerContext[Any, Any]
_Result = pb.BatchNewX509SVIDResponse.Result
_OK = ok()


class SvidService(server_svid_pb2_grpc.SVIDServicer):
    """Checks whose entry it is; the issuer does the rest."""

    def __init__(
        self,
        *,
        trust: Trust,
        issuer: Issuer,
        tokens: JwtIssuer,
        downstream: DownstreamIssuer,
        index: AuthorizedIndex,
        limits: Limits,
    ) -> None:
        self._trust = trust
        self._trust_domain = trust.trust_domain
        self._issuer = issuer
        self._tokens = tokens
        self._downstream = downstream
        self._index = index
        self._limits = limits

    async def MintX509SVID(self, request: pb.MintX509SVIDRequest, context: Context) -> pb.MintX509SVIDResponse:
        async with self._limits.x509(1):
            svid = await self._issuer.mint_x509(require_csr(request.csr), request.ttl)
        return pb.MintX509SVIDResponse(svid=x509_message(svid))

    async def MintJWTSVID(self, request: pb.MintJWTSVIDRequest, context: Context) -> pb.MintJWTSVIDResponse:
        spiffe_id = minted_id(request, self._trust_domain)
        async with self._limits.jwt():
            svid = await self._tokens.mint(spiffe_id, audience(request.audience), request.ttl)
        return pb.MintJWTSVIDResponse(svid=jwt_message(svid))

    async def BatchNewX509SVID(
        self, request: pb.BatchNewX509SVIDRequest, context: Context
    ) -> pb.BatchNewX509SVIDResponse:
        if not request.params:
            raise InvalidArgument("missing parameters", reason="PARAMETERS_MISSING")
        if len(request.params) > MAX_CSRS:
            raise Exhausted(
                f"{len(request.params)} CSRs in one call; at most {MAX_CSRS} are accepted", reason="BATCH_TOO_LARGE"
            )
        agent_id = current_agent().id
        asked = list(request.params)
        wanted = [self._wanted(agent_id, params) for params in asked]
        requests = [item for item in wanted if isinstance(item, WorkloadRequest)]
        async with self._limits.x509(len(wanted)):
            issued = iter(await self._issuer.for_workloads(agent_id, requests))
        outcomes = [next(issued) if isinstance(item, WorkloadRequest) else _counted(item) for item in wanted]
        log_refused(
            agent_id,
            (
                (params.entry_id, outcome)
                for params, outcome in zip(asked, outcomes, strict=True)
                if isinstance(outcome, BurgeeError)
            ),
        )
        response = pb.BatchNewX509SVIDResponse()
        add = response.results.add
        for outcome in outcomes:
            _fill(add(), outcome)
        return response

    async def NewJWTSVID(self, request: pb.NewJWTSVIDRequest, context: Context) -> pb.NewJWTSVIDResponse:
        names = audience(request.audience)
        agent_id = current_agent().id
        entry = self._index.get(agent_id, request.entry_id)
        if entry is None:
            raise NotFound(_NOT_FOUND.detail, reason=_NOT_FOUND.reason)
        async with self._limits.jwt():
            svid = await self._tokens.for_workload(agent_id, entry, names)
        response = pb.NewJWTSVIDResponse()
        fill_jwt(response.svid, svid)
        return response

    MintWITSVID = later(WIT)

    async def BatchNewWITSVID(self, request: pb.BatchNewWITSVIDRequest, context: Context) -> pb.BatchNewWITSVIDResponse:
        if not request.params:
            raise InvalidArgument("missing parameters", reason="PARAMETERS_MISSING")
        raise Unimplemented(WIT, reason="NOT_BUILT")

    async def NewDownstreamX509CA(
        self, request: pb.NewDownstreamX509CARequest, context: Context
    ) -> pb.NewDownstreamX509CAResponse:
        async with self._limits.x509(1):
            issued = await self._downstream.issue(current_downstream(), request.csr, request.preferred_ttl)
        return pb.NewDownstreamX509CAResponse(
            ca_cert_chain=issued.chain,
            x509_authorities=[authority.certificate for authority in self._trust.own.x509_authorities],
        )

    def _wanted(self, agent_id: SpiffeId, params: pb.NewX509SVIDParams) -> WorkloadRequest | BurgeeError:
        entry_id, csr = params.entry_id, params.csr
        if not entry_id:
            return _NO_ENTRY
        if not csr:
            return _NO_CSR
        entry: RegistrationEntry | None = self._index.get(agent_id, entry_id)
        return _NOT_FOUND if entry is None else WorkloadRequest(entry, csr)


def audience(names: Any) -> tuple[str, ...]:
    """In the order given, empty ones dropped. At least one must stay."""
    kept = tuple(name for name in names if name)
    if not kept:
        raise InvalidArgument("at least one audience is required", reason="AUDIENCE_MISSING")
    return kept


def require_csr(csr: bytes) -> bytes:
    if not csr:
        raise InvalidArgument(_NO_CSR.detail, reason=_NO_CSR.reason)
    return csr


def minted_id(request: Any, own: TrustDomain) -> SpiffeId:
    message = request.id if request.HasField("id") else None
    return named("invalid SPIFFE ID", lambda: workload_id(message, own))


def _counted(error: BurgeeError) -> BurgeeError:
    """An item that the issuer, which counts its own, never saw."""
    count_refused("x509", error.reason)
    return error


def _fill(result: _Result, outcome: IssuedX509 | BurgeeError) -> None:
    if isinstance(outcome, BurgeeError):
        result.status.CopyFrom(failed(outcome))
    else:
        result.status.CopyFrom(_OK)
        fill_x509(result.svid, outcome)
