"""The Delegated Identity API: a trusted proxy of this node asks for what other workloads may have.

Whoever may call it can get every identity of the node. So the caller is attested like any workload, and one of its own
identities must be an authorized delegate; that is looked at again with each change for as long as a stream is open.
Identities that administer the server or sign for servers below it are handed to nobody but their own workload.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from ca.errors import BurgeeError, Denied, InvalidArgument, Unauthenticated
from ca.identity import base64url
from ca.identity.entry import RegistrationEntry
from ca.identity.selector import Selector
from ca.identity.spiffe_id import SpiffeId
from ca.proto.spire import agent_delegatedidentity_pb2 as pb
from ca.proto.spire import agent_delegatedidentity_pb2_grpc, types_pb2
from sds.cache import Cache, Subscription
from sds.explain import no_identity
from sds.jwt_cache import JwtCache
from sds.views import BundleForms, Content
from sds.workload_api import check_audience
from sds.workloads import Caller, Context, Workloads, attestation_failed, quiet_exit

MAX_SELECTORS = 256

Request = pb.SubscribeToX509SVIDsRequest | pb.FetchJWTSVIDsRequest


@dataclass(frozen=True, slots=True)
class NamedProcess:
    """A process that a delegate names by its pid, with its user as the kernel shows it; it may become any program."""

    pid: int
    uid: int
    gid: int
    pidfd: None = None
    program: None = None

    def close(self, reason: str) -> None:
        """It has no connection of its own."""


class DelegatedIdentityApi(agent_delegatedidentity_pb2_grpc.DelegatedIdentityServicer):
    """The service. `peer_of` gives the verified caller of a call, `delegates` are the configured SPIFFE IDs."""

    def __init__(
        self,
        *,
        peer_of: Callable[[Context], Caller],
        delegates: frozenset[SpiffeId],
        workloads: Workloads,
        cache: Cache,
        jwts: JwtCache,
    ) -> None:
        self._peer_of = peer_of
        self._delegates = delegates
        self._workloads = workloads
        self._cache = cache
        self._jwts = jwts

    async def SubscribeToX509SVIDs(
        self, request: pb.SubscribeToX509SVIDsRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeToX509SVIDsResponse]:
        async with quiet_exit(context), self._delegate(context) as delegate, self._target(request) as target:
            last: bytes | None = None
            while True:
                self._check(delegate)
                if target.view.settled:
                    message = _once(self._cache.content(target.view))
                    if message != last:
                        yield pb.SubscribeToX509SVIDsResponse.FromString(message)
                        last = message
                await _any_changed(delegate, target)

    async def SubscribeToX509Bundles(
        self, request: pb.SubscribeToX509BundlesRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeToX509BundlesResponse]:
        async with aclosing(self._bundles(context)) as every:
            async for bundles in every:
                yield pb.SubscribeToX509BundlesResponse(ca_certificates={forms.id: forms.der for forms in bundles})

    async def SubscribeToJWTBundles(
        self, request: pb.SubscribeToJWTBundlesRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeToJWTBundlesResponse]:
        async with aclosing(self._bundles(context)) as every:
            async for bundles in every:
                yield pb.SubscribeToJWTBundlesResponse(bundles={forms.id: forms.jwks for forms in bundles})

    async def FetchJWTSVIDs(self, request: pb.FetchJWTSVIDsRequest, context: Context) -> pb.FetchJWTSVIDsResponse:
        async with self._delegate(context) as delegate:
            audience = check_audience(request.audience)
            async with self._target(request, needs_svid=False) as target:
                content = self._cache.content(target.view)
                entries = [entry for entry in content.entries if delegable(entry)]
                if not entries:
                    raise no_identity()
                tokens = await asyncio.gather(
                    *(self._jwts.get(entry, audience, share=target.share) for entry in entries)
                )
                target.check()
            self._check(delegate)
        return pb.FetchJWTSVIDsResponse(
            svids=[
                _jwt_svid(entry, token, content.hints.get(entry.id, ""))
                for entry, token in zip(entries, tokens, strict=True)
            ]
        )

    # --- who asks -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _delegate(self, context: Context) -> AsyncIterator[Subscription]:
        """The caller's own subscription; the block runs only for an authorized delegate."""
        async with self._workloads.session(self._peer_of(context), needs_svid=False) as subscription:
            self._check(subscription)
            yield subscription

    def _check(self, delegate: Subscription) -> None:
        delegate.check()
        entries = self._cache.content(delegate.view).entries
        if not entries:
            raise no_identity()
        if not any(entry.spiffe_id in self._delegates for entry in entries):
            raise Denied(
                "caller not configured as an authorized delegate",
                reason="DELEGATE_UNAUTHORIZED",
                hint="name its SPIFFE ID in the agent's `authorized_delegates`",
            )

    # --- for whom -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _target(self, request: Request, *, needs_svid: bool = True) -> AsyncIterator[Subscription]:
        """A subscription to what is asked for: the identities of a process, or of whoever has these selectors.

        Raises InvalidArgument (DELEGATE_TARGET, SELECTOR_*), Unavailable (ATTESTATION_FAILED), also when the process
        ends.
        """
        if bool(request.selectors) == bool(request.pid):
            raise InvalidArgument(
                "must provide either selectors or non-zero PID, but not both", reason="DELEGATE_TARGET"
            )
        if request.selectors:
            subscription = self._cache.subscribe(_selectors(request.selectors), needs_svid=needs_svid)
            try:
                yield subscription
            finally:
                self._cache.unsubscribe(subscription)
            return
        async with self._named(request.pid, needs_svid=needs_svid) as subscription:
            yield subscription

    @asynccontextmanager
    async def _named(self, pid: int, *, needs_svid: bool) -> AsyncIterator[Subscription]:
        subscription: Subscription | None = None
        try:
            async with self._workloads.session(named_process(pid), needs_svid=needs_svid) as subscription:
                yield subscription
        except Unauthenticated as error:
            if subscription is None or subscription.ended:  # else it is the delegate that has gone
                raise attestation_failed() from error
            raise

    async def _bundles(self, context: Context) -> AsyncGenerator[list[BundleForms], None]:
        """All bundles that the agent holds, the own first, and again whenever one of them changes."""
        changed = asyncio.Event()
        self._cache.on_change.append(changed.set)
        try:
            async with quiet_exit(context), self._delegate(context) as delegate:
                sent: list[BundleForms] = []
                while True:
                    self._check(delegate)
                    changed.clear()
                    bundles = self._cache.bundle_forms()
                    if bundles != sent:
                        yield bundles
                        sent = bundles
                    await _any_changed(delegate, event=changed)
        finally:
            self._cache.on_change.remove(changed.set)


def delegable(entry: RegistrationEntry) -> bool:
    """Whether a delegate may have it: what it gives must be no more than a workload's own identity (as SPIRE's)."""
    return not (entry.admin or entry.downstream)


def _once(content: Content) -> bytes:
    return content.once("delegated X.509-SVIDs", lambda: x509_svids(content).SerializeToString())


async def _any_changed(*subscriptions: Subscription, event: asyncio.Event | None = None) -> None:
    """Until one of them changed; raises what ended one of them. What changed is for the caller to look at."""
    tasks = [asyncio.ensure_future(subscription.changed()) for subscription in subscriptions]
    waits: list[asyncio.Future[None]] = [*tasks]
    if event is not None:
        waits.append(asyncio.ensure_future(_set(event)))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    for subscription in subscriptions:
        subscription.check()


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def named_process(pid: int) -> NamedProcess:
    """The process with this pid and its effective user and group (proc_pid_status(5)). Raises Unavailable."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            fields = dict(line.split(b":", 1) for line in file.read(4096).splitlines() if b":" in line)
        return NamedProcess(pid, int(fields[b"Uid"].split()[1]), int(fields[b"Gid"].split()[1]))
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise attestation_failed() from error


def x509_svids(content: Content) -> pb.SubscribeToX509SVIDsResponse:
    """What SPIRE's agent says of the same content, in the order of FetchX509SVID."""
    entries = [entry for entry in content.entries if delegable(entry)]
    federated = {domain.name for entry in entries for domain in entry.federates_with}
    return pb.SubscribeToX509SVIDsResponse(
        x509_svids=[
            pb.X509SVIDWithKey(
                x509_svid=types_pb2.X509SVID(
                    cert_chain=svid.chain,
                    id=_id(svid.spiffe_id),
                    expires_at=int(svid.not_after.timestamp()),
                    hint=content.hints.get(entry.id, ""),
                ),
                x509_svid_key=svid.key,
            )
            for entry, svid in content.svids
            if delegable(entry)
        ],
        federates_with=[f"spiffe://{name}" for name in sorted(federated)],
    )


def _selectors(messages: Sequence[types_pb2.Selector]) -> frozenset[Selector]:
    if len(messages) > MAX_SELECTORS:
        raise InvalidArgument(f"at most {MAX_SELECTORS} selectors", reason="DELEGATE_SELECTORS")
    try:
        return frozenset(Selector(message.type, message.value) for message in messages)
    except BurgeeError as error:
        raise InvalidArgument(f"could not parse provided selectors: {error.detail}", reason=error.reason) from error


def _jwt_svid(entry: RegistrationEntry, token: str, hint: str) -> types_pb2.JWTSVID:
    # Our own server's token, fresh from the cache: its claims are read, not verified.
    claims = json.loads(base64url.decode(token.split(".")[1]))
    return types_pb2.JWTSVID(
        token=token,
        id=_id(entry.spiffe_id),
        expires_at=int(claims["exp"]),
        issued_at=int(claims.get("iat", 0)),
        hint=hint,
    )


def _id(spiffe_id: SpiffeId) -> types_pb2.SPIFFEID:
    return types_pb2.SPIFFEID(trust_domain=spiffe_id.trust_domain.name, path=spiffe_id.path)
