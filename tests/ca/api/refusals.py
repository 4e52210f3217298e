"""What a refused call looks like to its caller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import pytest

from ca.errors import BurgeeError
from ca.runtime.rpc import error_of

Code = grpc.StatusCode


@dataclass
class Refusal:
    """Filled in when the block ends."""

    code: grpc.StatusCode = Code.OK
    detail: str = ""
    reason: str = ""
    error: BurgeeError | None = None


@contextmanager
def refused(code: grpc.StatusCode, detail: str = "", reason: str = "") -> Iterator[Refusal]:
    """The block must end in a refusal with this code, part of a message, and reason."""
    found = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield found
    found.error = error_of(caught.value)
    found.code, found.detail, found.reason = caught.value.code(), caught.value.details() or "", found.error.reason
    assert found.code is code, caught.value
    assert detail in found.detail
    assert reason in ("", found.reason), found.reason
    assert "Traceback" not in found.detail


async def collect(stream: AsyncIterator[object]) -> list[object]:
    return [item async for item in stream]
