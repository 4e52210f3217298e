"""Look-ups by the vendors' SDKs: a few threads at a time, and an end to every wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from attestor.node.cloud import sdk
from attestor.node.cloud.sdk import LookUps
from ca.errors import Unavailable
from tests.support.server import eventually


async def test_a_vendor_that_is_silent_gets_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "MAX_AT_ONCE", 2)
    gate, begun = threading.Event(), []

    def silent(number: int) -> int:
        begun.append(number)
        gate.wait()
        return number

    look_ups = LookUps(seconds=30, vendor="a vendor")
    waiting = [asyncio.create_task(look_ups.ask(silent, number)) for number in range(6)]
    await eventually(lambda: len(begun) == 2)
    await asyncio.sleep(0.05)
    assert len(begun) == 2
    gate.set()
    assert await asyncio.gather(*waiting) == list(range(6))


async def test_its_wait_has_an_end() -> None:
    gate = threading.Event()
    with pytest.raises(Unavailable) as caught:
        await LookUps(seconds=0.05, vendor="a vendor").ask(lambda _: gate.wait(), None)
    gate.set()
    assert caught.value.reason == "CLOUD_API"
