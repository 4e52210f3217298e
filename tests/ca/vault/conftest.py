"""Clients of a real OpenBao."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from ca.runtime.clock import SystemClock
from ca.runtime.config import from_values
from ca.vault.client import VaultClient
from ca.vault.config import VaultConfig
from tests.support.openbao import OpenBao, shared_openbao
from tests.support.tasks import running

Connect = Callable[..., Awaitable[VaultClient]]


@pytest.fixture
def bao() -> OpenBao:
    return shared_openbao()


def config(bao: OpenBao, auth: dict[str, Any], **options: Any) -> VaultConfig:
    values = {"address": bao.address, "auth": auth, **options}
    if bao.real:
        values["ca_file"] = str(bao.ca_file)
    return from_values(values, VaultConfig)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`await connect(bao, auth)`: a client that has started and runs until the test is over."""
    async with AsyncExitStack() as stack:

        async def made(bao: OpenBao, auth: dict[str, Any], *, start: bool = True, **options: Any) -> VaultClient:
            client = VaultClient(config(bao, auth, **options), clock=SystemClock(), purpose="test")
            stack.push_async_callback(client.close)
            if start:
                await client.start()
            await stack.enter_async_context(running(client.run()))
            return client

        yield made
