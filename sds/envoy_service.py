"""What Envoy's discovery services have in common, v3: streams that never end for a name that means nothing here."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from ca.errors import Exhausted, InvalidArgument
from ca.ports import Clock
from ca.runtime.log import get
from sds import envoy_messages as messages
from sds.cache import Subscription
from sds.envoy_answers import Answers
from sds.envoy_delta import DeltaStream
from sds.envoy_status import SdsClient, SdsClients
from sds.envoy_stream import SdsStream
from sds.envoy_subscriber import ResourceState, Subscriber, parse
from sds.limits import LimitsConfig
from sds.memory import Charge
from sds.request_pace import RequestPace
from sds.workloads import Caller, Context, Workloads, quiet_exit

log = get("sds.envoy")

INBOX = 16
"""Requests of one stream that wait to be looked at; the next is not read before."""
BEATS = 3
"""Heartbeats within the time after which a client drops what it holds."""

S = TypeVar("S", bound=Subscriber)


class EnvoyService(ABC):
    """One service. `peer_of` gives the verified caller of a call; no header is asked for (SPIRE's agent neither)."""

    name: str
    methods: tuple[str, str, str]
    """State of the world, incremental, fetch."""
    needs_svid: bool
    """Whether SVIDs are issued for its callers' sake."""

    def __init__(
        self,
        *,
        peer_of: Callable[[Context], Caller],
        workloads: Workloads,
        clients: SdsClients,
        clock: Clock,
        pace: RequestPace | None = None,
    ) -> None:
        self._peer_of = peer_of
        self._workloads = workloads
        self._clients = clients
        self._clock = clock
        self._followed: set[Subscription] = set()
        self._pace = pace or RequestPace(LimitsConfig().max_sds_requests_per_second_per_workload, clock)

    def handler(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`."""
        every, delta, fetch = self.methods
        return grpc.method_handlers_generic_handler(
            self.name,
            {
                every: grpc.stream_stream_rpc_method_handler(self._stream_all),
                delta: grpc.stream_stream_rpc_method_handler(self._stream_delta),
                fetch: grpc.unary_unary_rpc_method_handler(self._fetch),
            },
        )

    @abstractmethod
    def stream(self, kind: type[S]) -> S:
        """The state of a new stream."""

    @abstractmethod
    async def answers(self, subscription: Subscription, stream: Subscriber) -> Answers:
        """What names stand for to this caller now. What takes long to make for those that are asked for is made."""

    @abstractmethod
    def settled(self, subscription: Subscription) -> bool:
        """Whether nothing of what the caller may have is on its way."""

    @asynccontextmanager
    async def turn(self, subscription: Subscription, answers: Answers) -> AsyncIterator[None]:
        """While a response with these answers is made and written."""
        yield

    def wake(self) -> None:
        """What names stand for may have changed, for all callers."""
        for subscription in self._followed:
            subscription.wake()

    async def _stream_all(self, requests: AsyncIterator[bytes], context: Context) -> None:
        await self._follow(requests, context, self.stream(SdsStream))

    async def _stream_delta(self, requests: AsyncIterator[bytes], context: Context) -> None:
        await self._follow(requests, context, self.stream(DeltaStream))

    async def _follow(self, requests: AsyncIterator[bytes], context: Context, stream: Subscriber) -> None:
        caller = self._peer_of(context)
        await messages.loaded()
        # A starting agent has Envoy wait rather than come back after its own, growing, pauses.
        async with self._workloads.session(caller, needs_svid=self.needs_svid, patient=True) as subscription:
            stream.room = room = self._workloads.memory.room(subscription.share)
            client = self._clients.add(stream, pid=caller.pid or 0, uid=caller.uid or 0, now=self._clock.now())
            self._followed.add(subscription)
            with room.charge() as held, room.charge() as waiting:
                inbox = Inbox(subscription, waiting, self._pace)
                reader = asyncio.create_task(inbox.fill(requests))
                try:
                    async with quiet_exit(context):
                        await self._serve(context, subscription, client, inbox, held)
                finally:
                    reader.cancel()
                    self._followed.discard(subscription)
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
            if not await _changed(subscription, stream.ttl_seconds / BEATS):
                await self._beat(context, stream)

    async def _answer(self, context: Context, subscription: Subscription, stream: Subscriber, held: Charge) -> None:
        answers = await self.answers(subscription, stream)
        async with self.turn(subscription, answers):
            response = stream.respond(answers, self._clock.now())
            if response is not None:
                held.set(stream.held_bytes())
                await context.write(response)
                self._clients.moved()

    async def _beat(self, context: Context, stream: Subscriber) -> None:
        response = stream.heartbeat()
        if response is not None:
            await context.write(response)

    def _take_in(self, client: SdsClient, raw: bytes) -> None:
        stream = client.stream
        pending = [status for status in stream.statuses.values() if status.state is ResourceState.SENT]
        stream.take_in(raw, self._clock.now())
        rejected = [status for status in pending if status.state is ResourceState.NACKED]
        for status in rejected:
            log.warning(
                "an Envoy rejected what it was sent",
                reason="SDS_NACK",
                name=status.name,
                pid=client.pid,
                node=stream.node_id,
                detail=status.detail,
                in_force=status.accepted,
            )
        if pending:
            self._clients.answered(rejected=len(rejected))

    async def _fetch(self, raw: bytes, context: Context) -> bytes:
        caller = self._peer_of(context)
        await messages.loaded()
        async with self._workloads.session(caller, needs_svid=self.needs_svid, patient=True) as subscription:
            await self._pace.turn(subscription.share, len(raw))
            self._followed.add(subscription)
            try:
                return await self._fetched(parse(messages.discovery_pb2.DiscoveryRequest, raw), subscription)
            finally:
                self._followed.discard(subscription)

    async def _fetched(self, request: messages.discovery_pb2.DiscoveryRequest, subscription: Subscription) -> bytes:
        """One answer without version and nonce; for names that mean nothing there is no later, so it says so."""
        stream = self.stream(SdsStream)
        stream.room = self._workloads.memory.room(subscription.share)
        stream.request(request, self._clock.now())
        while True:
            answers = await self.answers(subscription, stream)
            found = stream.resolve_now(answers, self._clock.now())
            self._pace.looked_up(subscription.share, len(stream.subscribed))
            if stream.everything or len(found) == len(stream.subscribed) or self.settled(subscription):
                break
            await subscription.changed()
        if not found:
            names = " ".join(f'"{name}"' for name in sorted(stream.subscribed))
            raise InvalidArgument(
                f"workload is not authorized for the requested identities [{names}]", reason="SDS_UNKNOWN_NAMES"
            )
        return stream.body(answers, found, version="")


async def _changed(subscription: Subscription, patience_seconds: float) -> bool:
    """Return after the next change; False when there was none for so long, where that is not 0."""
    if not patience_seconds:
        await subscription.changed()
        return True
    try:
        async with asyncio.timeout(patience_seconds):
            await subscription.changed()
    except TimeoutError:
        return False
    return True


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
