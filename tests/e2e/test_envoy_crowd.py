"""One agent and many Envoy-like clients, and the names that Istio asks for, over real sockets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.pair import Pair, pair, until
from tests.support.workload_client import WorkloadClient

pytestmark = pytest.mark.xdist_group("envoy")
COUNT = 200
TARGET_SECONDS = 0.5
ISTIO = ("default", "ROOTCA", "file-root:/etc/certs/root.pem", "file-root:system")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with pair() as started:
        yield started


def test_a_new_certificate_reaches_200_clients_of_one_agent(nodes: Pair) -> None:
    """Each on its own connection, half of them in delta; every one accepts it, and the operator sees them all."""
    entry = nodes.create_entry("/crowd")
    command = [sys.executable, "-m", "tests.support.sds_crowd", str(nodes.workload_socket), str(COUNT)]
    crowd = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert crowd.stdout is not None
    try:
        with ThreadPoolExecutor(1) as reader:
            assert reader.submit(crowd.stdout.readline).result(30)
            took = []
            for number in range(3):
                began = time.time()
                nodes.set_dns_names(entry, f"{number}.crowd.test")
                told = json.loads(reader.submit(crowd.stdout.readline).result(20))
                took.append(told["last"] - began)
        print(f"entry changed to last of {COUNT} clients: {[f'{t:.3f}' for t in took]} s (target {TARGET_SECONDS})")
        assert max(took) <= 5 * TARGET_SECONDS
        shown = until("all accepted", lambda: [c for c in nodes.sds_clients() if c.resources[0].state == "ACKED"])
        until("every one", lambda: len([c for c in nodes.sds_clients() if c.resources[0].state == "ACKED"]) == COUNT)
        assert {client.pid for client in shown} == {crowd.pid}
    finally:
        crowd.kill()
        crowd.wait()
        nodes.delete_entry(entry)
    until("the agent let them go", lambda: nodes.status().sds_streams == 0)


@pytest.mark.parametrize("kind", ["sds", "delta"])
async def test_istios_names_on_one_stream(nodes: Pair, kind: str) -> None:
    """Those that are known come at once and go on being renewed; the others are shown with who answers them."""
    entry = await asyncio.to_thread(nodes.create_entry, "/ns/shop/sa/web")
    try:
        await asyncio.to_thread(until, "the agent holds it", lambda: nodes.status().x509_svids == 1)
        async with WorkloadClient(str(nodes.workload_socket)) as client:
            call = client.sds() if kind == "sds" else client.delta()
            await call.ask(*ISTIO)
            answer = await asyncio.wait_for(call.read(), 10)
            assert len(answer.resources) == 2
            if kind == "delta":
                assert sorted(answer.removed_resources) == ["file-root:/etc/certs/root.pem", "file-root:system"]
            await (call.ack(*ISTIO) if kind == "sds" else call.ack())
            shown = await asyncio.to_thread(states, nodes, dict.fromkeys(ISTIO[:2], "ACKED"))
            assert {shown[name][0] for name in ISTIO[2:]} == {"UNKNOWN"}
            assert "Istio" in shown["file-root:system"][1]
            await asyncio.to_thread(nodes.set_dns_names, entry, "web.shop.test")
            again = await asyncio.wait_for(call.read(), 10)
            assert again.resources
            assert not call.call.done()
    finally:
        await asyncio.to_thread(nodes.delete_entry, entry)


def states(nodes: Pair, wanted: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Name → (state, detail) of the only stream, once these names have these states."""

    def look() -> dict[str, tuple[str, str]]:
        (client,) = nodes.sds_clients()
        shown = {resource.name: (resource.state, resource.detail) for resource in client.resources}
        return shown if {name: shown[name][0] for name in wanted} == wanted else {}

    return until("the operator sees it", look)
