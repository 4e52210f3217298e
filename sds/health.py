"""Whether workloads can be served now: gRPC health on the workload socket, and the reasons for the health report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from ca.errors import BurgeeError, Denied, InvalidArgument, Unavailable, Unimplemented
from ca.ports import Clock
from ca.runtime.health import Problem
from sds.cache import Cache, starting
from sds.condition import Condition, State
from sds.rotation import Rotator
from sds.workloads import Context

SERVICE = "grpc.health.v1.Health"


def health_handler(ready: Callable[[], bool]) -> grpc.GenericRpcHandler:
    """The standard health service without per-service health and without Watch, as on SPIRE's agent; no header."""

    async def check(raw: bytes, context: Context) -> bytes:
        if _service(raw):
            raise InvalidArgument("per-service health is not supported", reason="HEALTH_PER_SERVICE")
        states = health_pb2.HealthCheckResponse.ServingStatus
        status = states.SERVING if ready() else states.NOT_SERVING
        answer: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return answer

    async def watch(raw: bytes, context: Context) -> None:
        raise Unimplemented("method Watch not implemented", reason="HEALTH_WATCH_UNIMPLEMENTED")

    handlers: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def delivery_problem(cache: Cache, rotator: Rotator, condition: Condition, clock: Clock) -> Problem | None:
    """Why a workload could not get an SVID now, or None.

    An agent that lost its server is ready as long as everything somebody uses is here and valid; it is not when a
    new SVID would be needed and cannot be had.
    """
    if condition.state is State.BANNED:
        banned = condition.problem
        assert banned is not None
        return Problem(reason="AGENT_BANNED", detail=banned.detail, hint=banned.hint)
    if not cache.ready:
        missing = condition.no_identity
        if missing is not None:
            detail = f"this agent has no identity: {missing.detail}"
            return Problem(reason=missing.reason, detail=detail, hint=missing.hint)
        known = condition.problem
        if known is not None:
            return Problem(reason=known.reason, detail=known.detail, hint=known.hint)
        return Problem(reason="AGENT_STARTING", detail="entries and bundle have not arrived yet")
    now = clock.now()
    for entry_id in sorted(cache.in_use()):
        svid = cache.svid(entry_id)
        if svid is None or svid.not_after <= now:
            reason = rotator.failure(entry_id)
            if reason is not None:
                return Problem(reason=reason, detail=f"entry {entry_id} is in use and has no valid X.509-SVID")
    if rotator.problem is not None and not any(svid.not_after > now for svid in cache.svids()):
        return Problem(reason=rotator.problem.reason, detail=rotator.problem.detail, hint=rotator.problem.hint)
    return None


def no_service(condition: Condition) -> BurgeeError:
    """What callers are told while none can be served. Of the cause the code alone: more is no workload's business."""
    if condition.state is State.BANNED:
        return Denied("the server banned this agent", reason="AGENT_BANNED")
    missing = condition.no_identity
    if missing is None:
        return starting()
    return Unavailable(
        f"the agent has no identity ({missing.reason})",
        reason="AGENT_NOT_READY",
        hint="its operator finds more with `caadmin health --agent`",
    )


def serving(cache: Cache, rotator: Rotator, condition: Condition, clock: Clock) -> bool:
    """`delivery_problem` as a yes or no."""
    return delivery_problem(cache, rotator, condition, clock) is None


def _service(raw: bytes) -> str:
    try:
        service: str = health_pb2.HealthCheckRequest.FromString(raw).service
        return service
    except DecodeError as error:
        raise InvalidArgument("the request is malformed", reason="REQUEST_MALFORMED") from error
