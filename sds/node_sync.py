"""One push stream: subscribe with the resume token, apply what comes, acknowledge what was taken over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

import grpc

from ca.errors import Unavailable
from ca.identity.bundle import TrustBundle
from ca.ports import Clock
from ca.proto.burgee import node_pb2, node_pb2_grpc
from ca.runtime.log import get
from sds.feed import BUNDLE, ENTRY, POLICY, Change, Feed, Held, ProxyState, Snapshot
from sds.first_trust import ServerTrust
from sds.server_link import ServerLink
from sds.wire import read_resources

ACK_PAUSE_SECONDS = 0.05
"""Between acknowledgements: the server counts them, and several changes in a row need one."""

KINDS = (ENTRY, BUNDLE)
SETTLED_SECONDS = 1.0
"""A stream that stands this long on a verified connection is live, although nothing has changed to push."""

Call = grpc.aio.StreamStreamCall[node_pb2.SyncRequest, node_pb2.SyncResponse]
log = get("sds.sync")


class SyncStream:
    """`run` raises when the stream ends: AioRpcError, Unavailable, or whatever the feed raised."""

    def __init__(
        self,
        *,
        link: ServerLink,
        clock: Clock,
        feed: Feed,
        trust: ServerTrust,
        version: str,
        synced: Callable[[], None],
    ) -> None:
        self._link = link
        self._clock = clock
        self._feed = feed
        self._trust = trust
        self._version = version
        self._synced = synced
        self._ack_due = asyncio.Event()
        self._sent: dict[str, tuple[int, Held]] = {}
        self._errors: dict[str, str] = {}
        self.live = False

    def acknowledge(self) -> None:
        self._ack_due.set()

    async def run(self) -> NoReturn:
        call = node_pb2_grpc.NodeStub(self._link.channel).Sync()
        helpers: list[asyncio.Task[None]] = []
        try:
            await call.write(node_pb2.SyncRequest(subscribe=self._subscription()))
            helpers = [asyncio.create_task(self._acknowledge(call)), asyncio.create_task(self._settle())]
            async for message in call:
                self._apply(message)
            raise Unavailable("the server ended the stream", reason="SERVER_ENDED_STREAM")
        finally:
            self.live = False
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            call.cancel()

    def _subscription(self) -> node_pb2.Subscribe:
        token = self._feed.token
        return node_pb2.Subscribe(store_epoch=token.epoch, revision=token.revision, agent_version=self._version)

    def _apply(self, message: node_pb2.SyncResponse) -> None:
        change, problems = read_resources(message)
        for kind, problem in problems.items():
            log.error("push holds what cannot be read", reason="PUSH_MALFORMED", kind=kind, detail=problem)
        self._errors.update(problems)
        try:
            self._hand_over(change, snapshot=message.snapshot)
        except Exception as error:
            self._errors.update(dict.fromkeys(KINDS, f"not applied: {type(error).__name__}"))
            raise
        finally:
            self.acknowledge()
        self._mark_live()

    def _hand_over(self, change: Change, *, snapshot: bool) -> None:
        own = next((b for b in change.bundles if self._is_own(b)), None)
        if own is not None:
            self._trust.update(own)
        if snapshot:
            everything = Snapshot(
                token=change.token, entries=change.entries, bundles=change.bundles, policies=change.policies
            )
            self._feed.on_snapshot(everything)
        else:
            self._feed.on_change(change)

    def _is_own(self, bundle: TrustBundle) -> bool:
        return bundle.trust_domain == self._trust.trust_domain

    async def _settle(self) -> None:
        """An unchanged world has nothing to push: the standing stream itself tells that we are in step."""
        while not self.live:
            await self._clock.sleep(SETTLED_SECONDS)
            if self._link.relay.address is not None:
                self._mark_live()

    def _mark_live(self) -> None:
        self.live = True
        self._synced()

    async def _acknowledge(self, call: Call) -> None:
        """Sends what is new since the last time, for each kind; several changes in a row make one message."""
        while True:
            await self._ack_due.wait()
            self._ack_due.clear()
            token = self._feed.token
            for kind in self._feed.kinds:
                held = self._feed.held(kind)
                now = (held.revision if kind == POLICY else token.revision, held)
                error = self._errors.pop(kind, "")
                if error or self._sent.get(kind) != now:
                    await call.write(node_pb2.SyncRequest(ack=_ack(kind, now, error or held.error)))
                    self._sent[kind] = now
            await self._clock.sleep(ACK_PAUSE_SECONDS)


def _ack(kind: str, state: tuple[int, Held], error: str) -> node_pb2.Ack:
    revision, held = state
    return node_pb2.Ack(
        kind=kind,
        revision=revision,
        error=error,
        consumers=held.consumers.total,
        consumers_acked=held.consumers.acked,
        waiting=held.consumers.waiting,
        bundle_sequence=held.sequence,
        authorities=held.authorities,
        workload_streams=held.workload_streams,
        svids=[node_pb2.Hanging(authority_id=name, count=count) for name, count in held.svids],
        proxies=map(_proxy, held.proxies),
    )


def _proxy(state: ProxyState) -> node_pb2.ProxyState:
    return node_pb2.ProxyState(
        proxy=state.proxy,
        pid=state.pid,
        spiffe_id=state.spiffe_id,
        resource=state.resource,
        revision=state.revision,
        state=state.state,
        detail=state.detail,
        unlogged=state.unlogged,
        in_force=state.in_force,
    )
