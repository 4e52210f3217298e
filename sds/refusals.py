"""How a call is refused: the stable reason to log and metrics, the short detail to the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from ca.errors import BurgeeError, Denied, InvalidArgument, Unimplemented
from ca.runtime.log import get
from ca.runtime.metrics import counter
from ca.runtime.rpc import abort_with
from sds.workloads import Caller

log = get("sds.calls")

Context = grpc.aio.ServicerContext[Any, Any]

REFUSED = counter("agent_refused", "Calls on the workload socket that were refused, by reason", ["rpc", "reason"])


@asynccontextmanager
async def refusals(rpc: str, context: Context, caller: Caller | None = None) -> AsyncIterator[None]:
    """Around a handler's body: turns an error of the family into its status, once logged and counted."""
    try:
        yield
    except BurgeeError as error:
        REFUSED.labels(rpc, error.reason).inc()
        expected = isinstance(error, InvalidArgument | Denied | Unimplemented)
        emit = log.info if expected else log.warning
        emit("call refused", rpc=rpc, reason=error.reason, detail=error.detail, **_who(caller))
        await abort_with(context, error)


def no_identity() -> Denied:
    """The caller was attested and no registration entry is for it (Workload API §5.2.1, §6.2.1: F21, F32)."""
    return Denied("no identity issued", reason="NO_IDENTITY")


def _who(caller: Caller | None) -> dict[str, int | None]:
    return {} if caller is None else {"pid": caller.pid, "uid": caller.uid}
