"""Private grpc.aio servers whose errors explain themselves, and clients on Unix sockets."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from typing import Any

import grpc

from ca.errors import FailedPrecondition
from ca.runtime.files import require_private
from ca.runtime.rpc_errors import abort_with, error_of
from ca.runtime.rpc_handlers import Answer, Layer, LayeredServer, Parsed
from ca.runtime.rpc_observer import Observed

__all__ = ["DEFAULT_MAX_RECEIVE_BYTES", "abort_with", "connect", "error_of", "grpc_server"]

DEFAULT_MAX_RECEIVE_BYTES = 4 << 20
"""SPIRE's and gRPC's own limit for a request."""

MAX_STREAMS_PER_CONNECTION = 4096
"""Many workloads may share one connection to an agent. A server whose callers need no certificate grants fewer: an
open call costs 15 kB here, and its caller next to nothing."""

PENDING_CALLS = 2_000
PENDING_CALLS_HARD = 4_000
"""Calls that gRPC keeps until they are looked at. By default it cancels some at random beyond a thousand, whoever's
they are: one caller could have all others' calls cancelled. Each costs some 15 kB, so there is an end. What one caller
may begin is bounded elsewhere, by the gate and by the calls that are open on one connection."""

FIRST_FRAMES_SECONDS = 20
"""For a client's HTTP/2 preface and settings, however slowly they drip."""

KEEPALIVE_SECONDS = 60
KEEPALIVE_TIMEOUT_SECONDS = 20
MIN_CLIENT_PING_SECONDS = 5
MAX_PING_STRIKES = 4
"""A ping that comes sooner after the one before is a strike, and one strike too many ends the connection, unless the
server sent something in between: that forgives all. A stream on which nothing changes forgives nothing, so whoever asks
regularly must stay above the interval, and the strikes are for the pings that grpc sends on its own account."""


def grpc_server(
    uds_path: str | os.PathLike[str],
    layers: Sequence[Layer | Parsed] = (),
    *,
    unknown: Answer | None = None,
    queued: Container[str] | None = None,
    max_receive_bytes: int = DEFAULT_MAX_RECEIVE_BYTES,
    max_connection_age_seconds: float | None = None,
    max_streams_per_connection: int = MAX_STREAMS_PER_CONNECTION,
    options: Sequence[tuple[str, Any]] = (),
) -> LayeredServer:
    """A server on a private Unix socket, not yet started. Its errors, metrics and request ids are taken care of.

    The socket's directory must be private (0700), else FailedPrecondition. The gate's layer comes first among
    `layers`, and its `unknown` answers methods that nobody serves. Only methods that `queued` names have queues of
    their own, if it is given. A request above `max_receive_bytes` is refused unread with ResourceExhausted. Clients
    that ping more often than every 5 s are sent away, and calls beyond `max_streams_per_connection` wait at the client.
    Handlers are async; they raise members of the error family.
    """
    path = os.fspath(uds_path)
    require_private(os.path.dirname(path))
    server = grpc.aio.server(
        options=[*_options(max_receive_bytes, max_connection_age_seconds, max_streams_per_connection), *options],
    )
    if not server.add_insecure_port(f"unix:{path}"):
        raise FailedPrecondition(f"cannot listen on `{path}`", reason="ADDRESS_UNAVAILABLE")
    return LayeredServer(server, (Observed(), *layers), unknown, queued)


def _options(
    max_receive_bytes: int, max_connection_age_seconds: float | None, max_streams_per_connection: int
) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", max_streams_per_connection),
        ("grpc.server.max_pending_requests", PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_HARD),
        ("grpc.server_handshake_timeout_ms", FIRST_FRAMES_SECONDS * 1000),
        # Pings reach the real client: the gate relays them, so a dead one is found although its relay lives.
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        # Without this one an unanswered ping is waited for for a minute, whatever the line above says.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        # grpc's constant for it has RECV in its name, the option itself has not; unknown options are passed over in
        # silence, and the default is five minutes.
        ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_CLIENT_PING_SECONDS * 1000)),
        ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
    ]
    if max_connection_age_seconds is not None:
        options.append(("grpc.max_connection_age_ms", int(max_connection_age_seconds * 1000)))
    return options


def connect(path: str | os.PathLike[str], *, header: Mapping[str, str] | None = None) -> grpc.aio.Channel:
    """A client channel to a Unix socket; `header` is sent as metadata with every call. Close it after use.

    Calls raise grpc.aio.AioRpcError, which `error_of` translates.
    """
    pairs = tuple((header or {}).items())
    interceptors = [kind(pairs) for kind in _HEADER_INTERCEPTORS] if pairs else []
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(f"unix:{os.fspath(path)}", options=options, interceptors=interceptors)


class _Header:
    """Adds metadata to a call's details."""

    def __init__(self, pairs: tuple[tuple[str, str], ...]) -> None:
        self._pairs = pairs

    def _with_header(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._pairs)
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryUnary(_Header, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._with_header(client_call_details), request)


class _UnaryStream(_Header, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._with_header(client_call_details), request)


class _StreamUnary(_Header, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._with_header(client_call_details), request_iterator)


class _StreamStream(_Header, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._with_header(client_call_details), request_iterator)


_HEADER_INTERCEPTORS: tuple[type[Any], ...] = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
