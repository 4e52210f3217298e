"""Envoy's secret discovery service, v3: streams that never end for a name that means nothing here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from ca.errors import Exhausted, InvalidArgument
from ca.ports import Clock
from ca.runtime.log import get
from sds.cache import Cache, Subscription
from sds.envoy_delta import DeltaStream
from sds.envoy_status import SdsClient, SdsClients
from sds.envoy_stream import SdsStream
from sds.envoy_subscriber import ResourceState, Subscriber, parse
from sds.limits import LimitsConfig
from sds.memory import Charge
from sds.request_pace import RequestPace
from sds.secrets import Form, SecretNames
from sds.workloads import Caller, Context, Workloads, quiet_exit

log = get("sds.envoy")

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
INBOX = 16
"""Requests of one stream that wait to be looked at; the next is not read before."""


class EnvoySds:
    """The service. `peer_of` gives the verified caller of a call; no header is asked for (SPIRE's agent neither)."""

    def __init__(
        self,
        *,
        peer_of: Callable[[Context], Caller],
        workloads: Workloads,
        cache: Cache,
        clients: SdsClients,
        clock: Clock,
        pace: RequestPace | None = None,
        names: SecretNames | None = None,
        validator: Form = Form.SPIFFE,
    ) -> None:
        self._peer_of = peer_of
        self._workloads = workloads
        self._cache = cache
        self._clients = clients
        self._clock = clock
        self._pace = pace or RequestPace(LimitsConfig().max_sds_requests_per_second_per_workload, clock)
        self._names = names or SecretNames()
        self._validator = validator

    def handler(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "StreamSecrets": grpc.stream_stream_rpc_method_handler(self._stream_secrets),
                "FetchSecrets": grpc.unary_unary_rpc_method_handler(self._fetch_secrets),
                "DeltaSecrets": grpc.stream_stream_rpc_method_handler(self._delta_secrets),
            },
        )

    async def _stream_secrets(self, requests: AsyncIterator[bytes], context: Context) -> None:
        await self._follow(requests, context, SdsStream(names=self._names, validator=self._validator))

    async def _delta_secrets(self, requests: AsyncIterator[bytes], context: Context) -> None:
        await self._follow(requests, context, DeltaStream(names=self._names, validator=self._validator))

    async def _follow(self, requests: AsyncIterator[bytes], context: Context, stream: Subscriber) -> None:
        caller = self._peer_of(context)
        # A starting agent has Envoy wait rather than come back after its own, growing, pauses.
        async with self._workloads.session(caller, needs_svid=True, patient=True) as subscription:
            stream.room = room = self._workloads.memory.room(subscription.share)
            client = self._clients.add(stream, pid=caller.pid or 0, uid=caller.uid or 0, now=self._clock.now())
            with room.charge() as held, room.charge() as waiting:
                inbox = Inbox(subscription, waiting, self._pace)
                reader = asyncio.create_task(inbox.fill(requests))
                try:
                    async with quiet_exit(context):
                        await self._serve(context, subscription, client, inbox, held)
                finally:
                    reader.cancel()
                    self._clients.remove(client)

    async def _serve(
        self, context: Context, subscription: Subscription, client: SdsClient, inbox: Inbox, held: Charge
    ) -> None:
        stream = client.stream
        while True:
            while (raw := inbox.next()) is not None:
                self._take_in(client, raw)
                held.set(stream.held_bytes())
                subscription.first = stream.roots_only
                await self._answer(context, subscription, stream, held)
                self._pace.looked_up(subscription.share, len(stream.statuses))
            if inbox.ended:
                subscription.check()
                return
            await self._answer(context, subscription, stream, held)
            await subscription.changed()

    async def _answer(self, context: Context, subscription: Subscription, stream: Subscriber, held: Charge) -> None:
        view = subscription.view
        content = self._cache.content(view)
        response = stream.respond(content, settled=view.settled, now=self._clock.now())
        if response is not None:
            held.set(stream.held_bytes())
            await context.write(response)
            self._clients.moved()

    def _take_in(self, client: SdsClient, raw: bytes) -> None:
        stream = client.stream
        pending = [status for status in stream.statuses.values() if status.state is ResourceState.SENT]
        stream.take_in(raw, self._clock.now())
        rejected = [status for status in pending if status.state is ResourceState.NACKED]
        for status in rejected:
            log.warning(
                "an Envoy rejected a secret",
                reason="SDS_NACK",
                name=status.name,
                pid=client.pid,
                node=stream.node_id,
                detail=status.detail,
            )
        if pending:
            self._clients.answered(rejected=len(rejected))

    async def _fetch_secrets(self, raw: bytes, context: Context) -> bytes:
        caller = self._peer_of(context)
        async with self._workloads.session(caller, needs_svid=True, patient=True) as subscription:
            await self._pace.turn(subscription.share, len(raw))
            return await self._fetch(parse(discovery_pb2.DiscoveryRequest, raw), subscription)

    async def _fetch(self, request: discovery_pb2.DiscoveryRequest, subscription: Subscription) -> bytes:
        """One answer without version and nonce; for names that mean nothing there is no later, so it says so."""
        room = self._workloads.memory.room(subscription.share)
        stream = SdsStream(names=self._names, validator=self._validator, room=room)
        stream.request(request, self._clock.now())
        while True:
            view = subscription.view
            content = self._cache.content(view)
            found = stream.resolve_now(content, settled=view.settled, now=self._clock.now())
            self._pace.looked_up(subscription.share, len(stream.subscribed))
            if stream.everything or len(found) == len(stream.subscribed) or view.settled:
                break
            await subscription.changed()
        if not found:
            names = " ".join(f'"{name}"' for name in sorted(stream.subscribed))
            raise InvalidArgument(
                f"workload is not authorized for the requested identities [{names}]", reason="SDS_UNKNOWN_NAMES"
            )
        return stream.body(content, found, version="")


class Inbox:
    """The requests of one stream that wait to be looked at; `waiting` is charged for their bytes.

    They come in at the `pace` of the share; until then nothing more is read.
    """

    def __init__(self, subscription: Subscription, waiting: Charge, pace: RequestPace) -> None:
        self._subscription = subscription
        self._waiting = waiting
        self._pace = pace
        self._requests: asyncio.Queue[bytes] = asyncio.Queue(INBOX)
        self._over = False

    @property
    def ended(self) -> bool:
        """Whether all is read of the client's half of the stream, and nothing waits."""
        return self._over and self._requests.empty()

    def next(self) -> bytes | None:
        """The next request, or None when none waits."""
        if self._requests.empty():
            return None
        raw = self._requests.get_nowait()
        self._waiting.set(self._waiting.size - len(raw))
        return raw

    async def fill(self, requests: AsyncIterator[bytes]) -> None:
        """Until the client's half ends; the subscription ends with Exhausted when there is no room for a request."""
        try:
            async for raw in requests:
                self._waiting.set(self._waiting.size + len(raw))
                await self._pace.turn(self._subscription.share, len(raw))
                await self._requests.put(raw)
                self._subscription.wake()
        except grpc.aio.BaseError as error:
            log.debug("an SDS stream broke off", error=str(error))
        except Exhausted as error:
            full = error
            self._subscription.end(lambda: full)
        self._over = True
        self._subscription.wake()
