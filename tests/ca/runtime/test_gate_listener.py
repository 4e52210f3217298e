"""A listener's turns."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ca.runtime import gate_listener
from ca.runtime.gate_listener import Listener


async def test_one_that_is_closed_by_the_last_caller_of_a_turn_rests_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate_listener, "ACCEPTS_PER_TURN", 1)
    loop = asyncio.get_running_loop()
    failures: list[object] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    accepted: list[socket.socket] = []

    def accept(listener: Listener, client: socket.socket, _: object) -> None:
        accepted.append(client)
        listener.close()

    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    address = server.getsockname()
    Listener(loop, "test", server, accept)
    with socket.create_connection(address):
        for _ in range(100):
            await asyncio.sleep(0.01)
            if accepted:
                break
        await asyncio.sleep(0.05)
    assert len(accepted) == 1
    assert not failures
    accepted[0].close()
