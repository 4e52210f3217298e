"""burgee.debug.v1.Debug: what a bug report needs to know of this process, and nothing secret."""

from __future__ import annotations

import json
import platform
import ssl
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
import yaml
from pydantic import BaseModel

from ca.ports import Clock
from ca.proto.burgee import debug_pb2, debug_pb2_grpc
from ca.runtime import log, redact
from ca.runtime.health import Health
from ca.runtime.metrics import exposition

PACKAGES = ("burgee", "cryptography", "grpcio", "protobuf", "pydantic", "sqlalchemy", "structlog")


class DebugReport(debug_pb2_grpc.DebugServicer):
    """The service of a `server` or an `agent`."""

    def __init__(
        self, *, program: str, config: Callable[[], BaseModel], health: Health, clock: Clock, started_at: datetime
    ) -> None:
        self._program = program
        self._config = config
        self._health = health
        self._clock = clock
        self._started_at = started_at

    async def GetReport(
        self, request: debug_pb2.GetReportRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> debug_pb2.Report:
        config = redact.configuration(self._config())
        return debug_pb2.Report(
            program=self._program,
            versions=versions(),
            started_at=int(self._started_at.timestamp()),
            now=int(self._clock.now().timestamp()),
            config_yaml=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
            health_json=json.dumps(self._health.report()[1], indent=2),
            metrics_text=exposition().decode(),
            log=[redact.text(line) for line in log.recent(request.log_lines)],
        )


def versions() -> dict[str, str]:
    """Of what matters for the behaviour of this process."""
    found = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "openssl": ssl.OPENSSL_VERSION,
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
