"""The server's part in answering a request: its entries say who the pod is, and it signs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ca.controller.entry_api import AdminChannel
from ca.controller.pod_certificate_answer import Issued
from ca.controller.pod_certificate_request import MIN_SECONDS, Request
from ca.errors import BurgeeError, Internal, Unavailable
from ca.identity.exchange import requester
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.burgee import issuing_pb2 as pb
from ca.proto.burgee import issuing_pb2_grpc
from ca.proto.spire import types_pb2

CALL_SECONDS = 20.0
MAX_AT_ONCE = 250
LINGER_SECONDS = 0.1
"""Who comes so shortly after another goes with it: a call costs the server four times what one more in it does."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    params: pb.IssueX509SVIDParams
    answer: asyncio.Future[pb.IssueX509SVIDResult]


class PodCertificateApi:
    """Asks in the words of the `k8s_psat` attestor: below the agent that the pod's node has, or would have."""

    def __init__(self, channel: AdminChannel, *, trust_domain: TrustDomain, cluster: str) -> None:
        self._channel = channel
        self._trust_domain = trust_domain
        self._cluster = cluster
        self._waiting: list[_Waiting] = []
        self._sender: asyncio.Task[None] | None = None

    async def issue(self, request: Request, selectors: frozenset[Selector]) -> Issued:
        """Raises what the server reported, and Unavailable where it cannot be asked."""
        waiting = _Waiting(self._params(request, selectors), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        answer = await waiting.answer
        if answer.HasField("refusal"):
            raise _refusal(answer.refusal)
        return Issued(
            chain=tuple(answer.svid.cert_chain),
            spiffe_id=f"spiffe://{answer.svid.id.trust_domain}{answer.svid.id.path}",
            entry_id=answer.entry_id,
            not_before=datetime.fromtimestamp(answer.not_before, UTC),
            not_after=datetime.fromtimestamp(answer.not_after, UTC),
        )

    async def close(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        await self._channel.close()

    async def _send(self) -> None:
        """One call at a time: what comes during one goes with the next, and costs the server's records but once."""
        while self._waiting:
            await asyncio.sleep(LINGER_SECONDS)
            batch, self._waiting = self._waiting[:MAX_AT_ONCE], self._waiting[MAX_AT_ONCE:]
            try:
                answers = await self._call([one.params for one in batch])
                for one, answer in zip(batch, answers, strict=True):
                    if not one.answer.done():  # whoever waited may have gone
                        one.answer.set_result(answer)
            except Exception as error:
                found = error if isinstance(error, BurgeeError) else Internal(f"{type(error).__name__} in a call")
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(found)
            finally:
                for one in batch:
                    one.answer.cancel()  # those that have an answer keep it

    async def _call(self, params: Sequence[pb.IssueX509SVIDParams]) -> Sequence[pb.IssueX509SVIDResult]:
        async with self._channel.use() as channel:
            stub: Any = issuing_pb2_grpc.IssuingStub(channel)
            answer = await stub.BatchIssueX509SVID(pb.BatchIssueX509SVIDRequest(params=params), timeout=CALL_SECONDS)
        if len(answer.results) != len(params):
            raise Unavailable("the server answered for another number of pods", reason="SERVER_ANSWER")
        results: Sequence[pb.IssueX509SVIDResult] = answer.results
        return results

    def _params(self, request: Request, selectors: frozenset[Selector]) -> pb.IssueX509SVIDParams:
        csr, wanted = request.csr(), request.wanted_id()
        node = {
            "cluster": self._cluster,
            "agent_node_name": request.node_name,
            "agent_node_uid": request.node_uid,
        }
        params = pb.IssueX509SVIDParams(
            csr=csr,
            agent_id=_id(SpiffeId.of(self._trust_domain, f"/spire/agent/k8s_psat/{self._cluster}/{request.node_uid}")),
            agent_selectors=_selectors(Selector("k8s_psat", f"{key}:{value}") for key, value in node.items()),
            selectors=_selectors(selectors),
            min_seconds=MIN_SECONDS,
            max_seconds=request.max_seconds,
            requester=requester("k8s_pod", self._cluster, f"{request.pod}@{request.node_name}"),
            share=f"{self._cluster}/{request.node_name}",
        )
        if wanted is not None:
            params.spiffe_id.CopyFrom(_id(wanted))
        return params


def _refusal(refusal: pb.IssueRefusal) -> BurgeeError:
    return BurgeeError(
        refusal.detail,
        reason=refusal.reason,
        hint=refusal.hint,
        retry_after_seconds=refusal.retry_after_seconds or None,
    )


def _id(value: SpiffeId) -> types_pb2.SPIFFEID:
    return types_pb2.SPIFFEID(trust_domain=value.trust_domain.name, path=value.path)


def _selectors(values: Iterable[Selector]) -> list[types_pb2.Selector]:
    return [types_pb2.Selector(type=value.type, value=value.value) for value in sorted(values)]
