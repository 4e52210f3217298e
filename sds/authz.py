"""Envoy's ext_authz v3 on the workload socket: a proxy asks about requests to its own workload, and about no other's.

Whoever cannot be answered in time, or at all, is refused by the proxy: the snippet sets `failure_mode_allow` to false.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from sds.askers import Askers
from sds.workloads import Caller, Context

if TYPE_CHECKING:
    from sds.authz_checks import Checks

SERVICE = "envoy.service.auth.v3.Authorization"


class ExtAuthz:
    """The service. `checks` is made at the first question, since it needs the engine."""

    def __init__(self, *, peer_of: Callable[[Context], Caller], askers: Askers, checks: Callable[[], Checks]) -> None:
        self._peer_of, self._askers, self._make = peer_of, askers, checks
        self._checks: Checks | None = None

    def handler(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"Check": grpc.unary_unary_rpc_method_handler(self._check)}
        )

    async def _check(self, raw: bytes, context: Context) -> bytes:
        asker = await self._askers.of(self._peer_of(context))
        if self._checks is None:
            self._checks = self._make()
        return await self._checks.check(raw, context.invocation_metadata() or (), asker)
