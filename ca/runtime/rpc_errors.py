"""The error family on the gRPC wire: status, message, and machine-readable details in grpc-status-details-bin."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from ca.errors import (
    STATUS,
    AlreadyExists,
    BurgeeError,
    Code,
    Denied,
    Exhausted,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from ca.proto.spire import types_pb2
from ca.runtime import log

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "burgee-request-id"
"""Where the details have no room for it: SPIRE's PermissionDeniedDetails travel alone."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
LONGEST_RETRY_SECONDS = 3600.0
"""What is believed of a server's word when to come again."""

ERROR_DOMAIN = "burgee"
MAX_DETAIL_CHARACTERS = 2048
"""The message travels twice in the trailers, for which gRPC clients grant 8 KiB."""

_REQUEST_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{1,16}")

Context = grpc.aio.ServicerContext[Any, Any]

STATUS_CODES: dict[Code, grpc.StatusCode] = {
    code: next(status for status in grpc.StatusCode if status.value[0] == number)
    for code, (number, _) in STATUS.items()
}
"""Our codes → grpcio's."""

_FAMILY: dict[int, type[BurgeeError]] = {
    STATUS[kind.code][0]: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        Denied,
        Unauthenticated,
        Exhausted,
        FailedPrecondition,
        Unavailable,
        Unimplemented,
        Internal,
    )
}
_NEAREST: dict[int, type[BurgeeError]] = {
    STATUS[Code.DEADLINE_EXCEEDED][0]: Unavailable,
    STATUS[Code.ABORTED][0]: Unavailable,
    1: Unavailable,
}
_AGENT_REASONS = types_pb2.PermissionDeniedDetails.Reason
_AGENT_NAMES = frozenset(_AGENT_REASONS.keys())


def status_details(error: BurgeeError, request_id: str = "") -> bytes:
    """A serialized google.rpc.Status for `error`.

    AGENT_* reasons travel as SPIRE's PermissionDeniedDetails and alone, which a SPIRE agent acts on; every other
    reason as google.rpc.ErrorInfo (domain `burgee`, metadata `hint` and `request_id`), followed by google.rpc.RetryInfo
    where the error says when to come again.
    """
    number = STATUS[error.code][0]
    status = status_pb2.Status(code=number, message=_message(error))
    detail = any_pb2.Any()
    if _is_agents(error):
        detail.Pack(types_pb2.PermissionDeniedDetails(reason=_AGENT_REASONS.Value(error.reason)))
    else:
        metadata = {"hint": error.hint, "request_id": request_id}
        present = {key: value for key, value in metadata.items() if value}
        detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=present))
    status.details.append(detail)
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    serialized: bytes = status.SerializeToString()
    return serialized


async def abort_with(context: Context, error: BurgeeError) -> NoReturn:
    """End the call with `error`. Raising the error from a handler does the same and logs it as well."""
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status_details(error, log.request_id.get()))]
    if _is_agents(error) and (request_id := log.request_id.get()):
        trailers.append((REQUEST_ID_KEY, request_id))
    if error.retry_after_seconds is not None:  # for gRPC's own retries (gRFC A6), where a client has them switched on
        trailers.append((PUSHBACK_KEY, str(round(error.retry_after_seconds * 1000))))
    await context.abort(STATUS_CODES[error.code], _message(error), tuple(trailers))
    raise AssertionError("abort always raises")


def _is_agents(error: BurgeeError) -> bool:
    """Whether a SPIRE agent acts on it."""
    return error.code is Code.PERMISSION_DENIED and error.reason in _AGENT_NAMES


def _message(error: BurgeeError) -> str:
    return error.detail[:MAX_DETAIL_CHARACTERS]


def error_of(error: grpc.aio.AioRpcError) -> BurgeeError:
    """What a server of ours (or SPIRE's) reported, as a member of the family with reason and hint where it gave them.

    Codes outside of the family become the nearest member: cancelled, aborted and deadline Unavailable, others Internal.
    """
    number = error.code().value[0]
    kind = _FAMILY.get(number) or _NEAREST.get(number, Internal)
    details = _details(error)
    reason, hint = _reason_and_hint(details)
    found = kind(
        error.details() or error.code().name.lower().replace("_", " "),
        reason=reason,
        hint=hint,
        retry_after_seconds=_retry_after_seconds(details),
    )
    found.request_id = _request_id(details) or _request_id_of_trailers(error)
    return found


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    trailers: Any = error.trailing_metadata()
    for key, value in trailers or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:  # a details header is no reason to lose the error itself
                break
    return status_pb2.Status()


def _reason_and_hint(status: status_pb2.Status) -> tuple[str | None, str]:
    for detail in status.details:
        info, denied = error_details_pb2.ErrorInfo(), types_pb2.PermissionDeniedDetails()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return info.reason or None, info.metadata.get("hint", "")
        if detail.Is(denied.DESCRIPTOR) and detail.Unpack(denied) and denied.reason in _AGENT_REASONS.values():
            return _AGENT_REASONS.Name(denied.reason), ""
    return None, ""


def _request_id(status: status_pb2.Status) -> str:
    """Empty for what is no id of ours: it is shown in a command to be typed."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            found: str = info.metadata.get("request_id", "")
            return found if _REQUEST_ID.fullmatch(found) else ""
    return ""


def _request_id_of_trailers(error: grpc.aio.AioRpcError) -> str:
    trailers: Any = error.trailing_metadata()
    found = next((value for key, value in trailers or () if key == REQUEST_ID_KEY), "")
    return found if isinstance(found, str) and _REQUEST_ID.fullmatch(found) else ""


def _retry_after_seconds(status: status_pb2.Status) -> float | None:
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            seconds: float = info.retry_delay.ToMilliseconds() / 1000
            return min(max(seconds, 0.0), LONGEST_RETRY_SECONDS)
    return None
