"""A SPIRE or Burgee server above this one, in the same trust domain.

This server comes as a workload of an agent of the server above: with an X.509-SVID from that agent's Workload API, of
an entry there that has `downstream`. The one upstream that keeps JWT authorities and tells of taints.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from ca.errors import BurgeeError, ConfigError, InvalidArgument, Unavailable
from ca.identity.bundle import JwtAuthority
from ca.identity.spiffe_id import SpiffeId
from ca.ports import AuthorityHost, Finding, FindingLevel, UpstreamAuthorityPlugin, UpstreamBundle, UpstreamCa
from ca.proto.spire import server_bundle_pb2, server_bundle_pb2_grpc, server_svid_pb2, server_svid_pb2_grpc
from ca.runtime.addresses import split_address
from ca.runtime.config import StrictModel
from ca.upstream.rehearsal import USUAL_TTL_SECONDS, failure, rehearse, span
from ca.upstream.request import read_request
from ca.upstream.server_link import UpstreamLink
from ca.upstream.wire import bundle_value, jwt_authorities, jwt_message
from ca.upstream.workload import WorkloadIdentity, WorkloadSource

MAX_TTL_SECONDS = 2**31 - 1


def _address(text: str) -> str:
    split_address(text)
    return text


def _spiffe_id(text: str) -> str:
    try:
        return str(SpiffeId.parse(text))
    except InvalidArgument as error:
        raise ValueError(error.detail) from error


class SpireUpstreamConfig(StrictModel):
    """Options of the spire upstream."""

    servers: Annotated[tuple[Annotated[str, AfterValidator(_address)], ...], Field(min_length=1)]
    """Servers above as `host:port`; the first one that can be used is."""

    workload_socket: Path
    """Socket of the Workload API of an agent **of the server above**."""

    spiffe_id: Annotated[str, AfterValidator(_spiffe_id)] | None = None
    """Which of several SVIDs to come with; by default the first one of this trust domain."""

    timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """For each call to the server above, and to the agent."""


class SpireUpstream:
    """Implements ca.ports.UpstreamAuthority and ca.ports.Connected."""

    def __init__(self, config: SpireUpstreamConfig, host: AuthorityHost) -> None:
        self._host = host
        self._timeout_seconds = config.timeout_seconds
        self._source = WorkloadSource(
            config.workload_socket,
            trust_domain=host.trust_domain,
            spiffe_id=None if config.spiffe_id is None else SpiffeId.parse(config.spiffe_id),
            clock=host.clock,
            timeout_seconds=config.timeout_seconds,
            on_change=self._renewed,
        )
        self._link = UpstreamLink(servers=config.servers, source=self._source, clock=host.clock)
        self._ttl_seconds = USUAL_TTL_SECONDS
        self._failure: BurgeeError | None = None

    async def mint(self, csr: bytes, ttl_seconds: int) -> UpstreamCa:
        self._ttl_seconds = ttl_seconds
        return await self._signed(csr, ttl_seconds)

    async def bundle(self) -> UpstreamBundle:
        try:
            async with self._link.calls() as channel:
                stub = server_bundle_pb2_grpc.BundleStub(channel)
                request = server_bundle_pb2.GetBundleRequest()
                found = bundle_value(await stub.GetBundle(request, timeout=self._timeout_seconds))
        except BurgeeError as error:
            self._failure = error
            raise
        self._failure = None
        return found

    async def publish_jwt_key(self, key: JwtAuthority) -> Sequence[JwtAuthority]:
        async with self._link.calls() as channel:
            stub = server_bundle_pb2_grpc.BundleStub(channel)
            request = server_bundle_pb2.PublishJWTAuthorityRequest(jwt_authority=jwt_message(key))
            answer = await stub.PublishJWTAuthority(request, timeout=self._timeout_seconds)
        return jwt_authorities(answer.jwt_authorities)

    async def check(self) -> Sequence[Finding]:
        try:
            identity = await self._source.current()
        except BurgeeError as error:
            return (failure("identity", error),)
        found = [_identity(identity, self._host.clock.now())]
        try:
            roots = len((await self.bundle()).x509_authorities)
        except BurgeeError as error:
            return (*found, failure("server", error))
        detail = f"`{self._link.server}` proved to be the server of `{self._host.trust_domain}`; {roots} roots"
        found.append(Finding(what="server", level=FindingLevel.OK, detail=detail))
        done = await rehearse(self._signed, self._host, ttl_seconds=self._ttl_seconds)
        return (*found, *done.findings, await self._may_publish(), _kept())

    async def start(self) -> None:
        """Whatever it is may be made good above; only an agent of another trust domain is our own mistake."""
        try:
            await self.bundle()
        except BurgeeError as error:
            kind = ConfigError if error.reason == "UPSTREAM_TRUST_DOMAIN" else Unavailable
            raise kind(error.detail, reason=error.reason, hint=error.hint) from error

    async def run(self) -> None:
        await self._source.run()

    async def close(self) -> None:
        await self._link.close()

    def problem(self) -> BurgeeError | None:
        return self._source.failure or self._failure

    def _renewed(self) -> None:
        """What the last call met was met with another identity."""
        self._failure = None
        self._link.recheck()

    async def _signed(self, csr: bytes, ttl_seconds: int) -> UpstreamCa:
        read_request(csr)
        async with self._link.calls() as channel:
            stub = server_svid_pb2_grpc.SVIDStub(channel)
            wanted = min(ttl_seconds, MAX_TTL_SECONDS)
            request = server_svid_pb2.NewDownstreamX509CARequest(csr=csr, preferred_ttl=wanted)
            answer = await stub.NewDownstreamX509CA(request, timeout=self._timeout_seconds)
        return UpstreamCa(chain=tuple(answer.ca_cert_chain), roots=tuple(answer.x509_authorities))

    async def _may_publish(self) -> Finding:
        """Asked with an empty request: who may not is told so first, and nothing is published."""
        try:
            async with self._link.calls() as channel:
                stub = server_bundle_pb2_grpc.BundleStub(channel)
                empty = server_bundle_pb2.PublishJWTAuthorityRequest()
                await stub.PublishJWTAuthority(empty, timeout=self._timeout_seconds)
        except InvalidArgument:
            return Finding(what="JWT keys", level=FindingLevel.OK, detail="the server above would publish them")
        except BurgeeError as error:
            return failure("JWT keys", error)
        return Finding(
            what="JWT keys", level=FindingLevel.WARNING, detail="the server above took an empty key without a word"
        )


def _identity(identity: WorkloadIdentity, now: datetime) -> Finding:
    svid = identity.svid
    return Finding(
        what="identity",
        level=FindingLevel.OK,
        detail=f"`{svid.id}` until {svid.not_after:%Y-%m-%dT%H:%M:%SZ} (in {span(svid.not_after - now)})",
    )


def _kept() -> Finding:
    return Finding(
        what="left behind",
        level=FindingLevel.OK,
        detail="one issuance record in the server above, of an authority of a minute whose key is gone",
    )


plugin = UpstreamAuthorityPlugin(name="spire", config=SpireUpstreamConfig, upstream=SpireUpstream)
