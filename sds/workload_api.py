"""The SPIFFE Workload API (2026): seven RPCs under the standard's package-less service name.

Messages go out as bytes that are built once for all streams of callers with the same rights; the header is checked
before a request is even parsed. WIT-SVIDs are not issued: their RPCs answer Unimplemented (§7, F44).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError, Message

from ca.errors import BurgeeError, Denied, InvalidArgument, Unavailable, Unimplemented
from ca.identity.jwt_svid import JwtSvid, verify_jwt_svid
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.ports import Clock
from ca.proto.burgee import workload_pb2 as wl
from ca.runtime.log import get
from ca.runtime.metrics import gauge
from sds.cache import Cache, Subscription
from sds.explain import explain_no_identity, no_identity
from sds.jwt_cache import JwtCache
from sds.views import Content
from sds.workloads import Caller, Context, Workloads, quiet_exit

log = get("sds.workload_api")

SERVICE = "SpiffeWorkloadAPI"
HEADER = "workload.spiffe.io"
MAX_AUDIENCES = 16
MAX_AUDIENCE_BYTES = 512

STREAMS = gauge("agent_workload_streams", "Open Workload API streams", ["rpc"])

M = TypeVar("M", bound=Message)
Pick = Callable[[Subscription, Content], bytes | None]


class WorkloadApi:
    """The service. `peer_of` gives the verified caller of a call."""

    def __init__(
        self,
        *,
        peer_of: Callable[[Context], Caller],
        workloads: Workloads,
        cache: Cache,
        jwts: JwtCache,
        clock: Clock,
    ) -> None:
        self._peer_of = peer_of
        self._workloads = workloads
        self._cache = cache
        self._jwts = jwts
        self._clock = clock

    def handler(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`. The method set is exactly the standard's (Endpoint §7, E22)."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchX509SVID": self._stream("FetchX509SVID", _x509_svids, needs_svid=True),
                "FetchX509Bundles": self._stream("FetchX509Bundles", _x509_bundles, needs_svid=False),
                "FetchJWTBundles": self._stream("FetchJWTBundles", _jwt_bundles, needs_svid=False),
                "FetchJWTSVID": self._unary(self._fetch_jwt_svid),
                "ValidateJWTSVID": self._unary(self._validate_jwt_svid),
                "FetchWITSVID": _unimplemented("fetching WIT-SVIDs is not implemented"),
                "FetchWITBundles": _unimplemented("fetching WIT bundles is not implemented"),
            },
        )

    # --- streams ------------------------------------------------------------------------------------------------

    def _stream(self, rpc: str, pick: Pick, *, needs_svid: bool) -> grpc.RpcMethodHandler[Any, Any]:
        open_streams = STREAMS.labels(rpc)

        async def serve(request: bytes, context: Context) -> None:
            check_header(context)
            async with self._workloads.session(self._peer_of(context), needs_svid=needs_svid) as subscription:
                with open_streams.track_inprogress():
                    async with quiet_exit(context):
                        await self._push(context, subscription, pick)

        return grpc.unary_stream_rpc_method_handler(serve)

    async def _push(self, context: Context, subscription: Subscription, pick: Pick) -> None:
        """Send the full state now, and again whenever it differs (Workload API §4.3, §4.4: F5 to F8)."""
        last: bytes | None = None
        while True:
            # The content is asked for by the time of each send: what has expired meanwhile is not in it.
            content = self._cache.content(subscription.view)
            if not content.entries:
                raise self._no_identity(subscription)  # ends an open stream too (F21, F22, F25, F36)
            message = pick(subscription, content)
            if message is not None and message != last:
                await context.write(message)
                last = message
            await subscription.changed()

    # --- calls --------------------------------------------------------------------------------------------------

    def _unary(self, call: Callable[[bytes, Caller], Awaitable[Message]]) -> grpc.RpcMethodHandler[Any, Any]:
        async def serve(request: bytes, context: Context) -> bytes:
            check_header(context)
            return (await call(request, self._peer_of(context))).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(serve)

    async def _fetch_jwt_svid(self, raw: bytes, caller: Caller) -> Message:
        request = _parse(wl.JWTSVIDRequest, raw)
        audience = check_audience(request.audience)
        wanted = _requested_id(request.spiffe_id)
        async with self._workloads.session(caller, needs_svid=False) as subscription:
            content = self._cache.content(subscription.view)
            entries = [entry for entry in content.entries if wanted is None or entry.spiffe_id == wanted]
            if not entries:
                raise self._no_identity(subscription) if not content.entries else no_identity()
            tokens = await asyncio.gather(
                *(self._jwts.get(entry, audience, share=subscription.share) for entry in entries)
            )
            subscription.check()
        # Workload API §6.2.1 (F28, F29): one for each identity, in the order of FetchX509SVID.
        return wl.JWTSVIDResponse(
            svids=[
                wl.JWTSVID(spiffe_id=str(entry.spiffe_id), svid=token, hint=content.hints.get(entry.id, ""))
                for entry, token in zip(entries, tokens, strict=True)
            ]
        )

    async def _validate_jwt_svid(self, raw: bytes, caller: Caller) -> Message:
        """Needs no identity: a verifier may have none. The caller's own federation decides whom it can verify."""
        request = _parse(wl.ValidateJWTSVIDRequest, raw)
        # Workload API §6.2.3 (F12, F40): both fields are mandatory.
        if not request.audience:
            raise InvalidArgument("audience must be specified", reason="AUDIENCE_MISSING")
        if not request.svid:
            raise InvalidArgument("svid must be specified", reason="JWT_MISSING")
        async with self._workloads.session(caller, needs_svid=False) as subscription:
            content = self._cache.content(subscription.view)
        # Workload API §6.3 (F42): only the bundle of the subject's own trust domain counts.
        bundles = {forms.trust_domain: forms.bundle for forms in content.bundles}
        svid = verify_jwt_svid(request.svid, audience=request.audience, bundles=bundles, now=self._clock.now())
        return wl.ValidateJWTSVIDResponse(spiffe_id=str(svid.id), claims=shown_claims(svid, self._cache.trust_domain))

    def _no_identity(self, subscription: Subscription) -> Denied:
        """Says once for each view and content, in the log, what came nearest."""
        view = subscription.view
        if not view.explained:
            view.explained = True
            why = explain_no_identity(self._cache.entries(), view.selectors)
            log.info("no identity for a caller", reason="NO_IDENTITY", why=why)
        return no_identity()


def _unimplemented(detail: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def serve(request: bytes, context: Context) -> None:
        check_header(context)
        raise Unimplemented(detail, reason="WIT_UNIMPLEMENTED")

    return grpc.unary_stream_rpc_method_handler(serve)


def check_header(context: Context) -> None:
    """Endpoint §3 and §6 (E8, E9): exactly one value, exactly `true`, on every RPC and before anything else.

    It proves that the caller did not get here by a forged request of a browser or a proxy.
    """
    values = [value for key, value in context.invocation_metadata() or () if key == HEADER]
    if values != ["true"]:
        raise InvalidArgument(
            "security header missing from request",
            reason="SECURITY_HEADER_MISSING",
            hint=f"send the metadata `{HEADER}: true`",
        )


def check_audience(audience: Any) -> tuple[str, ...]:
    """The audiences without repetitions, in order. Workload API §6.2.1 (F12, F27): at least one, none of them empty."""
    values = tuple(dict.fromkeys(audience))
    if not values or "" in values:
        raise InvalidArgument("audience must be specified", reason="AUDIENCE_MISSING")
    if len(values) > MAX_AUDIENCES or any(len(value.encode()) > MAX_AUDIENCE_BYTES for value in values):
        raise InvalidArgument(
            f"at most {MAX_AUDIENCES} audiences of {MAX_AUDIENCE_BYTES} bytes each", reason="AUDIENCE_TOO_LARGE"
        )
    return values


def shown_claims(svid: JwtSvid, own: TrustDomain) -> struct_pb2.Struct:
    """The claims to return: all of our own domain's tokens; of a foreign one only those that SPIFFE defines, for what
    else a stranger's authority wrote means nothing agreed upon here (F39; SPIRE does the same)."""
    from google.protobuf.json_format import ParseDict  # 0.3 MB for those who have tokens checked here

    claims: Mapping[str, Any] = svid.claims
    if svid.id.trust_domain != own:
        claims = {name: claims[name] for name in ("sub", "aud", "exp") if name in claims}
    shown = dict(claims)
    shown["aud"] = list(svid.audience)
    try:
        return ParseDict(shown, struct_pb2.Struct())
    except (ValueError, TypeError) as error:
        raise InvalidArgument("the token has claims that cannot be shown", reason="JWT_MALFORMED") from error


def _x509_svids(subscription: Subscription, content: Content) -> bytes | None:
    if not subscription.view.settled:
        return None
    if not content.svids:
        # Workload API §5.2.1 (F17): an answer has at least one SVID, so there is none without.
        raise Unavailable("the X.509-SVID has not been issued yet", reason="SVID_PENDING", hint="try again")
    return content.x509_svids


def _x509_bundles(subscription: Subscription, content: Content) -> bytes | None:
    return content.x509_bundles


def _jwt_bundles(subscription: Subscription, content: Content) -> bytes | None:
    return content.jwt_bundles


def _requested_id(text: str) -> SpiffeId | None:
    if not text:
        return None
    try:
        return SpiffeId.parse(text)
    except BurgeeError as error:
        raise InvalidArgument(f"invalid requested SPIFFE ID: {error.detail}", reason="SPIFFE_ID_MALFORMED") from error


def _parse(kind: type[M], raw: bytes) -> M:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidArgument("the request is malformed", reason="REQUEST_MALFORMED") from error
