"""A gRPC channel to the server above us, through a relay that verifies its chain and its SPIFFE ID."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from ca.errors import BurgeeError, Code, Denied, InvalidArgument, Unauthenticated, Unavailable, Unimplemented
from ca.identity.spiffe_id import server_id
from ca.identity.svid import X509Svid, verify_x509_svid
from ca.identity.text import SHOWN_CHARACTERS, printable
from ca.ports import Clock
from ca.runtime.rpc import error_of
from ca.runtime.tls_relay import TlsRelay
from ca.upstream.workload import WorkloadIdentity, WorkloadSource

MAX_RECEIVE_BYTES = 16 << 20
GRACE_SECONDS = 10.0
"""What calls under way get when our SVID was renewed."""

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
]


class UpstreamLink:
    """One connection at a time, made with our newest SVID; the first call after a renewal makes another."""

    def __init__(self, *, servers: Sequence[str], source: WorkloadSource, clock: Clock) -> None:
        self._servers = tuple(servers)
        self._source = source
        self._clock = clock
        self._directory: Path | None = None
        self._open: _Open | None = None
        self._lock = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def calls(self) -> AsyncIterator[grpc.aio.Channel]:
        """A channel for one call; what the call meets comes out as Unavailable, Denied, InvalidArgument or
        Unimplemented, in the words of who refused."""
        opened = await self._opened(await self._source.current())
        try:
            yield opened.channel
        except grpc.aio.AioRpcError as error:
            raise explained(error, opened.relay) from error

    def recheck(self) -> None:
        """The bundle that we know the server by has changed."""
        if self._open is not None:
            self._open.relay.recheck()

    @property
    def server(self) -> str:
        """Where the connection leads now; empty while there is none."""
        return (self._open.relay.address if self._open is not None else None) or ""

    async def close(self) -> None:
        async with self._lock:
            opened, self._open = self._open, None
        if opened is not None:
            await opened.close(0)
        for task in tuple(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    async def _opened(self, identity: WorkloadIdentity) -> _Open:
        async with self._lock:
            if self._open is not None and self._open.identity.svid == identity.svid:
                return self._open
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="burgee-"))
            relay = TlsRelay(
                servers=self._servers,
                verify=self._verify,
                material=identity.material,
                directory=self._directory,
                clock=self._clock,
            )
            await relay.start()
            channel = grpc.aio.insecure_channel(f"unix:{relay.path}", options=[*_OPTIONS, relay.patience])
            before, self._open = self._open, _Open(identity, relay, channel)
            if before is not None:
                task = asyncio.create_task(before.close(GRACE_SECONDS))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            return self._open

    def _verify(self, chain: Sequence[bytes]) -> X509Svid:
        """Against the bundle as the agent gave it last."""
        held = self._source.held
        if held is None:
            raise Unauthenticated("there is no bundle to verify the server by", reason="SVID_UNTRUSTED_DOMAIN")
        domain = held.bundle.trust_domain
        shown = verify_x509_svid(chain, {domain: held.bundle}, now=self._clock.now())
        if shown.id != server_id(domain):
            raise Unauthenticated(f"`{shown.id}` is not the server of `{domain}`", reason="SERVER_ID_MISMATCH")
        return shown


class _Open:
    """Channel and relay live and end together."""

    def __init__(self, identity: WorkloadIdentity, relay: TlsRelay, channel: grpc.aio.Channel) -> None:
        self.identity = identity
        self.relay = relay
        self.channel = channel

    async def close(self, grace_seconds: float) -> None:
        try:
            await self.channel.close(grace_seconds)
        finally:
            await self.relay.close()


def explained(error: grpc.aio.AioRpcError, relay: TlsRelay) -> BurgeeError:
    """The server's answer; where none came, why the relay let none through."""
    found = error_of(error)
    said = printable(found.detail[:SHOWN_CHARACTERS])
    if found.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
        if relay.refusal is not None:
            refusal = relay.refusal.error
            reason = "UPSTREAM_UNREACHABLE" if isinstance(refusal, Unavailable) else "UPSTREAM_UNTRUSTED"
            return Unavailable(f"upstream: {refusal.detail} ({refusal.reason})", reason=reason, hint=refusal.hint)
        return Unavailable(
            f"the upstream server does not answer: {said}",
            reason="UPSTREAM_UNREACHABLE",
            retry_after_seconds=found.retry_after_seconds,
        )
    if found.code in (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED):
        return Denied(
            f"the upstream server refuses: {said}",
            reason="UPSTREAM_DENIED",
            hint="our SPIFFE ID needs an entry with `downstream` there",
        )
    if found.code is Code.INVALID_ARGUMENT:
        return InvalidArgument(f"the upstream server refuses: {said}", reason=found.reason, hint=found.hint)
    if found.code is Code.UNIMPLEMENTED:
        return Unimplemented(f"the upstream server: {said}", reason="UPSTREAM_UNIMPLEMENTED")
    return Unavailable(
        f"the upstream server failed: {said}",
        reason="UPSTREAM_FAILED",
        hint=found.hint,
        retry_after_seconds=found.retry_after_seconds,
    )
