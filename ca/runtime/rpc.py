"""Private grpc.aio servers whose errors explain themselves, and clients on Unix sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import grpc

from ca.errors import BurgeeError

DEFAULT_MAX_RECEIVE_BYTES = 4 << 20


def grpc_server(
    uds_path: str,
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
    *,
    max_receive_bytes: int = DEFAULT_MAX_RECEIVE_BYTES,
    max_connection_age_seconds: float | None = None,
) -> grpc.aio.Server:
    """A server on a private Unix socket (in a directory that is ours alone), not yet started; errors are mapped.

    Pass `gate.interceptor()` among `interceptors`; the error interceptor stands outermost by itself.
    """
    ...


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: BurgeeError) -> NoReturn:
    """End the call with `error`. Raising the error from a handler does the same."""
    ...


def connect(path: str, *, header: Mapping[str, str] | None = None) -> grpc.aio.Channel:
    """A client channel to a Unix socket; `header` is sent as metadata with every call."""
    ...


def error_of(error: grpc.aio.AioRpcError) -> BurgeeError:
    """The error that a server of ours (or SPIRE's) reported, as a member of the family."""
    ...
