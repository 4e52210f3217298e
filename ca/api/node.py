"""burgee.node.v1.Node: the push stream between a node's agent and the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from ca.api.access import current_svid, denied
from ca.api.convert.acks import acknowledged
from ca.api.convert.bundles import bundle_message
from ca.api.convert.entries import entry_message
from ca.api.limits import Limits
from ca.errors import Denied, Exhausted, InvalidArgument, Unavailable
from ca.identity.svid import X509Svid
from ca.ports import Clock
from ca.proto.burgee import node_pb2 as pb
from ca.proto.burgee import node_pb2_grpc
from ca.service.acks import BUNDLE, ENTRY, POLICY
from ca.service.attestation import NodeAttestation
from ca.service.feed import KINDS, Feed, Session, Update
from ca.service.peers import AgentAuthorizer

POLICY_SET = "set"
"""The name of the one resource that an agent has of kind `policy`."""
HEARTBEAT_SECONDS = 30.0
"""An idle stream learns the current revision this often, so that its resume token stays fresh."""

Context = grpc.aio.ServicerContext[Any, Any]
_METHOD = "/burgee.node.v1.Node/Sync"


class NodeService(node_pb2_grpc.NodeServicer):
    """One task writes updates, one reads acknowledgements; rights are looked at before every push."""

    def __init__(
        self,
        *,
        feed: Feed,
        authorizer: AgentAuthorizer,
        attestation: NodeAttestation,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._feed = feed
        self._authorizer = authorizer
        self._attestation = attestation
        self._clock = clock
        self._limits = limits

    async def Sync(  # type: ignore[override]  # grpc.aio's reader-writer form, which the stubs do not know
        self, request_iterator: AsyncIterator[pb.SyncRequest], context: Context
    ) -> None:
        with self._limits.stream():
            await self._sync(current_svid(), context)

    async def GetTime(self, request: pb.GetTimeRequest, context: Context) -> pb.ServerTime:
        return pb.ServerTime(now_micros=round(self._clock.now().timestamp() * 1e6))

    async def _sync(self, svid: X509Svid, context: Context) -> None:
        first = await context.read()
        if not isinstance(first, pb.SyncRequest) or first.WhichOneof("step") != "subscribe":
            raise InvalidArgument("the first request must subscribe", reason="SUBSCRIBE_FIRST")
        subscribe = first.subscribe
        agent = await self._authorizer.authorize(svid)
        await self._attestation.post_status(agent, subscribe.agent_version)
        session, update = await self._feed.open(svid.id, epoch=subscribe.store_epoch, revision=subscribe.revision)
        reader = asyncio.ensure_future(self._read(svid, session, context))
        try:
            await self._write(svid, session, update, context, reader)
        finally:
            reader.cancel()
            self._feed.close(session)

    async def _write(
        self, svid: X509Svid, session: Session, update: Update, context: Context, reader: asyncio.Future[None]
    ) -> None:
        """Ends with the agent's half-close, or raises Denied when its rights end."""
        first, told, told_at = True, 0, 0.0
        while not reader.done():
            if self._feed.closing:
                raise Unavailable("server is stopping", reason="STOPPING", hint="connect again")
            if session.superseded:
                raise Exhausted(
                    f"{self._feed.streams_per_agent} newer streams of the same agent are open",
                    reason="STREAM_SUPERSEDED",
                    hint="an agent needs one; is it started more than once?",
                )
            self._check(svid)
            stale = update.revision > told and self._clock.monotonic() >= told_at + HEARTBEAT_SECONDS
            if first or stale or not update.empty:
                await context.write(self._message(update))
                first, told, told_at = False, update.revision, self._clock.monotonic()
            await session.wait(self._pause(svid))
            update = session.take()
        await reader

    async def _read(self, svid: X509Svid, session: Session, context: Context) -> None:
        try:
            while True:
                request = await context.read()
                if not isinstance(request, pb.SyncRequest):
                    return
                self._limits.ack()
                if request.WhichOneof("step") == "ack":
                    self._acknowledge(svid, request.ack)
        finally:
            session.wake()

    def _check(self, svid: X509Svid) -> None:
        try:
            self._authorizer.check(svid)
        except Denied as cause:
            raise denied(_METHOD, cause) from cause

    def _pause(self, svid: X509Svid) -> float:
        left = (svid.not_after - self._clock.now()).total_seconds()
        return min(HEARTBEAT_SECONDS, max(left, 0.0))

    def _acknowledge(self, svid: X509Svid, ack: pb.Ack) -> None:
        if ack.kind not in KINDS:
            raise InvalidArgument("an acknowledgement names a kind that was pushed", reason="ACK_KIND")
        self._feed.acknowledge(svid.id, ack.kind, acknowledged(ack, self._clock.now()))

    def _message(self, update: Update) -> pb.SyncResponse:
        """The whole update in one message, however large: a snapshot must not be seen by halves."""
        resources = [
            pb.Resource(kind=ENTRY, name=entry.id, payload=entry_message(entry).SerializeToString())
            for entry in update.entries
        ]
        resources += [
            pb.Resource(kind=BUNDLE, name=bundle.trust_domain.name, payload=bundle_message(bundle).SerializeToString())
            for bundle in update.bundles
        ]
        if update.policies is not None:
            resources.append(pb.Resource(kind=POLICY, name=POLICY_SET, payload=update.policies.payload))
        return pb.SyncResponse(
            store_epoch=update.epoch,
            revision=update.revision,
            snapshot=update.snapshot,
            resources=resources,
            removed=[pb.ResourceName(kind=kind, name=name) for kind, name in update.removed],
        )
