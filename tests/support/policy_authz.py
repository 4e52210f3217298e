"""An ext_authz server for tests: each check is answered by a function, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from envoy.service.auth.v3.external_auth_pb2_grpc import AuthorizationServicer, add_AuthorizationServicer_to_server

PERMISSION_DENIED = 7


class Authz(AuthorizationServicer):  # type: ignore[misc]
    """`judge` says whether a request may go on."""

    def __init__(self, socket: Path, judge: Callable[[CheckRequest], bool]) -> None:
        self.judge = judge
        self.checks: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_AuthorizationServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.checks.append(request)
        answer = CheckResponse()
        answer.status.code = 0 if self.judge(request) else PERMISSION_DENIED
        return answer

    def stop(self) -> None:
        self._server.stop(None)
