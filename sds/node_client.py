"""The agent's line to the server: the push (or the polling) it follows, and the calls it makes for its workloads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from ca.errors import BurgeeError, Code, Internal, Unavailable
from ca.identity.bundle import TrustBundle
from ca.ports import Clock
from ca.proto.spire import server_bundle_pb2, server_bundle_pb2_grpc, server_svid_pb2, server_svid_pb2_grpc
from ca.runtime.log import get
from sds.backoff import Backoff, at_least, hurried
from sds.condition import Condition
from sds.config import AgentConfig
from sds.feed import Feed
from sds.first_trust import ServerTrust
from sds.jwt_cache import JwtIssued
from sds.node_identity import NodeIdentity
from sds.node_sync import SyncStream
from sds.post_status import post_status
from sds.rotation import Issued
from sds.server_link import ServerLink, expiry
from sds.state import AgentSvid
from sds.wire import bundle_from_wire, status_error

if TYPE_CHECKING:
    from sds.polling import Poller

PART = "sync"
PUSH, POLL = "push", "poll"
UNKNOWN_KIND = "ACK_KIND"
"""What a server says to a word on a kind that it does not know."""
MAX_BATCH = 500
"""CSRs in one BatchNewX509SVID, the server's own limit."""

RPC_TIMEOUT_SECONDS = 30.0
RETRY_CAP_SECONDS = 5.0
"""Longest pause between tries: with the dial it keeps recovery after a server's return well below half a minute. While
an SVID is about to end it is shorter (`hurried`)."""

GRACE_SECONDS = 10.0
"""Calls in flight on the old link after a renewal get this long."""

R = TypeVar("R")
log = get("sds.sync")


class NodeClient:
    """`run` for ever. Calls may be made at any time; without a server they raise Unavailable at once."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        clock: Clock,
        identity: NodeIdentity,
        trust: ServerTrust,
        feed: Feed,
        condition: Condition,
        version: str,
        next_expiry: Callable[[], datetime | None] = lambda: None,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - spreads load, guards nothing
    ) -> None:
        self._config = config
        self._clock = clock
        self._identity = identity
        self._trust = trust
        self._feed = feed
        self._condition = condition
        self._version = version
        self._next_expiry = next_expiry
        self._jitter = jitter
        self._backoff = Backoff(jitter)
        self._link: ServerLink | None = None
        self._link_svid: AgentSvid | None = None
        self._source: SyncStream | Poller | None = None
        self._following: asyncio.Task[None] | None = None
        self._poller: Poller | None = None
        self._posted = False
        self._rotated = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self.last_sync_at: datetime | None = None
        self.sync_mode = ""
        """PUSH or POLL, as the server was last followed; empty while it never was."""
        identity.on_rotated(self._rotated.set)
        identity.on_banned(self.close)

    @property
    def server_address(self) -> str:
        """Of the server that is talked to now; empty when there is none."""
        return (self._link.relay.address if self._link else None) or ""

    @property
    def connected(self) -> bool:
        """Whether the push stream stands, or the last poll succeeded: what the server knows, the agent knows."""
        return self._source is not None and self._source.live

    def acknowledge(self) -> None:
        """The feed's consumer numbers changed: tell the server soon."""
        if self._source is not None:
            self._source.acknowledge()

    async def run(self) -> None:
        """Follow the server; begin anew, with the push, whenever that ends."""
        while True:
            svid = await self._identity.wait_svid()
            self._rotated.clear()
            problem: BurgeeError | None = expiry(svid, self._clock)
            if problem is None:
                await self._use(svid)
                problem = await self._follow()
            if problem is not None:
                self._failed(problem)
                cap = self._cap_seconds()
                await self._pause(at_least(self._retry_seconds(cap), problem, self._jitter()))
                unreachable = problem.code is Code.UNAVAILABLE  # a server that answered is asked on the same connection
                if unreachable and cap < RETRY_CAP_SECONDS and self._link is not None:
                    self._let_go(self._link.redial().close(GRACE_SECONDS))

    async def close(self) -> None:
        """Ends the link, until there is another SVID; calls raise Unavailable from then on, and nothing more is fed."""
        link, self._link = self._link, None
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        self._forget_polled()
        if link is not None:
            await link.close()
        for task in tuple(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def new_x509_svids(self, requests: Sequence[tuple[str, bytes]]) -> list[Issued]:
        """X.509-SVIDs for (entry id, CSR in DER), answered in order; the server is asked 500 at a time.

        Raises Unavailable when no server answers, Denied when this agent is refused altogether.
        """
        issued: list[Issued] = []
        for start in range(0, len(requests), MAX_BATCH):
            issued += await self._call(partial(_batch, requests=requests[start : start + MAX_BATCH]))
        return issued

    async def new_jwt_svid(
        self, entry_id: str, audience: Sequence[str], *, timeout_seconds: float = RPC_TIMEOUT_SECONDS
    ) -> JwtIssued:
        """A JWT-SVID for an entry. Raises Unavailable, NotFound (no such entry, or not for this agent) or Denied."""
        return await self._call(lambda link: _jwt(link, entry_id, audience, timeout_seconds))

    async def get_bundle(self) -> TrustBundle:
        """The trust domain's bundle, straight from the server."""
        return await self._call(_bundle)

    async def _call(self, call: Callable[[ServerLink], Coroutine[Any, Any, R]]) -> R:
        link = self._link
        if link is None:
            raise Unavailable("the agent has no identity yet to ask the server with", reason="AGENT_NOT_READY")
        if self._link_svid is not None and (expired := expiry(self._link_svid, self._clock)):
            raise expired
        try:
            return await call(link)
        except grpc.aio.AioRpcError as error:
            explained = await link.explain(error)
            self._identity.denied(explained)
            raise explained from error

    async def _use(self, svid: AgentSvid) -> None:
        """A link with this SVID; the old one ends once its calls have."""
        if self._link is not None and self._link_svid == svid:
            return
        old = self._link
        self._link = await ServerLink.open(config=self._config, trust=self._trust, clock=self._clock, svid=svid)
        self._link_svid = svid
        if old is not None:
            self._let_go(old.close(grace_seconds=GRACE_SECONDS))

    def _let_go(self, closing: Coroutine[Any, Any, None]) -> None:
        """Its calls end by themselves meanwhile."""
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _follow(self) -> BurgeeError | None:
        """The push or, where a server has none, polling it, until that ends; None when there is nothing wrong."""
        assert self._link is not None
        link = self._link
        posting = asyncio.create_task(self._post_status(link))
        try:
            push = SyncStream(
                link=link,
                clock=self._clock,
                feed=self._feed,
                trust=self._trust,
                version=self._version,
                synced=self._pushed,
            )
            problem = await self._until_rotated(link, push, push.run())
            if problem is None or problem.code is not Code.UNIMPLEMENTED:
                return problem
            if self.sync_mode != POLL:
                log.info("the server does not push: polling it", server=self.server_address)
            self.sync_mode = POLL
            poller = self._poller = self._poller or self._make_poller()
            return await self._until_rotated(link, poller, poller.run(link.channel, lambda: link.relay.dialled))
        finally:
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)

    def _make_poller(self) -> Poller:
        from sds.polling import Poller  # and SPIRE's messages, which an agent of a server that pushes never sees

        return Poller(clock=self._clock, feed=self._feed, trust=self._trust, jitter=self._jitter, synced=self._synced)

    def _forget_polled(self) -> None:
        if self._poller is not None:
            self._poller.forget()

    async def _until_rotated(
        self, link: ServerLink, source: SyncStream | Poller, run: Coroutine[Any, Any, None]
    ) -> BurgeeError | None:
        """What `run` ended with; None also when it was left, for a new SVID or because the link is closed."""
        self._source = source
        following = self._following = asyncio.create_task(run)
        rotated = asyncio.create_task(self._rotated.wait())
        try:
            await asyncio.wait([following, rotated], return_when=asyncio.FIRST_COMPLETED)
            return await self._outcome(link, following) if following.done() else None
        finally:
            self._source = self._following = None
            for task in (following, rotated):
                task.cancel()
            await asyncio.gather(following, rotated, return_exceptions=True)

    async def _outcome(self, link: ServerLink, following: asyncio.Task[None]) -> BurgeeError | None:
        if following.cancelled():
            return None
        try:
            await following
        except grpc.aio.AioRpcError as error:
            explained = await link.explain(error)
            if explained.reason == UNKNOWN_KIND:
                self._feed.not_known()
            return explained
        except BurgeeError as error:
            return error
        except Exception as error:
            log.exception("what the server sent was not applied", reason="FEED_FAILED")
            return Internal(f"what the server sent could not be applied: {type(error).__name__}", reason="FEED_FAILED")
        return None

    async def _post_status(self, link: ServerLink) -> None:
        if not self._posted:
            self._posted = await post_status(link.channel, self._version)

    def _pushed(self) -> None:
        if self.sync_mode != PUSH:
            self.sync_mode = PUSH
            self._forget_polled()
        self._synced()

    def _synced(self) -> None:
        self.last_sync_at = self._clock.now()
        self._backoff.reset()
        self._condition.in_touch()
        if self._condition.clear(PART):
            log.info("in touch with the server again", server=self.server_address)

    def _failed(self, problem: BurgeeError) -> None:
        if self._identity.denied(problem):
            self._condition.clear(PART)  # a server answers; the identity attests again, or says why it cannot
            return
        if self._condition.report(PART, problem):
            log.warning("not in touch with the server", reason=problem.reason, detail=problem.detail, hint=problem.hint)

    def _cap_seconds(self) -> float:
        """Sooner than usual while an SVID is about to end that only the server can follow up."""
        ends = self._next_expiry()
        return hurried(RETRY_CAP_SECONDS, None if ends is None else (ends - self._clock.now()).total_seconds())

    def _retry_seconds(self, cap_seconds: float) -> float:
        if self._poller is not None and self.sync_mode == POLL:
            return self._poller.retry_seconds()
        return self._backoff.next(cap_seconds)

    async def _pause(self, seconds: float) -> None:
        """Shorter when a new SVID comes."""
        tasks = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._rotated.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _batch(link: ServerLink, requests: Sequence[tuple[str, bytes]]) -> list[Issued]:
    message = server_svid_pb2.BatchNewX509SVIDRequest(
        params=[server_svid_pb2.NewX509SVIDParams(entry_id=entry, csr=csr) for entry, csr in requests]
    )
    stub = server_svid_pb2_grpc.SVIDStub(link.channel)
    answer = await stub.BatchNewX509SVID(message, timeout=RPC_TIMEOUT_SECONDS)
    if len(answer.results) != len(requests):
        raise Internal("the server did not answer every request of a batch", reason="BATCH_INCOMPLETE")
    return [
        Issued(error=status_error(result.status)) if result.status.code else Issued(chain=tuple(result.svid.cert_chain))
        for result in answer.results
    ]


async def _jwt(link: ServerLink, entry_id: str, audience: Sequence[str], timeout_seconds: float) -> JwtIssued:
    stub = server_svid_pb2_grpc.SVIDStub(link.channel)
    request = server_svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=audience)
    svid = (await stub.NewJWTSVID(request, timeout=timeout_seconds)).svid
    return JwtIssued(
        token=svid.token,
        issued_at=datetime.fromtimestamp(svid.issued_at, UTC),
        expires_at=datetime.fromtimestamp(svid.expires_at, UTC),
    )


async def _bundle(link: ServerLink) -> TrustBundle:
    stub = server_bundle_pb2_grpc.BundleStub(link.channel)
    return bundle_from_wire(await stub.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=RPC_TIMEOUT_SECONDS))
