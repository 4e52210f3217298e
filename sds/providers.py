"""External providers that CUSTOM policies name: somebody else's ext_authz, who is asked the same and must agree."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import grpc
from pydantic import Field, field_validator

from ca.errors import Unavailable
from ca.runtime.addresses import split_address
from ca.runtime.config import StrictModel
from ca.runtime.metrics import counter

CHECK = "/envoy.service.auth.v3.Authorization/Check"
ANSWERS = counter("agent_provider_answers", "What external providers said", ["provider", "answer"])


class ProviderConfig(StrictModel):
    """An ext_authz v3 service on this machine; one further away stands behind a proxy of its own."""

    address: str = Field(description="`unix:/path` or `127.0.0.1:port`, without TLS.")
    timeout_seconds: float = Field(
        default=0.25,
        gt=0,
        le=60,
        description="Who has not answered by then has not agreed. Envoy's own time includes it.",
    )

    @field_validator("address")
    @classmethod
    def _near(cls, value: str) -> str:
        if value.startswith("unix:/"):
            return value
        host, _ = split_address(value)
        if not ip_address(host.strip("[]")).is_loopback:
            raise ValueError("an address on this machine is needed: `unix:/path` or `127.0.0.1:port`")
        return value


class Provider:
    """Implements authz_checks.Provider. Connects at the first question."""

    def __init__(self, name: str, config: ProviderConfig) -> None:
        self._name, self._seconds = name, config.timeout_seconds
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(config.address, options=options)
        self._call: Any = self._channel.unary_unary(CHECK)

    async def agrees(self, check: bytes) -> bool:
        from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
        from google.protobuf.message import DecodeError

        try:
            raw: bytes = await self._call(check, timeout=self._seconds)
            agrees = bool(CheckResponse.FromString(raw).status.code == 0)
        except (grpc.aio.AioRpcError, DecodeError) as error:
            ANSWERS.labels(self._name, "none").inc()
            detail = f"the provider `{self._name}` cannot be asked"
            raise Unavailable(detail, reason="PROVIDER_UNAVAILABLE") from error
        ANSWERS.labels(self._name, "agrees" if agrees else "refuses").inc()
        return agrees

    async def close(self) -> None:
        await self._channel.close()


def providers_of(configured: Mapping[str, ProviderConfig]) -> dict[str, Provider]:
    """To be made on the event loop."""
    return {name: Provider(name, config) for name, config in configured.items()}
