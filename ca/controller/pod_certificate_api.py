"""The server's part in answering a request: its entries say who the pod is, and it signs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

import grpc

from ca.controller.entry_api import AdminChannel
from ca.controller.pod_certificate_answer import Issued
from ca.controller.pod_certificate_request import MIN_SECONDS, Request
from ca.errors import BurgeeError, Code, Unavailable
from ca.identity.exchange import requester
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.proto.burgee import issuing_pb2 as pb
from ca.proto.burgee import issuing_pb2_grpc
from ca.proto.spire import types_pb2
from ca.runtime.rpc_errors import error_of

CALL_SECONDS = 20.0
_NO_ANSWER = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED})


class PodCertificateApi:
    """Asks in the words of the `k8s_psat` attestor: below the agent that the pod's node has, or would have."""

    def __init__(self, channel: AdminChannel, *, trust_domain: TrustDomain, cluster: str) -> None:
        self._channel = channel
        self._trust_domain = trust_domain
        self._cluster = cluster
        self._opening = asyncio.Lock()

    async def issue(self, request: Request, selectors: frozenset[Selector]) -> Issued:
        """Raises what the server reported, and Unavailable where it cannot be asked."""
        message = self._message(request, selectors)
        answer = await self._call(message)
        if isinstance(answer, BurgeeError):
            raise answer
        return Issued(
            chain=tuple(answer.svid.cert_chain),
            spiffe_id=f"spiffe://{answer.svid.id.trust_domain}{answer.svid.id.path}",
            entry_id=answer.entry_id,
            not_before=datetime.fromtimestamp(answer.not_before, UTC),
            not_after=datetime.fromtimestamp(answer.not_after, UTC),
        )

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, message: pb.IssueX509SVIDRequest) -> pb.IssueX509SVIDResponse | BurgeeError:
        """A refusal is an answer: the channel that brought it is a good one, and others use it now."""
        async with self._opening, self._channel.use():
            pass
        async with self._channel.use() as channel:
            stub: issuing_pb2_grpc.IssuingAsyncStub = issuing_pb2_grpc.IssuingStub(channel)
            try:
                return await stub.IssueX509SVID(message, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                found = error_of(error)
                if found.code in _NO_ANSWER:
                    raise
                return found
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                raise Unavailable("the connection to the server was given up", reason="UNREACHABLE") from error

    def _message(self, request: Request, selectors: frozenset[Selector]) -> pb.IssueX509SVIDRequest:
        csr, wanted = request.csr(), request.wanted_id()
        node = {
            "cluster": self._cluster,
            "agent_node_name": request.node_name,
            "agent_node_uid": request.node_uid,
        }
        message = pb.IssueX509SVIDRequest(
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
            message.spiffe_id.CopyFrom(_id(wanted))
        return message


def _id(value: SpiffeId) -> types_pb2.SPIFFEID:
    return types_pb2.SPIFFEID(trust_domain=value.trust_domain.name, path=value.path)


def _selectors(values: Iterable[Selector]) -> list[types_pb2.Selector]:
    return [types_pb2.Selector(type=value.type, value=value.value) for value in sorted(values)]
