"""burgee.issuing.v1.Issuing: an administrator vouches for a workload, and the entries say who it is."""

from __future__ import annotations

from typing import Any

import grpc

from ca.api.convert.ids import agent_id, seconds, selectors, workload_id
from ca.api.convert.svids import fill_x509
from ca.api.limits import Limits
from ca.api.svid import MAX_CSRS, require_csr
from ca.errors import BurgeeError, Denied, Exhausted, InvalidArgument
from ca.identity.exchange import MAX_REQUESTER_CHARACTERS, is_requester
from ca.identity.spiffe_id import TrustDomain
from ca.ports import Clock
from ca.proto.burgee import issuing_pb2 as pb
from ca.proto.burgee import issuing_pb2_grpc
from ca.service.issuance import count_refused
from ca.service.rates import TokenBuckets
from ca.service.vouched import Outcome, Vouched, VouchedIssuer

MAX_SELECTORS = 2_000
PER_SECOND, AT_ONCE = 10.0, 250.0
"""SVIDs of one share, such as a node: as many as a node has pods may come when it starts."""

Context = grpc.aio.ServicerContext[Any, Any]


class IssuingService(issuing_pb2_grpc.IssuingServicer):
    """Checks what is asked; `ca.service.vouched` does the rest."""

    def __init__(self, *, trust_domain: TrustDomain, vouched: VouchedIssuer, limits: Limits, clock: Clock) -> None:
        self._trust_domain = trust_domain
        self._vouched = vouched
        self._limits = limits
        self._clock = clock
        self._shares = TokenBuckets(per_second=PER_SECOND, burst_seconds=AT_ONCE / PER_SECOND)

    async def BatchIssueX509SVID(
        self, request: pb.BatchIssueX509SVIDRequest, context: Context
    ) -> pb.BatchIssueX509SVIDResponse:
        if not request.params:
            raise InvalidArgument("missing parameters", reason="PARAMETERS_MISSING")
        if len(request.params) > MAX_CSRS:
            raise Exhausted(
                f"{len(request.params)} CSRs in one call; at most {MAX_CSRS} are accepted", reason="BATCH_TOO_LARGE"
            )
        asked = [self._asked(params) for params in request.params]
        wanted = [one for one in asked if not isinstance(one, BurgeeError)]
        async with self._limits.x509(len(wanted)):
            issued = iter(await self._vouched.issue(wanted))
        response = pb.BatchIssueX509SVIDResponse()
        for params, one in zip(request.params, asked, strict=True):
            outcome = one if isinstance(one, BurgeeError) else next(issued)
            if isinstance(outcome, Denied):  # who is nobody costs those beside it nothing, however often it comes again
                self._shares.give_back(params.share, 1)
            _fill(response.results.add(), outcome)
        return response

    def _asked(self, params: pb.IssueX509SVIDParams) -> tuple[Vouched, bytes] | BurgeeError:
        try:
            asked = self._wanted(params), require_csr(params.csr)
            self._take(params.share)
        except BurgeeError as error:
            count_refused("x509", error.reason)
            return error
        return asked

    def _wanted(self, request: pb.IssueX509SVIDParams) -> Vouched:
        if len(request.selectors) > MAX_SELECTORS or len(request.agent_selectors) > MAX_SELECTORS:
            raise InvalidArgument(f"more than {MAX_SELECTORS} selectors", reason="SELECTORS_TOO_MANY")
        if not request.selectors:
            raise InvalidArgument("a workload without selectors is nobody", reason="SELECTORS_EMPTY")
        if request.min_seconds < 0 or request.max_seconds < 0:
            raise InvalidArgument("ttl is negative", reason="TTL_NEGATIVE")
        name = request.requester
        if not is_requester(name) or not name.isprintable() or len(name) > MAX_REQUESTER_CHARACTERS:
            raise InvalidArgument("a requester is `<kind>:<rest>`, on one line", reason="REQUESTER")
        return Vouched(
            agent_id=agent_id(request.agent_id, self._trust_domain),
            agent_selectors=frozenset(selectors(request.agent_selectors)),
            selectors=frozenset(selectors(request.selectors)),
            spiffe_id=workload_id(request.spiffe_id, self._trust_domain) if request.HasField("spiffe_id") else None,
            min_seconds=request.min_seconds,
            max_seconds=request.max_seconds,
            requester=name,
        )

    def _take(self, share: str) -> None:
        """Also of local callers: whose word is good passes on what others ask of it."""
        if not share:
            return
        wait = self._shares.take(share, 1, self._clock.monotonic())
        if wait:
            raise Exhausted(
                f"more than {PER_SECOND:g} SVIDs a second for one node",
                reason="RATE_LIMITED",
                retry_after_seconds=wait,
            )


def _fill(result: pb.IssueX509SVIDResult, outcome: Outcome) -> None:
    if isinstance(outcome, BurgeeError):
        result.refusal.code, result.refusal.reason = outcome.code.value, outcome.reason
        result.refusal.detail, result.refusal.hint = outcome.detail, outcome.hint
        result.refusal.retry_after_seconds = outcome.retry_after_seconds or 0.0
        return
    entry, svid = outcome
    fill_x509(result.svid, svid)
    result.entry_id = entry.id
    result.not_before, result.not_after = seconds(svid.lifetime.not_before), seconds(svid.lifetime.not_after)
