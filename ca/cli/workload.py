"""A client of the SPIFFE Workload API, as any workload is one: address, security header, five RPCs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ca.cli.connection import STATUS_FILE, grpc_target, translated, workload_socket
from ca.errors import BurgeeError, InvalidArgument, Unavailable
from ca.identity.endpoint import (
    DEFAULT_SOCKET,
    ENVIRONMENT_VARIABLE,
    TcpEndpoint,
    UnixEndpoint,
    endpoint_address,
)

if TYPE_CHECKING:
    import grpc

    from ca.proto.burgee import workload_pb2

_SERVICE = "SpiffeWorkloadAPI"
_HEADER = (("workload.spiffe.io", "true"),)
"""SPIFFE Workload Endpoint §6: without it an endpoint refuses, so that no request can be forged by a web page."""

_WHY = "an administrator of this node finds why with `caadmin explain workload --id {}`"


def endpoint(given: str | None) -> UnixEndpoint | TcpEndpoint:
    """The address given, else by the rule of `ca.cli.connection`; the default only if it is there.

    Raises InvalidArgument.
    """
    if given or os.environ.get(ENVIRONMENT_VARIABLE):
        return endpoint_address(os.environ, given)
    if (running := workload_socket()) is not None:
        return UnixEndpoint(str(running))
    if os.path.exists(DEFAULT_SOCKET):
        return UnixEndpoint(DEFAULT_SOCKET)
    raise InvalidArgument(
        "no Workload API was named, and none was found",
        reason="ENDPOINT_MISSING",
        hint=f"set {ENVIRONMENT_VARIABLE} (or give --endpoint), go where `burgee up` keeps its {STATUS_FILE}, or "
        f"start an agent at {DEFAULT_SOCKET}",
    )


class WorkloadClient:
    """The RPCs, each with the security header. Errors are grpc.RpcError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def fetch_x509(self, timeout: float | None = None) -> Any:
        """A stream that brings everything anew at each change."""
        from ca.proto.burgee import workload_pb2 as pb

        return self._stream("FetchX509SVID", pb.X509SVIDRequest(), pb.X509SVIDResponse, timeout)

    def fetch_x509_once(self, timeout: float) -> workload_pb2.X509SVIDResponse:
        """The SVIDs as they are now."""
        from ca.proto.burgee import workload_pb2 as pb

        answer: workload_pb2.X509SVIDResponse = self._first(
            "FetchX509SVID", pb.X509SVIDRequest(), pb.X509SVIDResponse, timeout
        )
        return answer

    def fetch_x509_bundles(self, timeout: float) -> workload_pb2.X509BundlesResponse:
        """The bundles as they are now."""
        from ca.proto.burgee import workload_pb2 as pb

        request = pb.X509BundlesRequest()
        answer: workload_pb2.X509BundlesResponse = self._first(
            "FetchX509Bundles", request, pb.X509BundlesResponse, timeout
        )
        return answer

    def fetch_jwt_bundles(self, timeout: float) -> workload_pb2.JWTBundlesResponse:
        """The bundles as they are now."""
        from ca.proto.burgee import workload_pb2 as pb

        request = pb.JWTBundlesRequest()
        answer: workload_pb2.JWTBundlesResponse = self._first(
            "FetchJWTBundles", request, pb.JWTBundlesResponse, timeout
        )
        return answer

    def fetch_jwt(self, audience: list[str], spiffe_id: str, timeout: float) -> workload_pb2.JWTSVIDResponse:
        """JWT-SVIDs for `audience`: of one ID, or of all."""
        from ca.proto.burgee import workload_pb2 as pb

        call: Any = self._channel.unary_unary(
            f"/{_SERVICE}/FetchJWTSVID",
            request_serializer=pb.JWTSVIDRequest.SerializeToString,
            response_deserializer=pb.JWTSVIDResponse.FromString,
        )
        request = pb.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)
        answer: workload_pb2.JWTSVIDResponse = call(request, metadata=_HEADER, timeout=timeout)
        return answer

    def _stream(self, method: str, request: Any, response: Any, timeout: float | None) -> Any:
        call: Any = self._channel.unary_stream(
            f"/{_SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return call(request, metadata=_HEADER, timeout=timeout)

    def _first(self, method: str, request: Any, response: Any, timeout: float) -> Any:
        stream = self._stream(method, request, response, timeout)
        try:
            return next(iter(stream))
        except StopIteration as error:
            raise Unavailable("the stream ended without an answer", reason="STREAM_ENDED") from error
        finally:
            stream.cancel()


@contextmanager
def workload_client(given: str | None) -> Iterator[WorkloadClient]:
    """A client for the length of a `with`. Raises InvalidArgument, or the error that the endpoint reported."""
    import grpc

    where = endpoint(given)
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    try:
        with (
            grpc.insecure_channel(grpc_target(str(where)), options=options) as channel,
            translated(str(where), ENVIRONMENT_VARIABLE),
        ):
            yield WorkloadClient(channel)
    except BurgeeError as error:
        if error.request_id:
            error.hint = "; ".join(filter(None, (error.hint, _WHY.format(error.request_id))))
        raise
