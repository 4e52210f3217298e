"""A small client of the Workload API and of Envoy's SDS, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from ca.proto.burgee import workload_pb2 as wl

HEADER = (("workload.spiffe.io", "true"),)
SDS = "/envoy.service.secret.v3.SecretDiscoveryService"
ECDS = "/envoy.service.extension.v3.ExtensionConfigDiscoveryService"
Metadata = Sequence[tuple[str, str]]


class WorkloadClient:
    """Speaks to one socket; every call may be given other metadata than the standard's header."""

    def __init__(self, socket_path: str) -> None:
        self.channel = grpc.aio.insecure_channel(
            f"unix:{socket_path}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost")],
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.channel.close()

    def stream(self, rpc: str, reply: Any, request: bytes = b"", metadata: Metadata = HEADER) -> Any:
        call = self.channel.unary_stream(f"/SpiffeWorkloadAPI/{rpc}", response_deserializer=reply.FromString)
        return call(request, metadata=metadata)

    def unary(self, rpc: str, request: Any, reply: Any, metadata: Metadata = HEADER, timeout: float = 20) -> Any:
        call = self.channel.unary_unary(f"/SpiffeWorkloadAPI/{rpc}", response_deserializer=reply.FromString)
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        return call(raw, metadata=metadata, timeout=timeout)

    def x509_svids(self, metadata: Metadata = HEADER) -> Any:
        return self.stream("FetchX509SVID", wl.X509SVIDResponse, metadata=metadata)

    def x509_bundles(self, metadata: Metadata = HEADER) -> Any:
        return self.stream("FetchX509Bundles", wl.X509BundlesResponse, metadata=metadata)

    def jwt_bundles(self, metadata: Metadata = HEADER) -> Any:
        return self.stream("FetchJWTBundles", wl.JWTBundlesResponse, metadata=metadata)

    async def jwt_svids(self, *audience: str, spiffe_id: str = "", metadata: Metadata = HEADER) -> wl.JWTSVIDResponse:
        request = wl.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)
        return await self.unary("FetchJWTSVID", request, wl.JWTSVIDResponse, metadata)

    async def validate(self, audience: str, svid: str, metadata: Metadata = HEADER) -> wl.ValidateJWTSVIDResponse:
        request = wl.ValidateJWTSVIDRequest(audience=audience, svid=svid)
        return await self.unary("ValidateJWTSVID", request, wl.ValidateJWTSVIDResponse, metadata)

    def sds(self) -> SdsCall:
        return SdsCall(self.channel)

    def delta(self) -> DeltaCall:
        return DeltaCall(self.channel)

    def all_policies(self) -> SdsCall:
        return SdsCall(self.channel, f"{ECDS}/StreamExtensionConfigs")

    def policies(self) -> DeltaCall:
        return DeltaCall(self.channel, f"{ECDS}/DeltaExtensionConfigs")

    async def fetch_secrets(self, *names: str, rpc: str = f"{SDS}/FetchSecrets") -> discovery_pb2.DiscoveryResponse:
        call = self.channel.unary_unary(
            rpc,
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )
        return await call(discovery_pb2.DiscoveryRequest(resource_names=names), timeout=20)


class SdsCall:
    """One StreamSecrets stream, or another such, with the nonce and version of its last answer at hand."""

    def __init__(self, channel: grpc.aio.Channel, rpc: str = f"{SDS}/StreamSecrets") -> None:
        method = channel.stream_stream(
            rpc,
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )
        self.call = method()
        self.last = discovery_pb2.DiscoveryResponse()

    async def ask(self, *names: str, **fields: Any) -> None:
        await self.call.write(discovery_pb2.DiscoveryRequest(resource_names=names, **fields))

    async def ack(self, *names: str) -> None:
        await self.ask(*names, version_info=self.last.version_info, response_nonce=self.last.nonce)

    async def read(self) -> discovery_pb2.DiscoveryResponse:
        answer = await self.call.read()
        if not isinstance(answer, discovery_pb2.DiscoveryResponse):
            raise EOFError(f"the stream ended: {await self.call.code()} {await self.call.details()}")
        self.last = answer
        return answer


class DeltaCall:
    """One DeltaSecrets stream, or another such, with its last answer at hand."""

    def __init__(self, channel: grpc.aio.Channel, rpc: str = f"{SDS}/DeltaSecrets") -> None:
        method = channel.stream_stream(
            rpc,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self.call = method()
        self.last = discovery_pb2.DeltaDiscoveryResponse()

    async def ask(self, *names: str, **fields: Any) -> None:
        await self.call.write(discovery_pb2.DeltaDiscoveryRequest(resource_names_subscribe=names, **fields))

    async def ack(self, **fields: Any) -> None:
        await self.ask(response_nonce=self.last.nonce, **fields)

    async def read(self) -> discovery_pb2.DeltaDiscoveryResponse:
        answer = await self.call.read()
        if not isinstance(answer, discovery_pb2.DeltaDiscoveryResponse):
            raise EOFError(f"the stream ended: {await self.call.code()} {await self.call.details()}")
        self.last = answer
        return answer


async def messages(call: Any) -> AsyncIterator[Any]:
    """The messages of a stream until it ends; its status is raised as grpc.aio.AioRpcError."""
    while True:
        message = await call.read()
        if message is grpc.aio.EOF:
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(code, await call.initial_metadata(), (), await call.details())
            return
        yield message
