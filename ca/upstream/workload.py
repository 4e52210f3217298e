"""Our own identity below another server: an X.509-SVID from the Workload API of an agent of that server, kept fresh."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from ca.errors import BurgeeError, Code, Denied, FailedPrecondition, InvalidArgument, Unauthenticated, Unavailable
from ca.identity.bundle import TrustBundle, X509Authority
from ca.identity.bundle_pem import certificate_pem
from ca.identity.certificate import load_certificate, split_certificates
from ca.identity.spiffe_id import SpiffeId, TrustDomain
from ca.identity.svid import X509Svid, parse_x509_svid
from ca.ports import Clock
from ca.proto.burgee import workload_pb2 as pb
from ca.runtime import log
from ca.runtime.rpc import connect, error_of
from ca.runtime.tls import TlsMaterial

logger = log.get("upstream")

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 10.0
FRESH_SECONDS = 1.0

_FETCH = "/SpiffeWorkloadAPI/FetchX509SVID"
_HEADER = {"workload.spiffe.io": "true"}  # SPIFFE Workload Endpoint §6


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadIdentity:
    """As whom we come, and by what we know the server."""

    svid: X509Svid
    material: TlsMaterial
    bundle: TrustBundle


class WorkloadSource:
    """Keeps the identity that an agent gives this process. `current` fetches one where `run` has not brought one yet.

    With `spiffe_id` it is that SVID, otherwise the first one of our trust domain.
    """

    def __init__(
        self,
        socket: Path,
        *,
        trust_domain: TrustDomain,
        spiffe_id: SpiffeId | None,
        clock: Clock,
        timeout_seconds: float,
        on_change: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._trust_domain = trust_domain
        self._spiffe_id = spiffe_id
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._on_change = on_change
        self._held: WorkloadIdentity | None = None
        self._following = False
        self._fetched_at = float("-inf")
        self._lock = asyncio.Lock()
        self.failure: BurgeeError | None = None

    @property
    def held(self) -> WorkloadIdentity | None:
        """What is there now, valid or not."""
        return self._held

    async def current(self) -> WorkloadIdentity:
        """An identity that is valid now. Raises Unavailable (UPSTREAM_WORKLOAD_API), Denied (UPSTREAM_NO_IDENTITY)."""
        held = self._held
        if held is not None and self._following and self._clock.now() < held.svid.not_after:
            return held
        async with self._lock:  # of several that ask at once one fetches
            if self._held is None or self._clock.monotonic() - self._fetched_at >= FRESH_SECONDS:
                return await self._fetch()
            return self._held

    async def _fetch(self) -> WorkloadIdentity:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                async with aclosing(self._identities()) as identities:
                    async for identity in identities:
                        return identity
        except TimeoutError as error:
            raise self._unavailable("no answer in time") from error
        raise self._unavailable("it ended the stream without an answer")

    async def run(self) -> None:
        """Follows the agent until cancelled."""
        pause = FIRST_RETRY_SECONDS
        while True:
            try:
                async with aclosing(self._identities()) as identities:
                    async for _ in identities:
                        pause, self._following = FIRST_RETRY_SECONDS, True
            except BurgeeError as error:
                self._note(error)
            self._following = False
            await self._clock.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
            pause = min(2 * pause, LAST_RETRY_SECONDS)

    async def _identities(self) -> AsyncGenerator[WorkloadIdentity]:
        """Each identity that the agent gives, kept before it is passed on. The stream lasts until an error."""
        async with connect(self._socket, header=_HEADER) as channel:
            method: Any = channel.unary_stream(
                _FETCH,
                request_serializer=pb.X509SVIDRequest.SerializeToString,
                response_deserializer=pb.X509SVIDResponse.FromString,
            )
            call = method(pb.X509SVIDRequest())
            try:
                async for response in call:
                    yield self._take(response)
            except grpc.aio.AioRpcError as error:
                raise self._explained(error) from error
            finally:
                call.cancel()

    def _take(self, response: pb.X509SVIDResponse) -> WorkloadIdentity:
        identity = read_identity(response, self._trust_domain, self._spiffe_id)
        changed = identity != self._held
        self._held, self.failure = identity, None
        self._fetched_at = self._clock.monotonic()
        if changed:
            logger.info(
                "identity for the upstream server",
                spiffe_id=str(identity.svid.id),
                not_after=identity.svid.not_after.isoformat(),
            )
            self._on_change()
        return identity

    def _explained(self, error: grpc.aio.AioRpcError) -> BurgeeError:
        found = error_of(error)
        if found.code is Code.PERMISSION_DENIED:
            return Denied(
                f"the Workload API at `{self._socket}` gives this process no identity: {found.detail}",
                reason="UPSTREAM_NO_IDENTITY",
                hint="the upstream needs an entry with `downstream` for this server's process below that agent",
            )
        return self._unavailable(found.detail)

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(
            f"the Workload API at `{self._socket}` cannot be used: {why}",
            reason="UPSTREAM_WORKLOAD_API",
            hint="is the agent of the upstream server running, and is this its socket?",
        )

    def _note(self, error: BurgeeError) -> None:
        if self.failure is None or self.failure.reason != error.reason:
            logger.warning("no identity for the upstream server", reason=error.reason, detail=error.detail)
        self.failure = error


def read_identity(
    response: pb.X509SVIDResponse, trust_domain: TrustDomain, spiffe_id: SpiffeId | None
) -> WorkloadIdentity:
    """Raises FailedPrecondition: UPSTREAM_TRUST_DOMAIN where all are another's, UPSTREAM_IDENTITY where the one that is
    wanted is missing or cannot be used."""
    for given in response.svids:
        try:
            found = _identity(given)
        except (InvalidArgument, Unauthenticated, ValueError, TypeError) as error:
            raise FailedPrecondition(
                "the Workload API gives an SVID that cannot be used", reason="UPSTREAM_IDENTITY"
            ) from error
        if found.svid.id.trust_domain == trust_domain and spiffe_id in (None, found.svid.id):
            return found
    names = ", ".join(f"`{given.spiffe_id[:200]}`" for given in response.svids[:5]) or "none"
    if not any(_is_of(trust_domain, given.spiffe_id) for given in response.svids):
        raise FailedPrecondition(
            f"the Workload API gives this process no SVID of trust domain `{trust_domain}`",
            reason="UPSTREAM_TRUST_DOMAIN",
            hint=f"it gives {names}",
        )
    raise FailedPrecondition(
        f"the Workload API gives this process no SVID with the ID `{spiffe_id}`",
        reason="UPSTREAM_IDENTITY",
        hint=f"it gives {names}",
    )


def _is_of(trust_domain: TrustDomain, text: str) -> bool:
    try:
        return SpiffeId.parse(text).trust_domain == trust_domain
    except InvalidArgument:
        return False


def _identity(given: pb.X509SVID) -> WorkloadIdentity:
    svid = parse_x509_svid(split_certificates(given.x509_svid))
    key = load_der_private_key(given.x509_svid_key, None)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    certified = load_certificate(svid.chain[0]).public_key()
    if certified.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public:
        raise ValueError("the key is not the SVID's")
    roots = tuple(X509Authority(certificate=der) for der in _each(given.bundle))
    return WorkloadIdentity(
        svid=svid,
        material=TlsMaterial(
            chain_pem="".join(certificate_pem(der) for der in svid.chain).encode(),
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        ),
        bundle=TrustBundle(trust_domain=svid.id.trust_domain, x509_authorities=roots),
    )


def _each(blob: bytes) -> Iterator[bytes]:
    for der in split_certificates(blob):
        load_certificate(der)
        yield der
