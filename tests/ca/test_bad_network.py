"""A client whose network swallows everything: the server asks, gives up in time, and keeps nothing of it."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from ca.proto.burgee import node_pb2
from ca.proto.spire import server_bundle_pb2
from ca.runtime import rpc
from tests.support.server import Caller, RunningServer, eventually, running_server
from tests.support.tls_client import TlsClient
from tests.support.valve import Valve

PAGE = Path(__file__).parents[2] / "docs" / "bad-day.md"
ASKED_SECONDS, GIVEN_UP_SECONDS = 1, 1
"""Instead of the server's own 60 and 20."""

LATEST_SECONDS = 15.0
"""On a busy machine, and far from what it would be without these."""


async def metric(server: RunningServer, name: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://{server.server.metrics_address}/metrics")).text
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " "))


async def open_connections(server: RunningServer) -> float:
    return await metric(server, 'burgee_gate_connections{listener="tcp"}')


async def sync(caller: Caller) -> Any:
    """An open push stream that has had its snapshot."""
    call = caller.node.Sync()
    await call.write(node_pb2.SyncRequest(subscribe=node_pb2.Subscribe(agent_version="1")))
    assert (await call.read()).snapshot
    return call


async def test_it_is_ended_in_time_and_whoever_answers_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two agents, each with a stream on which nothing happens; one of them can no longer be reached."""
    monkeypatch.setattr(rpc, "KEEPALIVE_SECONDS", ASKED_SECONDS)
    monkeypatch.setattr(rpc, "KEEPALIVE_TIMEOUT_SECONDS", GIVEN_UP_SECONDS)
    async with running_server(metrics_address="127.0.0.1:0") as server, Valve(server.server.address) as valve:
        (lost, _), (_, there) = await server.agent(), await server.agent()
        others = await open_connections(server)  # of those who attested them
        async with TlsClient(valve.address, roots=server.roots, chain=lost.chain, key=lost.key) as tls:
            streams = [await sync(Caller(tls.channel)), await sync(there)]
            assert await open_connections(server) == others + 2
            assert await metric(server, "burgee_connected_agents") == 2
            valve.swallow()
            began = time.monotonic()
            await eventually(lambda: _is(open_connections(server), others + 1), seconds=LATEST_SECONDS)
            assert time.monotonic() - began > GIVEN_UP_SECONDS / 2, "it was asked first"
            await eventually(lambda: _is(metric(server, "burgee_connected_agents"), 1))
            await asyncio.sleep(2 * (ASKED_SECONDS + GIVEN_UP_SECONDS))
            assert not streams[1].done(), "its client answers, however quiet it is"
            assert await open_connections(server) == others + 1
            async with httpx.AsyncClient() as client:
                for path in ("live", "ready"):
                    assert (await client.get(f"http://{server.server.metrics_address}/{path}")).status_code == 200
            for stream in streams:
                stream.cancel()


async def _is(found: Any, wanted: float) -> bool:
    return bool(await found == wanted)


async def test_a_call_that_waits_for_it_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An anonymous client that vanished behind its call: its place is free again."""
    monkeypatch.setattr(rpc, "KEEPALIVE_SECONDS", ASKED_SECONDS)
    monkeypatch.setattr(rpc, "KEEPALIVE_TIMEOUT_SECONDS", GIVEN_UP_SECONDS)
    async with (
        running_server(metrics_address="127.0.0.1:0") as server,
        Valve(server.server.address) as valve,
        TlsClient(valve.address, roots=server.roots) as tls,
    ):
        caller = Caller(tls.channel)
        await caller.bundles.GetBundle(server_bundle_pb2.GetBundleRequest())
        assert await open_connections(server) == 1
        valve.swallow()
        with suppress(grpc.aio.AioRpcError):
            await caller.bundles.GetBundle(server_bundle_pb2.GetBundleRequest(), timeout=0.2)
        await eventually(lambda: _is(open_connections(server), 0), seconds=LATEST_SECONDS)


def test_the_page_names_the_seconds() -> None:
    stated = re.search(r"half-open connection \| ended after (\d+) s without an answer to a ping", PAGE.read_text())
    assert stated is not None
    assert int(stated[1]) == rpc.KEEPALIVE_SECONDS + rpc.KEEPALIVE_TIMEOUT_SECONDS
