"""Keepalive: who asks in time is never sent away for it, who floods is; and every option has a name that grpc knows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc

from ca.runtime import rpc
from sds import server_link

ROOT = Path(__file__).parents[3]
OPTION = re.compile(r"""\(\s*"(grpc\.[a-z0-9_.]+)",""")
PINGS_SECONDS = 1.2
"""grpc's clients send at most one a second, whatever they are told."""


def test_grpc_knows_every_option_that_is_set() -> None:
    """grpc passes over an option that it does not know in silence, and its default holds."""
    library = Path(str(cygrpc.__file__)).read_bytes()
    used = {
        name
        for room in ("ca", "sds", "attestor", "policy", "tests")
        for file in (ROOT / room).rglob("*.py")
        for name in OPTION.findall(file.read_text("utf-8"))
    }
    assert "grpc.http2.min_ping_interval_without_data_ms" in used
    assert {name for name in used if name.encode() + b"\0" not in library} == set()


def test_an_agent_asks_no_more_often_than_a_server_bears() -> None:
    """With room for what is held up on its way: at least twice the interval."""
    assert server_link.KEEPALIVE_SECONDS >= 2 * rpc.MIN_CLIENT_PING_SECONDS
    assert rpc.MAX_PING_STRIKES >= 2


class _Silent(grpc.GenericRpcHandler):
    """One stream that nothing is ever sent on, as an agent's when nothing changes."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def wait(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.Event().wait()

        return grpc.unary_stream_rpc_method_handler(wait)


async def _fate(path: Path, *, seconds: float) -> str:
    """What an idle stream of a client that pings every 1.2 s ended with within `seconds`; empty: it stands."""
    server = rpc.grpc_server(path)
    server.add_generic_rpc_handlers((_Silent(),))
    await server.start()
    options = [
        ("grpc.keepalive_time_ms", int(PINGS_SECONDS * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
            call = channel.unary_stream("/test.Silent/Wait")(b"")
            assert await call.read() == b"first"
            async with asyncio.timeout(seconds):
                await call.read()
        raise AssertionError("the stream ended without an error")
    except TimeoutError:
        return ""
    except grpc.aio.AioRpcError as error:
        return error.details() or ""
    finally:
        await server.stop(0)


async def test_an_idle_client_that_asks_in_time_stays_and_another_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agent and server with all times divided by ten, and one strike: five pings, of which the third would end it."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(rpc, "MAX_PING_STRIKES", 1)
    too_often = asyncio.create_task(_fate(tmp_path / "a.sock", seconds=20))
    await asyncio.sleep(0)  # its server is made with the interval of every server
    monkeypatch.setattr(rpc, "MIN_CLIENT_PING_SECONDS", PINGS_SECONDS * 5 / 12)
    assert await _fate(tmp_path / "b.sock", seconds=5.5 * PINGS_SECONDS) == ""
    assert "pings" in await too_often
